"""Tests of the reproduction on a small cohort: each row has a status and, without data, a reason; the bundle."""

import json
from collections import Counter
from pathlib import Path

import pytest

from her2batch.cli import demo
from her2batch.cli.app import _run, app
from her2batch.errors import InputError
from her2batch.experiments.reproduce import estimate_reproduction, reproduce
from her2batch.experiments.train import TrainingRequest
from her2batch.models.bundle import read_bundle
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources, Training, TrainingResources
from her2batch.synthetic.cohort import make_cohort
from her2batch.synthetic.paper.paper_cohort import make_paper_cohort
from tests.conftest import Synthetic

SMALL = Training(folds=3, quick=True, options=("epochs=1", "search=false"), patches_per_slide=3)


@pytest.mark.slow
def test_every_row_of_the_paper_has_a_status(synthetic: Synthetic, tmp_path: Path) -> None:
    """Without annotations there is data for the tables of thumbnails and MIL, not for patches and receptors."""
    request = TrainingRequest(synthetic.cohort, tmp_path / "run")
    result = reproduce(request, SMALL, TrainingResources(workers=0))
    assert result.exit_code == 0, result.trained.failed
    rows = result.tables.to_pylist()
    assert Counter((row["table"], row["status"]) for row in rows) == {
        ("table4", "reproduced"): 12, ("table5", "no data"): 3, ("table6", "no data"): 10, ("tableS1", "reproduced"): 9,
        ("tableS2", "no data"): 10, ("tableS3", "no data"): 10, ("figure5", "no data"): 4,
        ("ours", "reproduced"): 3, ("ours", "no data"): 2,
    }  # fmt: skip
    assert all((row["why"] is None) == (row["status"] == "reproduced") for row in rows)
    assert all(row["accuracy_mean"] is not None for row in rows if row["status"] == "reproduced")
    winner = next(row for row in rows if (row["task"], row["method"]) == ("her2-3way", "convnext-small"))
    assert winner["paper_accuracy"] == 83.56
    assert {one.task for one in read_bundle(tmp_path / "run" / "bundle").info.models} >= {"her2-3way", "her2-binary"}
    again = reproduce(request, SMALL, TrainingResources(workers=0), lambda *_: pytest.fail("nothing was left to do"))
    assert again.tables.equals(result.tables)


def test_a_dry_run_estimates_every_unit_and_writes_nothing(synthetic: Synthetic, tmp_path: Path) -> None:
    request = TrainingRequest(synthetic.cohort, tmp_path / "run", annotations=synthetic.annotations)
    costs = estimate_reproduction(request, Training(folds=3, profile="laptop"))
    assert not request.out.exists()
    assert all(row.seconds > 0 for row in costs)
    units = {(row.method, row.input): row.units for row in costs}
    assert units["clam-sb", "stain"] == units["efficientnet-lite0", "thumbnail-224"] == 9
    assert {row.input for row in costs} >= {"patches-low", "patches-moderate", "patches-high"}
    without = estimate_reproduction(TrainingRequest(synthetic.cohort, request.out), Training(folds=3))
    assert not any(row.input.startswith("patches-") for row in without)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_the_laptop_profile_trains_every_row_on_a_small_cohort_of_the_papers_shares(tmp_path: Path) -> None:
    made, cohort, run = tmp_path / "made", tmp_path / "cohort", tmp_path / "run"
    make_paper_cohort(made, 24, 5)
    request = IngestRequest(made / "slides", cohort, labels=made / "labels.csv")
    plan = Plan(encoders=("stain", "efficientnet-lite0"), cells="off")
    assert ingest(request, plan, Resources(workers=0)).exit_code == 0
    laptop = Training(folds=3, profile="laptop", options=("epochs=1", "search=false"), patches_per_slide=4)
    request_of_run = TrainingRequest(cohort, run, annotations=made / "annotations")
    result = reproduce(request_of_run, laptop, TrainingResources(workers=0))
    assert result.exit_code == 0, result.trained.failed
    rows = result.tables.to_pylist()
    assert {row["status"] for row in rows} == {"reproduced"}
    assert {row["input"] for row in rows if row["table"] == "tableS1"} == {"efficientnet-lite0"}
    ours = {(row["method"], row["input"]) for row in rows if row["table"] == "ours"}
    assert ours == {
        ("efficientnet-lite0", "thumbnail-224"),
        *((m, "stain") for m in ("clam-sb", "clam-mb", "dtfd-afs")),
    }
    assert all(row["settings"] for row in rows)
    again = reproduce(request_of_run, laptop, TrainingResources(workers=0), lambda *_: pytest.fail("nothing was left"))
    assert again.tables.equals(result.tables)


def test_a_cohort_without_data_for_any_row_is_refused(synthetic: Synthetic, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,patient_id,her2\nP001-1,P001,3+\n")
    with pytest.raises(InputError, match="none of the paper's rows"):
        reproduce(TrainingRequest(synthetic.cohort, tmp_path / "run", labels), SMALL, TrainingResources(workers=0))


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_quick_profile_runs_on_the_cohort_of_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its annotated regions are smaller than patches at low resolution: these rows have no data, the others do."""
    made = make_cohort(tmp_path / "made", 28, demo.SEED, demo.SIZE)
    cohort = tmp_path / "cohort"
    first = ingest(IngestRequest(made / "slides", cohort, labels=made / "labels.csv"), Plan(), Resources(workers=0))
    assert first.exit_code == 0
    command = ["reproduce", str(cohort), "--quick", "--annotations", str(made / "annotations"), "--json"]
    command += ["--out", str(tmp_path / "run"), "--folds", "3", "--option", "epochs=1", "--workers", "0"]
    command += ["--patches-per-slide", "4"]
    assert _run(lambda: app(command)) == 0
    rows = json.loads(capsys.readouterr().out)["tables"]
    by_input = {row["input"]: row["status"] for row in rows if row["task"] == "her2-4way"}
    assert by_input == {
        "thumbnail-224": "reproduced", "stain": "reproduced", "patches-high": "reproduced",
        "patches-low": "no data", "patches-moderate": by_input["patches-moderate"],
    }  # fmt: skip
    assert {row["why"].partition(": ")[2][:17] for row in rows if row["input"] == "patches-low"} == {
        "no patch of class"
    }
