"""Consensus of readers: the majority, otherwise the median; two values without a majority give none."""

import pytest

from her2batch.store.label_sheets.readers.consensus import READ_COLUMNS, consensus_labels, tied_columns


def readings(column: str, values: str) -> list[dict[str, str | None]]:
    return [{**dict.fromkeys(READ_COLUMNS), column: None if value == "." else value} for value in values.split()]


@pytest.mark.parametrize(("column", "values", "consensus", "tied"), [
    ("her2", "0 1+ 1+", "1+", False),
    ("her2", "3+ 0 0", "0", False),
    ("her2", "0 1+", "0", True),
    ("her2", "2+ 3+", "2+", True),
    ("her2", "0 1+ 3+", "1+", True),
    ("her2", "0 0 1+ 2+ 3+", "1+", True),
    ("her2", "0 0 3+ 3+", "0", True),
    ("her2", ". 2+ .", "2+", False),
    ("her2", ". .", None, False),
    ("er", "+ + -", "+", False),
    ("er", "+ -", None, True),
])  # fmt: skip
def test_consensus_of_a_column(column: str, values: str, consensus: str | None, tied: bool) -> None:
    found = readings(column, values)
    assert consensus_labels(found)[column] == consensus
    assert tied_columns(found) == ([column] if tied else [])


def test_sub_scores_are_those_of_the_readers_who_state_one_where_the_consensus_is_0() -> None:
    null, ultralow, low = (
        {**dict.fromkeys(READ_COLUMNS), "her2": score, "her2_detail": detail}
        for score, detail in (("0", "null"), ("0", "ultralow"), ("1+", None))
    )
    assert consensus_labels([null, ultralow, ultralow])["her2_detail"] == "ultralow"
    assert consensus_labels([ultralow, low, low]) == {**dict.fromkeys(READ_COLUMNS), "her2": "1+"}
    assert tied_columns([null, ultralow, low]) == ["her2_detail"]
