"""A second ingest with another plan: refused where it would replace results; which slides fit a plan."""

from collections.abc import Callable
from pathlib import Path

import pytest

from her2batch import settings
from her2batch.errors import InputError
from her2batch.pipeline.resume import plan_change
from her2batch.pipeline.resume.plan_change import (
    PlanChangedError,
    check_pseudonyms,
    match_plan,
    option_with_value,
    plan_id_of,
    settle_plan,
)
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort, Row, write_row


def slide_row(
    plan: Plan, slide_id: str = "S1", tables: tuple[str, ...] = ("embeddings/stain",), **facts: object
) -> Row:
    """The row of a finished slide that was processed with a plan."""
    files = [{"path": f"tables/{name}/{slide_id}.parquet", "bytes": 1, "sha256": "x"} for name in tables]
    row = {"slide_id": slide_id, "status": "done", "mpp_source": "file", "files": files, **facts}
    return {"plan_id": plan.for_slide(row["mpp_source"]).id, **row}


@pytest.fixture
def make_cohort(tmp_path: Path) -> Callable[..., Cohort]:
    def make(plan: Plan = Plan(), slides: int = 2, **facts: object) -> Cohort:  # noqa: B008  (frozen)
        cohort = Cohort(tmp_path / "c")
        cohort.create(plan)
        for k in range(slides):
            write_row(cohort, slide_row(plan, f"S{k}", **facts))
        return cohort

    return make


