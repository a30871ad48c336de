"""The version of the algorithms: part of a plan's id, and raised when a slide gets other values.

`python -m tests.test_algorithms` prints the values of this version for algorithm_values.json.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from her2batch import settings
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import ALGORITHMS, Plan, Resources
from her2batch.store.cohort import Cohort
from tests.conftest import MakeSlide, tissue_image, write_slide

VALUES = Path(__file__).with_name("algorithm_values.json")
PLAIN = Resources(workers=0)
SLIDE_COLUMNS = ("tissue_mm2", "n_tiles", "blur", "pen", "saturated", "background")


def slide_values(slide: Path, cohort: Path) -> dict[str, float]:
    """Ingest one slide; returns figures of each of its tables: of numeric columns the mean."""
    assert ingest(IngestRequest(slide.parent, cohort), Plan(), PLAIN).done == 1
    values: dict[str, float] = {}
    tables = cohort / "tables"
    for name in ("slides", "tiles", "membrane", "embeddings/stain", "predictions/membrane"):
        table = pq.read_table(next((tables / name).glob("*.parquet")))
        for column in table.column_names if name != "slides" else SLIDE_COLUMNS:
            rows = table[column].to_pylist()
            if isinstance(rows[0], list) and isinstance(rows[0][0], float):
                width = max(map(len, rows))
                mean = np.mean([row + [0.0] * (width - len(row)) for row in rows], axis=0)
                values |= {f"{name}.{column}.{k}": float(value) for k, value in enumerate(mean)}
            elif isinstance(rows[0], int | float) and not isinstance(rows[0], bool):
                values[f"{name}.{column}"] = float(np.mean(rows))
    return {key: round(value, 5) for key, value in values.items()}


def write_test_slide(folder: Path) -> Path:
    folder.mkdir()
    return write_slide(folder / "a.tiff", tissue_image(1800, 1500, seed=5, brown=0.35), levels=2)


def test_values_of_a_slide_change_only_with_a_new_version_of_the_algorithms(tmp_path: Path) -> None:
    recorded = json.loads(VALUES.read_text())
    assert str(ALGORITHMS) in recorded, "run `python -m tests.test_algorithms` and add the values of this version"
    values = slide_values(write_test_slide(tmp_path / "scans"), tmp_path / "cohort")
    expected = recorded[str(ALGORITHMS)]
    assert values.keys() == expected.keys()
    changed = {
        key: (expected[key], value)
        for key, value in values.items()
        if value != pytest.approx(expected[key], rel=2e-3, abs=5e-4)
    }
    assert changed == {}, "slides get other values: raise settings.ALGORITHMS, with a line on what changed"


def test_a_plan_of_another_version_of_the_algorithms_has_another_id(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [Plan().id]
    for version in (ALGORITHMS + 1, ALGORITHMS + 2):
        monkeypatch.setattr(settings, "ALGORITHMS", version)
        ids.append(Plan().id)
    assert len(set(ids)) == 3


def test_version_1_keeps_the_ids_of_cohorts_from_before_there_was_a_version() -> None:
    assert ALGORITHMS > 1 or Plan().id == "86ad468c9b35"


def test_slides_of_another_version_are_computed_again(
    make_slide: MakeSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = IngestRequest(make_slide().parent, tmp_path / "cohort")
    assert ingest(request, Plan(), PLAIN).already == 0
    assert ingest(request, Plan(), PLAIN).already == 1
    monkeypatch.setattr(settings, "ALGORITHMS", ALGORITHMS + 1)
    assert ingest(request, Plan(), PLAIN).already == 0
    assert [row["plan_id"] for row in Cohort(request.out).rows().values()] == [Plan().id]
    assert ingest(request, Plan(), PLAIN).already == 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        values = slide_values(write_test_slide(Path(folder) / "scans"), Path(folder) / "cohort")
    sys.stdout.write(json.dumps({ALGORITHMS: values}, indent=1) + "\n")
