"""Tests of the reproduction on a small cohort: each row has a status and, without data, a reason; the bundle."""

from collections import Counter
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.experiments.reproduce import reproduce
from her2batch.experiments.train import TrainingRequest
from her2batch.models.bundle import read_bundle
from her2batch.runtime.ray_session import RaySession
from her2batch.settings import Training, TrainingResources
from tests.conftest import Synthetic

SMALL = Training(folds=3, quick=True, options=("epochs=1", "search=false"), patches_per_slide=3)


@pytest.mark.slow
def test_every_row_of_the_paper_has_a_status(synthetic: Synthetic, tmp_path: Path, ray_session: RaySession) -> None:
    """Without annotations there is data for the tables of thumbnails and MIL, not for patches and receptors."""
    request = TrainingRequest(synthetic.cohort, tmp_path / "run")
    result = reproduce(request, SMALL, TrainingResources(workers=0))
    assert result.exit_code == 0, result.trained.failed
    rows = result.tables.to_pylist()
    assert Counter((row["table"], row["status"]) for row in rows) == {
        ("table4", "reproduced"): 12, ("table5", "no data"): 3, ("table6", "no data"): 10, ("tableS1", "reproduced"): 9,
        ("tableS2", "no data"): 10, ("tableS3", "no data"): 10, ("figure5", "no data"): 4,
    }  # fmt: skip
    assert all((row["why"] is None) == (row["status"] == "reproduced") for row in rows)
    assert all(row["accuracy_mean"] is not None for row in rows if row["status"] == "reproduced")
    winner = next(row for row in rows if (row["task"], row["method"]) == ("her2-3way", "convnext-small"))
    assert winner["paper_accuracy"] == 83.56
    assert {one.task for one in read_bundle(tmp_path / "run" / "bundle").info.models} >= {"her2-3way", "her2-binary"}
    again = reproduce(request, SMALL, TrainingResources(workers=0), lambda *_: pytest.fail("nothing was left to do"))
    assert again.tables.equals(result.tables)


def test_a_cohort_without_data_for_any_row_is_refused(synthetic: Synthetic, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,patient_id,her2\nP001-1,P001,3+\n")
    with pytest.raises(InputError, match="none of the paper's rows"):
        reproduce(TrainingRequest(synthetic.cohort, tmp_path / "run", labels), SMALL, TrainingResources(workers=0))
