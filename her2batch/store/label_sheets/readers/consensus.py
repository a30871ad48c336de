"""Consensus of several readers of a slide: the median of their classes, which is the majority where there is one.

A class that more than half of the readers give is also the median of the ordered classes. Without such a majority the
median still is the class that divides the readers evenly; of two middle classes it is the lower one: a score is reached
when more than half of the readers reach it. ER, PR and ISH have two values: without a majority there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from her2batch.tasks import HER2_DETAILS, IHC_SCORES

Reading = Mapping[str, Any]
"""The labels of one reader: `reader` and the columns of READ_COLUMNS."""

READ_COLUMNS: Final = ("her2", "her2_detail", "ish", "er", "pr")
"""Columns of a label sheet in which readers may differ."""

SCALES: Final[dict[str, tuple[str, ...]]] = {
    "her2": IHC_SCORES, "her2_detail": HER2_DETAILS, "ish": ("-", "+"), "er": ("-", "+"), "pr": ("-", "+")
}  # fmt: skip
"""Column → its values, lowest first."""


def consensus_labels(readings: Sequence[Reading]) -> dict[str, str | None]:
    """Return the consensus of each of READ_COLUMNS; None where no reader states a value, or two values are tied.

    The sub-score of 0 is that of the readers who state one, and only where the consensus is 0.
    """
    found = {column: _median(column, _values(readings, column)) for column in READ_COLUMNS}
    if found["her2"] != "0":
        found["her2_detail"] = None
    return found


def tied_columns(readings: Sequence[Reading]) -> list[str]:
    """Return the columns in which no value has more than half of the readers who state one."""
    found = consensus_labels(readings)
    tied = []
    for column in READ_COLUMNS:
        values = _values(readings, column)
        relevant = column != "her2_detail" or found["her2"] == "0"
        if relevant and values and max(map(values.count, values)) * 2 <= len(values):
            tied.append(column)
    return tied


def _values(readings: Iterable[Reading], column: str) -> list[str]:
    """Return the values that the readers state in a column, lowest first."""
    given = [str(reading[column]) for reading in readings if reading[column] is not None]
    return sorted(given, key=SCALES[column].index)


def _median(column: str, values: Sequence[str]) -> str | None:
    if not values:
        return None
    lower, upper = values[(len(values) - 1) // 2], values[len(values) // 2]
    return lower if lower == upper or len(SCALES[column]) > 2 or column == "her2_detail" else None
