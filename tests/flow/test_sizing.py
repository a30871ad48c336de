"""--dry-run: what would be done, and nothing is."""

from pathlib import Path

from her2batch.flow.ingest import Order, survey
from her2batch.flow.sizing import estimate
from her2batch.settings import Plan, Resources


def test_the_estimate_names_what_will_fail_and_writes_nothing(real_data: Path, tmp_path: Path) -> None:
    plan, census, cohort = survey(Order(real_data / "slides", tmp_path / "c"), Plan())
    rows, total = estimate(census, plan, Resources(workers=2), cohort.root)
    what = {row["slide_id"]: row["what"] for row in rows}
    assert what["boxes"] == "will fail: no-mpp"
    assert what["jpeg"] == "will fail: too-coarse"
    assert what["CMU-1-Small-Region"].startswith("ingest (aperio")
    assert (total["todo"], total["duplicate"]) == (10, 1)
    assert not (tmp_path / "c").exists()


def test_a_dear_encoder_is_said_to_be_dear(real_data: Path, tmp_path: Path) -> None:
    seconds = {}
    for name in ("stain", "uni"):
        plan, census, cohort = survey(Order(real_data / "slides", tmp_path / "c"), Plan(encoders=(name,)))
        seconds[name] = estimate(census, plan, Resources(workers=2), cohort.root)[1]["seconds"]
    assert seconds["uni"] > 3 * seconds["stain"]
