"""Figures: each a function from one table to SVG text, all in one look; SVG, PNG and CSV files of them on request.

Classes run from a blue grey over tan to dark brown, as haematoxylin and DAB do: their lightness alone tells them apart,
whatever eyes see of their hue. Colours are CSS variables, so a page decides between light and dark.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import resvg_py

from her2batch.store.pseudonyms import escape_formula

PALETTE: Final[dict[str, tuple[str, str]]] = {
    "page": ("#ffffff", "#16181c"),
    "panel": ("#f5f6f7", "#1e2127"),
    "ink": ("#1f2328", "#e7e9ec"),
    "soft": ("#58606b", "#a7aeb9"),
    "line": ("#dcdfe4", "#383d46"),
    "accent": ("#0b5c7a", "#7cc6e2"),
    "bar": ("#6d8299", "#8ea3ba"),
    "bad": ("#a3151f", "#ff9a9f"),
    "good": ("#17642f", "#8fdda7"),
    "c0": ("#8fa8bd", "#8aa5bd"),
    "c1": ("#e6c79c", "#efd9b6"),
    "c2": ("#c47f3c", "#dc9450"),
    "c3": ("#6a3411", "#b2571f"),
}
"""Name of a CSS variable → its colour in light, in dark. Text on its ground has a contrast of 4.5 or more in both."""

CLASS_COLOURS: Final = {
    "0": "c0", "1+": "c1", "2+": "c2", "3+": "c3", "low": "c1", "high": "c3", "negative": "c0", "positive": "c3",
}  # fmt: skip
"""Class → its colour."""

FIGURE_WIDTH: Final = 340
"""px: what fits a telephone at full size, so that words stay legible."""

LABEL_WIDTH: Final = 130
"""px for the names of bars."""

FONT_SIZE: Final = 12
"""px of words."""


@dataclass(frozen=True)
class Figure:
    """A figure and the table it is drawn from. name: of its files.  note: where the numbers come from."""

    name: str
    title: str
    note: str
    svg: str
    table: pa.Table

    @property
    def data(self) -> str:
        """The table as a data: address of a CSV file."""
        return f"data:text/csv;base64,{base64.b64encode(table_to_csv(self.table).encode()).decode()}"


def table_to_csv(table: pa.Table) -> str:
    """A flat table as CSV; no cell is one that a spreadsheet would run."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(table.column_names)
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        writer.writerow([escape_formula(one) if isinstance(one, str) else one for one in row])
    return out.getvalue()


