"""Text tables that fit the terminal: columns are moved to a second line, dropped or shortened; no word is broken."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

GAP = 2
"""Spaces between two columns."""

SHORTEST = 12
"""A shortened cell keeps at least this many characters."""

INDENT = "    "
"""Start of a row's second line."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    drop: 0 keeps the column at every width; otherwise the column with the highest number is dropped first.
    right: right-aligned, for numbers.  shorten: cells may lose their middle, for identifiers.
    second_line: the cell moves to a line of its own where its row is too wide, wrapped between words.
    """

    name: str
    drop: int = 0
    right: bool = False
    shorten: bool = False
    second_line: bool = False


def layout(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the lines of a table, the header first.

    Where `width` characters are too few, cells marked `second_line` move below their row, then droppable columns are
    dropped, then cells marked `shorten` are shortened. The last line names what was dropped.
    """
    kept = list(range(len(columns)))
    below: list[int] = []
    dropped: list[int] = []
    if _width(columns, rows, kept) > width:
        below = [k for k in kept if columns[k].second_line]
        kept = [k for k in kept if k not in below]
    for k in sorted((k for k in kept if columns[k].drop), key=lambda k: -columns[k].drop):
        if _width(columns, rows, kept) <= width:
            break
        kept.remove(k)
        dropped.append(k)
    limits = _limits(columns, rows, kept, width)
    start = sum(limits.values()) + GAP * len(kept)
    header = _line([columns[k].name for k in kept], columns, kept, limits)
    lines = _with_rest(header, [columns[k].name for k in below[:1]], start, width)
    for row in rows:
        line = _line([row[k] for k in kept], columns, kept, limits)
        lines += _with_rest(line, [row[k] for k in below if row[k]], start, width)
    if dropped:
        names = ", ".join(columns[k].name for k in sorted(dropped))
        lines.append(f"(not shown at this width: {names}; --json has every column)")
    return lines


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Wrap text between words; a word that is longer than a line, such as a path, stays whole."""
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def shorten(text: str, limit: int) -> str:
    """Return `text` with its middle replaced by an ellipsis where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return text[: limit - 1 - tail] + "…" + text[len(text) - tail :]


def _natural(columns: Sequence[Column], rows: Sequence[Sequence[str]], k: int) -> int:
    return max([len(columns[k].name), *(len(row[k]) for row in rows)])


def _width(columns: Sequence[Column], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    return sum(_natural(columns, rows, k) for k in kept) + GAP * max(len(kept) - 1, 0)


def _limits(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], kept: Sequence[int], width: int
) -> dict[int, int]:
    """Width of every kept column; the widest cells that may be shortened give way first."""
    limits = {k: _natural(columns, rows, k) for k in kept}
    excess = _width(columns, rows, kept) - width
    while excess > 0:
        widest = max((k for k in kept if columns[k].shorten), key=lambda k: limits[k], default=None)
        if widest is None or limits[widest] <= SHORTEST:
            break
        limits[widest] -= 1
        excess -= 1
    return limits


def _with_rest(line: str, rest: Sequence[str], start: int, width: int) -> list[str]:
    """A row's line, then the cells that have no column: the first one on the same line where it fits."""
    lines = [line]
    for k, text in enumerate(rest):
        if k == 0 and start + len(text) <= width:
            lines[0] = line.ljust(start) + text
        else:
            lines += wrap(text, width, INDENT)
    return lines


def _line(cells: Sequence[str], columns: Sequence[Column], kept: Sequence[int], limits: dict[int, int]) -> str:
    placed = []
    for k, cell in zip(kept, cells, strict=True):
        text = shorten(cell, limits[k]) if columns[k].shorten else cell
        placed.append(text.rjust(limits[k]) if columns[k].right else text.ljust(limits[k]))
    return (" " * GAP).join(placed).rstrip()
