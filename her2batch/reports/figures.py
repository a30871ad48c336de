"""Figures of the reports: each function draws one table as SVG. Figures can be saved as SVG, PNG and CSV files.

The classes are coloured from blue grey over tan to dark brown, like haematoxylin and DAB. They can be distinguished by
lightness alone, also by readers with a colour vision deficiency. Colours are CSS variables, so that the page chooses
between light and dark mode.
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
    "cn": ("#c3d0db", "#56697b"),
    "open": ("#b7a3d6", "#8d78b8"),
    "c0": ("#8fa8bd", "#8aa5bd"),
    "c1": ("#e6c79c", "#efd9b6"),
    "c2": ("#c47f3c", "#dc9450"),
    "c3": ("#6a3411", "#b2571f"),
}
"""Name of a CSS variable → its colour in light and in dark mode. Text has a contrast of 4.5 or more in both."""

CLASS_COLOURS: Final = {
    "0": "c0", "null": "cn", "ultralow": "c0", "1+": "c1", "2+": "c2", "3+": "c3",
    "low": "c1", "high": "c3", "negative": "c0", "positive": "c3",
}  # fmt: skip
"""Class → name of its colour in PALETTE."""

BAR_COLOURS: Final = {**CLASS_COLOURS, "ISH decides": "open"}
"""The same with the slides that have no class, in a hue of its own."""

FIGURE_WIDTH: Final = 340
"""Width of a figure, px: it fits a phone screen at full size, so that the text stays legible."""

LABEL_WIDTH: Final = 130
"""Width of the labels left of the bars, px."""

FONT_SIZE: Final = 12
"""Font size, px."""


@dataclass(frozen=True)
class Figure:
    """A figure and the table that it is drawn from.

    name: stem of its files.  source: tables and columns of the cohort that it shows.
    """

    name: str
    title: str
    source: str
    svg: str
    table: pa.Table

    @property
    def csv_uri(self) -> str:
        """The table as a CSV file in a data URI."""
        return f"data:text/csv;base64,{base64.b64encode(table_to_csv(self.table).encode()).decode()}"


def table_to_csv(table: pa.Table) -> str:
    """Return a flat table as CSV. Cells that a spreadsheet would run as formulas are escaped."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(table.column_names)
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        writer.writerow([escape_formula(cell) if isinstance(cell, str) else cell for cell in row])
    return out.getvalue()