OTHER_VALUES = {
    "mpp": 1.0, "tile": 256, "min_tissue": 0.5, "reader": "openslide", "jpeg_quality": 80, "lossless": True,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_each_changed_setting_is_refused_and_named(make_cohort: Callable[..., Cohort], name: str) -> None:
    cohort = make_cohort()
    before = cohort.settings.read_bytes()
    with pytest.raises(PlanChangedError) as refused:
        settle_plan(cohort, Plan(**{name: OTHER_VALUES[name]}))
    assert f"{name} {getattr(Plan(), name)} → {OTHER_VALUES[name]}" in str(refused.value)
    assert "2 finished slides" in str(refused.value)
    assert refused.value.exit_code == 2
    assert cohort.settings.read_bytes() == before


def test_the_refusal_as_a_person_reads_it(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(slides=1)
    with pytest.raises(PlanChangedError) as refused:
        settle_plan(cohort, Plan(mpp=1.0, tile=256))
    assert str(refused.value) == (
        f"{cohort.root}: the plan has changed (mpp 0.5 → 1.0, tile 224 → 256), which would compute 1 finished slide "
        "again and replace their results; omit --mpp, --tile to go on with the settings of the cohort, or add --replan "
        "to compute them again"
    )


def test_replan_accepts_any_change(make_cohort: Callable[..., Cohort]) -> None:
    assert settle_plan(make_cohort(), Plan(**OTHER_VALUES), replan=True) == Plan(**OTHER_VALUES)


def test_settings_that_are_not_given_are_those_of_the_cohort(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(Plan(mpp=1.0, mpp_override=0.25, lossless=True))
    assert settle_plan(cohort, Plan()) == cohort.plan()
    assert settle_plan(cohort, Plan(mpp=1.0)) == cohort.plan()
    with pytest.raises(PlanChangedError, match=r"mpp 1\.0 → 0\.5\)"):
        settle_plan(cohort, Plan(mpp=0.5))  # the default too, if it is given


def test_a_setting_that_concerns_no_finished_slide_is_accepted(make_cohort: Callable[..., Cohort]) -> None:
    assert settle_plan(make_cohort(), Plan(mpp_override=0.25)).mpp_override == 0.25


def test_an_override_that_finished_slides_needed_is_refused(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(Plan(mpp_override=0.25), mpp_source="override")
    with pytest.raises(PlanChangedError, match=r"mpp_override 0\.25 → 0\.5"):
        settle_plan(cohort, Plan(mpp_override=0.5))


def test_failed_slides_do_not_refuse_a_change(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(status="failed", error_code="too-coarse")
    assert settle_plan(cohort, Plan(mpp=1.0)).mpp == 1.0


def test_a_replan_that_was_interrupted_goes_on_without_the_option(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(Plan(mpp=1.0))
    write_row(cohort, slide_row(Plan(), "old"))  # not done again yet
    assert settle_plan(cohort, Plan(mpp=1.0)) == settle_plan(cohort, Plan()) == Plan(mpp=1.0)


def test_a_folder_without_a_cohort_takes_any_plan(tmp_path: Path) -> None:
    assert settle_plan(Cohort(tmp_path / "new"), Plan(mpp=1.0)) == Plan(mpp=1.0)
    assert not (tmp_path / "new").exists()


def test_encoders_are_added_to_those_of_the_cohort(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort()
    assert settle_plan(cohort, Plan(encoders=("uni",))).encoders == ("stain", "uni")
    cohort.create(Plan(encoders=("stain", "uni")))
    assert settle_plan(cohort, Plan(encoders=("stain",))).encoders == ("stain", "uni")
    assert settle_plan(cohort, Plan(encoders=("uni", "stain"))).encoders == ("stain", "uni")
    assert settle_plan(cohort, Plan()).encoders == ("stain", "uni")


@pytest.mark.parametrize("how", ["replan", "exact"])
def test_an_exact_plan_can_leave_an_encoder_out(make_cohort: Callable[..., Cohort], how: str) -> None:
    cohort = make_cohort(Plan(encoders=("stain", "uni")))
    assert settle_plan(cohort, Plan(encoders=("stain",)), **{how: True}).encoders == ("stain",)
    assert settle_plan(cohort, Plan(), **{how: True}).encoders == ("stain", "uni")


def test_before_the_first_slide_the_encoders_are_the_given_ones(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(Plan(encoders=("uni",)), slides=0)  # whose weights were not found
    assert settle_plan(cohort, Plan(encoders=("stain",))).encoders == ("stain",)


def test_a_bundle_on_finished_slides_points_to_score(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort()
    with pytest.raises(PlanChangedError, match=r"bundle none → b1.*her2batch score .* --bundle DIR"):
        settle_plan(cohort, Plan(bundle="b1"))


def test_a_bundle_that_has_scored_the_slides_is_accepted(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(tables=("embeddings/stain", "predictions/b1"))
    assert settle_plan(cohort, Plan(bundle="b1")).bundle == "b1"


def test_a_slide_that_failed_with_a_bundle_is_current_with_it() -> None:
    plan = Plan(bundle="b1")
    match = match_plan(plan, slide_row(plan, tables=(), status="failed"))
    assert match is not None
    assert match.is_current


def test_leaving_the_bundle_out_replaces_nothing(make_cohort: Callable[..., Cohort]) -> None:
    plan = Plan(bundle="b1")
    cohort = make_cohort(plan, tables=("embeddings/stain", "predictions/b1"))
    assert settle_plan(cohort, Plan()).bundle is None
    match = match_plan(Plan(), cohort.rows()["S0"])
    assert match is not None
    assert match.is_current


@pytest.mark.parametrize("encoders", [
    ("stain",), ("uni",), ("stain", "uni"), ("uni", "stain"), ("timm:resnet18", "stain"), ("stain", "a", "b", "c"),
    ("stain", "a", "b", "c", "d", "e", "f"),
])  # fmt: skip
def test_a_row_fits_whatever_encoders_it_has(encoders: tuple[str, ...]) -> None:
    tables = tuple(f"embeddings/{name.replace(':', '-')}" for name in sorted(encoders))
    row = slide_row(Plan(encoders=encoders), tables=tables)
    match = match_plan(Plan(encoders=encoders), row)
    assert match is not None
    assert (match.encoders, match.missing, match.is_current) == (encoders, (), True)
    if len(encoders) <= plan_change.MAX_PERMUTED:
        fewer = match_plan(Plan(), row)
        assert fewer is not None
        assert fewer.missing == (() if "stain" in encoders else ("stain",))
    assert match_plan(Plan(mpp=1.0), row) is None


def test_a_row_with_added_encoders_has_the_id_of_the_whole_plan() -> None:
    plan = Plan(encoders=("stain", "a", "b"))
    row = slide_row(Plan())
    match = match_plan(plan, row)
    assert match is not None
    assert match.missing == ("a", "b")
    assert plan_id_of(plan, row, match) == plan.id


def test_imported_embeddings_and_scores_do_not_make_a_slide_another_plan() -> None:
    row = slide_row(Plan(), tables=("embeddings/stain", "embeddings/conch", "predictions/b1", "predictions/membrane"))
    match = match_plan(Plan(), row)
    assert match is not None
    assert match.is_current
    assert match.encoders == ("stain",)


def test_a_row_of_another_version_of_the_algorithms_is_found_and_not_current(monkeypatch: pytest.MonkeyPatch) -> None:
    row = slide_row(Plan())
    newer = settings.ALGORITHMS + 1
    monkeypatch.setattr(settings, "ALGORITHMS", newer)
    plan_change._find_plan.cache_clear()
    match = match_plan(Plan(encoders=("stain", "a")), row)
    plan_change._find_plan.cache_clear()
    assert match is not None
    assert not match.is_current
    grown = Plan(encoders=("stain", "a"))
    assert plan_id_of(grown, row, match) == grown.id_of_version(newer - 1)


@pytest.mark.parametrize(("setting", "value", "words"), [
    ("mpp", 1.0, "--mpp 1.0"), ("lossless", True, "--lossless"), ("lossless", False, ""), ("mpp_override", None, ""),
    ("encoders", ("stain", "uni"), "--encoder stain --encoder uni"), ("reader", "tiff", "--reader tiff"),
    ("include_regions", ("Tumor core",), "--include-region 'Tumor core'"),
])  # fmt: skip
def test_a_setting_as_the_command_line_has_it(setting: str, value: object, words: str) -> None:
    assert option_with_value(setting, value) == words


def test_names_do_not_reach_a_pseudonymized_cohort_and_the_reverse(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(path=None)
    check_pseudonyms(cohort, has_key=True)
    with pytest.raises(InputError, match="has pseudonyms; give --pseudonymize KEYFILE"):
        check_pseudonyms(cohort, has_key=False)
    cohort = make_cohort(path="/scans/S1.svs")
    check_pseudonyms(cohort, has_key=False)
    with pytest.raises(InputError, match="has no pseudonyms; omit --pseudonymize"):
        check_pseudonyms(cohort, has_key=True)
    check_pseudonyms(Cohort(cohort.root / "new"), has_key=True)


def test_a_precision_is_part_of_a_plan_with_networks_only(make_cohort: Callable[..., Cohort]) -> None:
    assert Plan(precision="bfloat16").id == Plan().id  # no network
    deep = Plan(encoders=("stain", "efficientnet-lite0"))
    halved = deep.model_copy(update={"precision": "bfloat16"})
    assert halved.id not in (deep.id, Plan().id)
    cohort = make_cohort()
    added = settle_plan(cohort, Plan(encoders=("efficientnet-lite0",), precision="bfloat16"))
    assert (added.encoders, added.precision) == (deep.encoders, "bfloat16")  # nothing finished is computed again
    match = match_plan(added, slide_row(Plan()))
    assert match is not None
    assert plan_id_of(added, slide_row(Plan()), match) == halved.id


def test_compiled_networks_and_others_in_one_cohort_are_refused(make_cohort: Callable[..., Cohort]) -> None:
    assert Plan(compile=True).id == Plan().id  # no network
    cohort = make_cohort(Plan(encoders=("efficientnet-lite0",), compile=True))
    assert settle_plan(cohort, Plan()).compile
    with pytest.raises(PlanChangedError, match="compile True → False"):
        settle_plan(cohort, Plan(compile=False))


def test_two_precisions_in_one_cohort_are_refused(make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort(Plan(encoders=("efficientnet-lite0",), precision="bfloat16"))
    assert settle_plan(cohort, Plan()).precision == "bfloat16"
    with pytest.raises(PlanChangedError, match="precision bfloat16 → float32"):
        settle_plan(cohort, Plan(precision="float32"))