@dataclass
class SvgCanvas:
    """An SVG in the making. Colours are names of LOOK."""

    height: float
    width: float = FIGURE_WIDTH
    parts: list[str] = field(default_factory=list)

    def rect(self, box: Sequence[float], fill: str, opacity: float = 1.0, tip: str = "") -> None:
        """x, y, width, height."""
        x, y, width, height = box
        shade = f' fill-opacity="{opacity:.3g}"' if opacity < 1 else ""
        told = f"<title>{escape(tip)}</title>" if tip else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="var(--{fill})"{shade}>'
            f"{told}</rect>"
        )

    def line(self, points: Iterable[tuple[float, float]], colour: str, width: float = 1.0, dash: str = "") -> None:
        """Through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="var(--{colour})" stroke-width="{width}"{dashed}/>'
        )

    def area(self, points: Iterable[tuple[float, float]], colour: str) -> None:
        """A pale polygon."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{path}" fill="var(--{colour})" fill-opacity="0.22"/>')

    def dot(self, place: tuple[float, float], colour: str) -> None:
        """A point."""
        x, y = place
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="var(--{colour})"/>')

    def text(self, x: float, y: float, words: object, anchor: str = "start", colour: str = "ink") -> None:
        """Words with their baseline at y."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="var(--{colour})" '
            f'font-size="{FONT_SIZE}">{escape(str(words))}</text>'
        )

    def svg(self, title: str, words: str) -> str:
        """The whole, with what it shows in words."""
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}" '
            f'role="img" aria-label="{escape(f"{title}. {words}")}"><desc>{escape(words)}</desc>'
            f"{''.join(self.parts)}</svg>"
        )


# -- the figures -------------------------------------------------------------------------------------------------


def plot_shares(title: str, table: pa.Table) -> str:
    """Stacked bars. Columns: group, class, n (whole numbers are counts, which are told too); in their order."""
    rows = table.to_pylist()
    groups, classes = (
        list(dict.fromkeys(one["group"] for one in rows)),
        list(dict.fromkeys(one["class"] for one in rows)),
    )
    of = {(one["group"], one["class"]): float(one["n"]) for one in rows}
    counts = pa.types.is_integer(table["n"].type)
    left, full = LABEL_WIDTH, FIGURE_WIDTH - LABEL_WIDTH - 38
    canvas = SvgCanvas(26 + 24 * len(groups))
    _legend(canvas, classes)
    told = []
    for k, group in enumerate(groups):
        y, x = 24 + 24 * k, float(left)
        total = sum(of.get((group, one), 0) for one in classes) or 1.0
        canvas.text(left - 8, y + 13, _truncate(group, 19), "end")
        for one in classes:
            n = of.get((group, one), 0)
            canvas.rect((x, y, full * n / total, 17), CLASS_COLOURS.get(one, "bar"), tip=f"{group}, {one}: {n:g}")
            x += full * n / total
        if counts:
            canvas.text(left + full + 6, y + 13, f"{total:g}", colour="soft")
        said = ", ".join(f"{one} {of.get((group, one), 0) / total:.0%}" for one in classes)
        told.append(f"{group}: {said}")
    return canvas.svg(title, "; ".join(told))


def plot_bars(title: str, table: pa.Table, unit: str = "") -> str:
    """Horizontal bars. Columns: name, value."""
    rows = table.to_pylist()
    top = max((one["value"] for one in rows), default=0) or 1
    left, full = 158, FIGURE_WIDTH - 158 - 60
    canvas = SvgCanvas(max(1, 22 * len(rows)) + 2)
    for k, one in enumerate(rows):
        y = 22 * k
        canvas.text(left - 8, y + 14, _truncate(one["name"], 24), "end")
        canvas.rect((left, y + 2, full * one["value"] / top, 15), "bar", tip=f"{one['name']}: {one['value']:g}")
        canvas.text(left + full * one["value"] / top + 6, y + 14, f"{one['value']:.3g}{unit}", colour="soft")
    return canvas.svg(title, "; ".join(f"{one['name']}: {one['value']:.3g}{unit}" for one in rows))


def plot_confusion(title: str, table: pa.Table) -> str:
    """Counts with rows for the truth, shaded by their share of the row. Columns: truth, predicted, n."""
    rows = table.to_pylist()
    classes = list(dict.fromkeys(one["truth"] for one in rows))
    of = {(one["truth"], one["predicted"]): one["n"] for one in rows}
    left, top, edge = 84, 44, min(56, (FIGURE_WIDTH - 92) // len(classes))
    canvas = SvgCanvas(top + edge * len(classes) + 6)
    canvas.text(left, 14, "predicted", colour="soft")
    canvas.text(left - 8, top - 8, "label", "end", "soft")
    for k, truth in enumerate(classes):
        total = sum(of.get((truth, one), 0) for one in classes) or 1
        canvas.text(left - 8, top + edge * (k + 0.5) + 4, truth, "end")
        canvas.text(left + edge * (k + 0.5), top - 8, truth, "middle")
        for j, said in enumerate(classes):
            n = of.get((truth, said), 0)
            box = (left + edge * j + 1, top + edge * k + 1, edge - 2, edge - 2)
            canvas.rect(box, "panel")
            canvas.rect(box, "accent", 0.38 * n / total, f"label {truth}, predicted {said}: {n}")
            canvas.text(left + edge * (j + 0.5), top + edge * (k + 0.5) + 4, n, "middle")
    said = "; ".join(
        f"of label {one} " + ", ".join(f"{of.get((one, other), 0)} called {other}" for other in classes)
        for one in classes
    )
    return canvas.svg(title, said)


def plot_roc(title: str, table: pa.Table) -> str:
    """One curve a class, each with its band. Columns: class, fpr, tpr, low, high, auc."""
    canvas, place = _unit_axes(240, "1 − specificity", "sensitivity")
    canvas.line((place(0, 0), place(1, 1)), "line", dash="3 4")
    told = []
    for k, (name, rows) in enumerate(_group_rows(table, "class").items()):
        hue = CLASS_COLOURS.get(name, "bar")
        band = [place(one["fpr"], one["low"]) for one in rows]
        canvas.area([*band, *(place(one["fpr"], one["high"]) for one in reversed(rows))], hue)
        canvas.line([place(0, 0), *(place(one["fpr"], one["tpr"]) for one in rows)], hue, 2.2)
        canvas.rect((252, 24 + 20 * k, 11, 11), hue)
        canvas.text(268, 34 + 20 * k, f"{name}  {rows[0]['auc']:.3f}")
        told.append(f"{name}: AUC {rows[0]['auc']:.3f}")
    canvas.text(252, 14, "AUC", colour="soft")
    return canvas.svg(title, "; ".join(told))


def plot_calibration(title: str, table: pa.Table) -> str:
    """How often a class that gets a probability is the true one. Columns: p, share, low, high, n."""
    canvas, place = _unit_axes(240, "probability given", "share right")
    canvas.line((place(0, 0), place(1, 1)), "line", dash="3 4")
    rows = table.to_pylist()
    for one in rows:
        canvas.line((place(one["p"], one["low"]), place(one["p"], one["high"])), "accent", 1.5)
    canvas.line([place(one["p"], one["share"]) for one in rows], "accent", 1.2)
    for one in rows:
        canvas.dot(place(one["p"], one["share"]), "accent")
    return canvas.svg(title, "; ".join(f"given {one['p']:.2f}: right {one['share']:.2f} of {one['n']}" for one in rows))


def plot_intervals(title: str, table: pa.Table) -> str:
    """Values with their intervals, −1 or 0 to 1. Columns: name, value, low, high, n."""
    rows = [one for one in table.to_pylist() if one["value"] is not None]
    least = float(min([0.0, *(one["low"] if one["low"] is not None else one["value"] for one in rows)]))
    left, full = LABEL_WIDTH, FIGURE_WIDTH - LABEL_WIDTH - 48
    canvas = SvgCanvas(24 * len(rows) + 22)
    bottom = 24 * len(rows)

    def x(value: float) -> float:
        return left + full * (value - least) / (1 - least)

    for tick in (0.0, 0.5, 1.0):
        canvas.line(((x(tick), 0), (x(tick), bottom)), "line")
        canvas.text(x(tick), bottom + 16, f"{tick:g}", "middle", "soft")
    for k, one in enumerate(rows):
        y = 24 * k + 12
        canvas.text(left - 8, y + 4, _truncate(one["name"], 19), "end")
        if one["low"] is not None:
            canvas.line(((x(one["low"]), y), (x(one["high"]), y)), "accent", 2)
        canvas.dot((x(one["value"]), y), "accent")
        canvas.text(FIGURE_WIDTH - 2, y + 4, f"n {one['n']}", "end", "soft")
    return canvas.svg(title, "; ".join(f"{one['name']}: {one['value']:.2f} of {one['n']}" for one in rows))


def _unit_axes(edge: int, across: str, up: str) -> tuple[SvgCanvas, Any]:
    """A unit square with its axes; and the function from values to px."""
    left, top, size = 34, 18, edge - 40
    canvas = SvgCanvas(edge + 14)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + size * x, top + size * (1 - y)

    for tick in (0.0, 0.5, 1.0):
        canvas.line((place(tick, 0), place(tick, 1)), "line")
        canvas.line((place(0, tick), place(1, tick)), "line")
        canvas.text(left - 6, place(0, tick)[1] + 4, f"{tick:g}", "end", "soft")
        canvas.text(place(tick, 0)[0], top + size + 16, f"{tick:g}", "middle", "soft")
    canvas.text(left, 11, up, colour="soft")
    canvas.text(left + size / 2, top + size + 32, across, "middle", "soft")
    return canvas, place


def _legend(canvas: SvgCanvas, names: Sequence[str]) -> None:
    x = float(LABEL_WIDTH)
    for name in names:
        canvas.rect((x, 3, 11, 11), CLASS_COLOURS.get(name, "bar"))
        canvas.text(x + 15, 13, name)
        x += 24 + 7.2 * len(name)


def _group_rows(table: pa.Table, column: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in table.to_pylist():
        found.setdefault(one[column], []).append(one)
    return found


def _truncate(words: object, most: int) -> str:
    text = str(words)
    return text if len(text) <= most else text[: most - 1] + "…"


# -- files -------------------------------------------------------------------------------------------------------


def standalone_svg(svg: str) -> str:
    """A figure as a file of its own, in light."""
    plain = re.sub(r"var\(--([a-z0-9]+)\)", lambda found: PALETTE[found[1]][0], svg)
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" '
    ground = f'<rect width="100%" height="100%" fill="{PALETTE["page"][0]}"/><desc>'
    return plain.replace("<svg ", head, 1).replace("<desc>", ground, 1)


def svg_to_png(svg: str, scale: float = 2.0) -> bytes:
    """A figure as PNG, in light. Words need a font of the system."""
    return bytes(resvg_py.svg_to_bytes(svg_string=standalone_svg(svg), zoom=scale))


def save_figures(figures: Iterable[Figure], folder: Path) -> None:
    """Each figure as SVG and PNG, and the table it is drawn from as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in figures:
        (folder / f"{one.name}.svg").write_text(standalone_svg(one.svg), encoding="utf-8")
        (folder / f"{one.name}.png").write_bytes(svg_to_png(one.svg))
        (folder / f"{one.name}.csv").write_text(table_to_csv(one.table), encoding="utf-8", newline="")
