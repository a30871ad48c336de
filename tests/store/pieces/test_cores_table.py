"""The table of the cores of a cohort's microarrays."""

from pathlib import Path

from her2batch.store.cohort import Cohort
from her2batch.store.pieces.cores_table import read_cores, remove_cores, write_cores


def core(slide_id: str, row: int, case: str) -> dict[str, object]:
    return {"slide_id": slide_id, "row": row, "column": 1, "case": case, "status": "found"}


def test_rows_are_in_order_and_those_of_an_erased_case_or_slide_are_removed(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    assert read_cores(cohort) == []
    remove_cores(cohort, {"A"}, {"P1"})
    assert not list(tmp_path.iterdir())
    write_cores(cohort, [core("B", 2, "P1"), core("B", 1, "P2"), core("A", 1, "P2")])
    assert [(one["slide_id"], one["row"]) for one in read_cores(cohort)] == [("A", 1), ("B", 1), ("B", 2)]
    remove_cores(cohort, {"A"}, {"P1"})
    assert [(one["slide_id"], one["case"]) for one in read_cores(cohort)] == [("B", "P2")]