@dataclass
class SvgCanvas:
    """An SVG image that is being drawn. Colours are names of PALETTE; coordinates are px."""

    height: float
    width: float = FIGURE_WIDTH
    parts: list[str] = field(default_factory=list)

    def rect(self, box: Sequence[float], fill: str, opacity: float = 1.0, tip: str = "") -> None:
        """Draw a rectangle. box: x, y, width, height.  tip: text of its tooltip."""
        x, y, width, height = box
        shade = f' fill-opacity="{opacity:.3g}"' if opacity < 1 else ""
        tooltip = f"<title>{escape(tip)}</title>" if tip else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="var(--{fill})"{shade}>'
            f"{tooltip}</rect>"
        )

    def line(self, points: Iterable[tuple[float, float]], colour: str, width: float = 1.0, dash: str = "") -> None:
        """Draw a line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="var(--{colour})" stroke-width="{width}"{dashed}/>'
        )

    def area(self, points: Iterable[tuple[float, float]], colour: str) -> None:
        """Draw a translucent polygon."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon points="{path}" fill="var(--{colour})" fill-opacity="0.22"/>')

    def dot(self, centre: tuple[float, float], colour: str) -> None:
        """Draw a dot."""
        x, y = centre
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="var(--{colour})"/>')

    def text(self, x: float, y: float, text: object, anchor: str = "start", colour: str = "ink") -> None:
        """Draw text with its baseline at y."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="var(--{colour})" '
            f'font-size="{FONT_SIZE}">{escape(str(text))}</text>'
        )

    def svg(self, title: str, description: str) -> str:
        """Return the SVG with its content described in words, for screen readers."""
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}" '
            f'role="img" aria-label="{escape(f"{title}. {description}")}"><desc>{escape(description)}</desc>'
            f"{''.join(self.parts)}</svg>"
        )


# -- the figures -------------------------------------------------------------------------------------------------


def plot_shares(title: str, table: pa.Table) -> str:
    """Draw stacked bars. Columns: group, class, n; integers are counts, and their sums are printed."""
    rows = table.to_pylist()
    groups, classes = (list(dict.fromkeys(row[name] for row in rows)) for name in ("group", "class"))
    values = {(row["group"], row["class"]): float(row["n"]) for row in rows}
    are_counts = pa.types.is_integer(table["n"].type)
    left, full = LABEL_WIDTH, FIGURE_WIDTH - LABEL_WIDTH - 38
    top = _legend_height(classes)
    canvas = SvgCanvas(top + 2 + 24 * len(groups))
    _legend(canvas, classes)
    descriptions = []
    for k, group in enumerate(groups):
        y, x = top + 24 * k, float(left)
        total = sum(values.get((group, name), 0) for name in classes) or 1.0
        canvas.text(left - 8, y + 13, _truncate(group, 19), "end")
        for name in classes:
            n = values.get((group, name), 0)
            canvas.rect((x, y, full * n / total, 17), BAR_COLOURS.get(name, "bar"), tip=f"{group}, {name}: {n:g}")
            x += full * n / total
        if are_counts:
            canvas.text(left + full + 6, y + 13, f"{total:g}", colour="soft")
        text = ", ".join(f"{name} {values.get((group, name), 0) / total:.0%}" for name in classes)
        descriptions.append(f"{group}: {text}")
    return canvas.svg(title, "; ".join(descriptions))


def plot_bars(title: str, table: pa.Table, unit: str = "") -> str:
    """Draw horizontal bars. Columns: name, value."""
    rows = table.to_pylist()
    top = max((row["value"] for row in rows), default=0) or 1
    left, full = 158, FIGURE_WIDTH - 158 - 60
    canvas = SvgCanvas(max(1, 22 * len(rows)) + 2)
    for k, row in enumerate(rows):
        y = 22 * k
        canvas.text(left - 8, y + 14, _truncate(row["name"], 24), "end")
        canvas.rect((left, y + 2, full * row["value"] / top, 15), "bar", tip=f"{row['name']}: {row['value']:g}")
        canvas.text(left + full * row["value"] / top + 6, y + 14, _short_number(row["value"]) + unit, colour="soft")
    return canvas.svg(title, "; ".join(f"{row['name']}: {_short_number(row['value'])}{unit}" for row in rows))


def _short_number(value: float) -> str:
    """Return a number with three digits, without an exponent."""
    return "< 0.001" if 0 < value < 0.001 else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def plot_confusion(title: str, table: pa.Table) -> str:
    """Draw a confusion matrix, rows by truth, shaded by the share of the row. Columns: truth, predicted, n."""
    rows = table.to_pylist()
    classes = list(dict.fromkeys(row["truth"] for row in rows))
    counts = {(row["truth"], row["predicted"]): row["n"] for row in rows}
    left, top, edge = 84, 44, min(56, (FIGURE_WIDTH - 92) // len(classes))
    canvas = SvgCanvas(top + edge * len(classes) + 6)
    canvas.text(left, 14, "predicted", colour="soft")
    canvas.text(left - 8, top - 8, "label", "end", "soft")
    for k, truth in enumerate(classes):
        total = sum(counts.get((truth, name), 0) for name in classes) or 1
        canvas.text(left - 8, top + edge * (k + 0.5) + 4, truth, "end")
        canvas.text(left + edge * (k + 0.5), top - 8, truth, "middle")
        for j, predicted in enumerate(classes):
            n = counts.get((truth, predicted), 0)
            box = (left + edge * j + 1, top + edge * k + 1, edge - 2, edge - 2)
            canvas.rect(box, "panel")
            canvas.rect(box, "accent", 0.38 * n / total, f"label {truth}, predicted {predicted}: {n}")
            canvas.text(left + edge * (j + 0.5), top + edge * (k + 0.5) + 4, n, "middle")
    description = "; ".join(
        f"of label {truth} " + ", ".join(f"{counts.get((truth, name), 0)} predicted {name}" for name in classes)
        for truth in classes
    )
    return canvas.svg(title, description)


def plot_roc(title: str, table: pa.Table) -> str:
    """Draw the ROC curve of each class with its band. Columns: class, fpr, tpr, low, high, auc."""
    canvas, to_px = unit_axes(240, "1 − specificity", "sensitivity")
    canvas.line((to_px(0, 0), to_px(1, 1)), "line", dash="3 4")
    descriptions = []
    for k, (name, rows) in enumerate(_group_rows(table, "class").items()):
        colour = CLASS_COLOURS.get(name, "bar")
        band = [to_px(row["fpr"], row["low"]) for row in rows]
        canvas.area([*band, *(to_px(row["fpr"], row["high"]) for row in reversed(rows))], colour)
        canvas.line([to_px(0, 0), *(to_px(row["fpr"], row["tpr"]) for row in rows)], colour, 2.2)
        canvas.rect((252, 24 + 20 * k, 11, 11), colour)
        canvas.text(268, 34 + 20 * k, f"{name}  {rows[0]['auc']:.3f}")
        descriptions.append(f"{name}: AUC {rows[0]['auc']:.3f}")
    canvas.text(252, 14, "AUC", colour="soft")
    return canvas.svg(title, "; ".join(descriptions))


def plot_calibration(title: str, table: pa.Table) -> str:
    """Draw how often the predicted class is correct, by its probability. Columns: p, share, low, high, n."""
    canvas, to_px = unit_axes(240, "predicted probability", "share correct")
    canvas.line((to_px(0, 0), to_px(1, 1)), "line", dash="3 4")
    rows = table.to_pylist()
    for row in rows:
        canvas.line((to_px(row["p"], row["low"]), to_px(row["p"], row["high"])), "accent", 1.5)
    canvas.line([to_px(row["p"], row["share"]) for row in rows], "accent", 1.2)
    for row in rows:
        canvas.dot(to_px(row["p"], row["share"]), "accent")
    return canvas.svg(title, "; ".join(f"p {row['p']:.2f}: correct {row['share']:.2f} of {row['n']}" for row in rows))


def plot_intervals(title: str, table: pa.Table) -> str:
    """Draw values with their intervals on an axis that ends at 1. Columns: name, value, low, high, n.

    A value without an interval is not drawn: a dot alone looks certain.
    """
    rows = [row for row in table.to_pylist() if row["value"] is not None]
    axis_start = float(min([0.0, *(row["low"] if row["low"] is not None else row["value"] for row in rows)]))
    left, full = LABEL_WIDTH, FIGURE_WIDTH - LABEL_WIDTH - 48
    canvas = SvgCanvas(24 * len(rows) + 22)
    bottom = 24 * len(rows)

    def x(value: float) -> float:
        return left + full * (value - axis_start) / (1 - axis_start)

    for tick in (0.0, 0.5, 1.0):
        canvas.line(((x(tick), 0), (x(tick), bottom)), "line")
        canvas.text(x(tick), bottom + 16, f"{tick:g}", "middle", "soft")
    for k, row in enumerate(rows):
        y = 24 * k + 12
        canvas.text(left - 8, y + 4, _truncate(row["name"], 19), "end")
        if row["low"] is not None:
            canvas.line(((x(row["low"]), y), (x(row["high"]), y)), "accent", 2)
            canvas.dot((x(row["value"]), y), "accent")
        else:
            canvas.text(left + full / 2, y + 4, "too few", "middle", "soft")
        canvas.text(FIGURE_WIDTH - 2, y + 4, f"n {row['n']}", "end", "soft")
    words = (f"{row['value']:.2f}" if row["low"] is not None else "too few" for row in rows)
    return canvas.svg(
        title, "; ".join(f"{row['name']}: {text} of {row['n']}" for row, text in zip(rows, words, strict=True))
    )


def unit_axes(edge: int, x_label: str, y_label: str) -> tuple[SvgCanvas, Any]:
    """Return a canvas with the axes of a unit square, and the function that converts values to px."""
    left, top, size = 34, 18, edge - 40
    canvas = SvgCanvas(edge + 14)

    def to_px(x: float, y: float) -> tuple[float, float]:
        return left + size * x, top + size * (1 - y)

    for tick in (0.0, 0.5, 1.0):
        canvas.line((to_px(tick, 0), to_px(tick, 1)), "line")
        canvas.line((to_px(0, tick), to_px(1, tick)), "line")
        canvas.text(left - 6, to_px(0, tick)[1] + 4, f"{tick:g}", "end", "soft")
        canvas.text(to_px(tick, 0)[0], top + size + 16, f"{tick:g}", "middle", "soft")
    canvas.text(left, 11, y_label, colour="soft")
    canvas.text(left + size / 2, top + size + 32, x_label, "middle", "soft")
    return canvas, to_px


def _legend(canvas: SvgCanvas, names: Sequence[str]) -> None:
    """Draw the names of the colours, in as many lines as they need."""
    for line, (start, own) in enumerate(_legend_lines(names)):
        x, y = start, 18 * line
        for name in own:
            canvas.rect((x, y + 3, 11, 11), BAR_COLOURS.get(name, "bar"))
            canvas.text(x + 15, y + 13, name)
            x += _legend_entry(name)


def _legend_height(names: Sequence[str]) -> int:
    return 6 + 18 * len(_legend_lines(names))


def _legend_entry(name: str) -> float:
    """Return the width of a name with its colour, px."""
    return 24 + 7.2 * len(name)


def _legend_lines(names: Sequence[str]) -> list[tuple[float, list[str]]]:
    """Return the lines of a legend: where each begins, above the bars if it fits there, px, and its names."""
    lines: list[tuple[float, list[str]]] = []
    width = float(FIGURE_WIDTH)
    for name in names:
        width += _legend_entry(name)
        if width > FIGURE_WIDTH:
            lines.append((0.0, []))
            width = _legend_entry(name)
        lines[-1][1].append(name)
    return [(max(0.0, min(LABEL_WIDTH, FIGURE_WIDTH - sum(map(_legend_entry, own)))), own) for _, own in lines]


def _group_rows(table: pa.Table, column: str) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        groups.setdefault(row[column], []).append(row)
    return groups


def _truncate(value: object, length: int) -> str:
    text = str(value)
    return text if len(text) <= length else text[: length - 1] + "…"


# -- files -------------------------------------------------------------------------------------------------------


def standalone_svg(svg: str) -> str:
    """Return a figure as an SVG that needs no page, in the colours of the light mode."""
    resolved = re.sub(r"var\(--([a-z0-9]+)\)", lambda match: PALETTE[match[1]][0], svg)
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" '
    background = f'<rect width="100%" height="100%" fill="{PALETTE["page"][0]}"/><desc>'
    return resolved.replace("<svg ", head, 1).replace("<desc>", background, 1)


def svg_to_png(svg: str, scale: float = 2.0) -> bytes:
    """Return a figure as PNG, in the colours of the light mode. Its text needs an installed font."""
    return bytes(resvg_py.svg_to_bytes(svg_string=standalone_svg(svg), zoom=scale))


def save_figures(figures: Iterable[Figure], folder: Path) -> None:
    """Write each figure as SVG and PNG, and the table that it is drawn from as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        (folder / f"{figure.name}.svg").write_text(standalone_svg(figure.svg), encoding="utf-8")
        (folder / f"{figure.name}.png").write_bytes(svg_to_png(figure.svg))
        (folder / f"{figure.name}.csv").write_text(table_to_csv(figure.table), encoding="utf-8", newline="")
