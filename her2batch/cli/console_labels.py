"""Terminal output of labels: what was understood of a sheet, and which labels and slides have no counterpart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from her2batch.cli.console import print_line, print_table, stdout_console
from her2batch.cli.tables import Column
from her2batch.store.label_sheets.readers.consensus import READ_COLUMNS

if TYPE_CHECKING:
    from her2batch.store.label_sheets.book import LabelsReport

NAMED: Final = 50
"""Labels and slides that are named on the screen; --json names all."""

SHOWN_ROWS: Final = 20
"""Rows of a sheet that are shown on a terminal."""

COLUMN_COLUMNS = (Column("column"), Column("header", shorten=True), Column("understood", second_line=True))


def print_sheet(overview: Mapping[str, Any]) -> None:
    """Print what was understood of a label sheet, and with a cohort which labels and slides have no counterpart."""
    console = stdout_console()
    rows, level = overview["rows"], overview["level"]
    print_line(console, f"{overview['file']}: {overview['form']}; {len(rows)} {level}s with labels", "bold")
    columns = overview["columns"]
    cells = [[name, header, _understood(overview, name)] for name, header in columns.items()]
    print_table(console, "", COLUMN_COLUMNS, cells)
    if overview["ignored"]:
        print_line(console, f"not used: {', '.join(overview['ignored'])}")
    for note in overview["notes"]:
        print_line(console, note)
    shown = rows if not console.is_terminal else rows[:SHOWN_ROWS]
    names = ["line", *columns, *(["her2_detail"] if "her2_detail" in overview["classes"] else [])]
    names = [name if name != "reader" else "readings" for name in dict.fromkeys(names)]
    table = tuple(Column(name, shorten=name in ("slide_id", "readings"), drop=_drop(name)) for name in names)
    print_table(console, "", table, [[_text(row[name]) for name in names] for row in shown])
    if len(shown) < len(rows):
        print_line(console, f"and {len(rows) - len(shown)} more; --json has all")
    if "met" in overview:
        _print_counterparts(console, overview)


def _drop(name: str) -> int:
    """Return which columns are left out first where the terminal is narrow."""
    order = ("site", "stain", "pr", "er", "patient_id")
    return len(order) - order.index(name) if name in order else 0


def _understood(overview: Mapping[str, Any], name: str) -> str:
    """Return the values of a column with their numbers."""
    if name == "patient_id":
        return f"{overview['patients']} patients"
    if name == "reader":
        found = {reading["reader"].casefold() for row in overview["rows"] for reading in row["readings"] or ()}
        return _counted(len(found), "reader", "readers")
    if name in ("slide_id", "site"):
        return f"{len({row[name] for row in overview['rows']} - {None})} different"
    counts = overview["classes"].get(name, {})
    return ", ".join(f"{value or 'empty'}: {count}" for value, count in counts.items()) or "empty"


def _text(value: Any) -> str:
    """Return a value of a row as text; readings as the labels of each reader."""
    if isinstance(value, list):
        columns = {name: {reading[name] for reading in value} - {None} for name in READ_COLUMNS}
        shown = [name for name, found in columns.items() if found]
        return ", ".join(" ".join([reading["reader"], *(reading[name] or "–" for name in shown)]) for reading in value)
    return "" if value is None else str(value)


def print_labels_report(report: LabelsReport | None) -> None:
    """Print what became of the labels of an ingest, if there were any: every label and slide without a counterpart."""
    if report is None:
        return
    console = stdout_console()
    for note in report.notes:
        print_line(console, f"labels: {note}")
    _print_counterparts(console, vars(report))


def _print_counterparts(console: Console, report: Mapping[str, Any]) -> None:
    unit = report["unit"]
    print_line(console, f"{_counted(report['met'], 'slide has', 'slides have')} a label")
    if report["unmet"]:
        names = [_label_text(entry, unit) for entry in report["unmet"]]
        print_line(console, f"{_counted(len(names), 'label meets', 'labels meet')} no slide: {_listed(names)}")
    for entry in report["ambiguous"][:NAMED]:
        print_line(console, f"the label {_label_text(entry, unit)} could mean {' or '.join(entry['paths'])}: not used")
    if report["unlabelled"]:
        slides = report["unlabelled"]
        print_line(console, f"{_counted(len(slides), 'slide has', 'slides have')} no label: {_listed(slides)}")


def _label_text(entry: Mapping[str, Any], unit: str) -> str:
    """Return a label's name with its line or row; with pseudonyms, the line only."""
    line = f"{unit} {entry['line']}" if entry["line"] is not None else ""
    if entry["slide_id"] is None:
        return line or "without a name"
    return f"{entry['slide_id']} ({line})" if line else str(entry["slide_id"])


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more (--json has all)" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
