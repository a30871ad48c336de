"""Cases of microarrays: the highest class of their cores, and cores without a score."""

from her2batch.reports.controls.tma_section import list_cases


def core(case: str, row: int, predicted: str | None, score: float | None = None) -> dict[str, object]:
    names = {"slide_id": "T", "row": row, "column": 1, "case": case, "predicted": predicted, "score": score}
    return {**names, "status": "found" if predicted else "missing"}


def test_a_case_has_its_highest_class_and_its_cores() -> None:
    table = list_cases(
        [core("P2", 1, "0", 0.0), core("P1", 2, "1+", 1.0), core("P1", 3, "2+", 2.0), core("P1", 4, None)]
    )
    first, second = table.rows
    assert first[:5] == ["P1", "2+", 1.5, 2, 1]
    assert first[5][-1] == "T row 4 column 1: missing"
    assert second[:3] == ["P2", "0", 0.0]
    assert list_cases([core("P", 1, None)]).rows[0][1:3] == [None, None]
