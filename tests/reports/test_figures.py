"""Figures: drawn from a table, described in words, legible in light and dark mode."""

import csv
import html
import io
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from her2batch.reports import figures
from her2batch.reports.figures import (
    CLASS_COLOURS,
    PALETTE,
    Figure,
    save_figures,
    standalone_svg,
    svg_to_png,
    table_to_csv,
)
from her2batch.tasks import CLASSES

SHARES = pa.table({"group": ["membrane"] * 2 + ["=evil()"] * 2, "class": ["0", "1+"] * 2, "n": [3, 1, 0, 4]})
TABLES = {
    "shares": SHARES,
    "bars": pa.table({"name": ["pen", "<b>"], "value": [3.0, 1.5]}),
    "confusion": pa.table({"truth": ["0", "0", "1+", "1+"], "predicted": ["0", "1+"] * 2, "n": [5, 1, 2, 4]}),
    "roc": pa.table({"class": ["1+"] * 3, "fpr": [0.0, 0.5, 1.0], "tpr": [0.2, 0.9, 1.0], "low": [0.1, 0.7, 1.0],
                     "high": [0.4, 1.0, 1.0], "auc": [0.8] * 3}),
    "calibration": pa.table({"p": [0.3, 0.8], "share": [0.25, 0.9], "low": [0.1, 0.7], "high": [0.5, 1.0],
                             "n": [8, 9]}),
    "intervals": pa.table({"name": ["north", "south"], "value": [0.6, None], "low": [-0.2, None], "high": [0.9, None],
                           "n": [20, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_figure_is_well_formed_and_describes_its_content(kind: str) -> None:
    svg = getattr(figures, f"plot_{kind}")("Title & more", TABLES[kind])
    found = ET.fromstring(svg)
    assert found.get("role") == "img"
    assert found.get("aria-label").startswith("Title & more. ")
    numbers = {"shares": "75%", "bars": "pen: 3", "confusion": "5 predicted 0", "roc": "AUC 0.800",
               "calibration": "correct 0.25 of 8", "intervals": "north: 0.60 of 20"}  # fmt: skip
    assert numbers[kind] in found.find("desc").text
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= PALETTE.keys()


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_figure_file_needs_no_page_and_is_drawn_as_png(kind: str) -> None:
    svg = getattr(figures, f"plot_{kind}")("t", TABLES[kind])
    assert "var(" not in standalone_svg(svg)
    ET.fromstring(standalone_svg(svg))
    picture = cv2.imdecode(np.frombuffer(svg_to_png(svg), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] == 2 * figures.FIGURE_WIDTH
    assert (picture < 200).any()
    assert (picture > 250).mean() > 0.3


def test_bar_lengths_are_proportional_to_shares() -> None:
    widths = [float(one) for one in re.findall(r'width="([\d.]+)" height="17\.0"', figures.plot_shares("t", SHARES))]
    assert widths[0] / widths[1] == pytest.approx(3, rel=0.01)
    assert widths[2] == 0
    assert widths[3] == pytest.approx(widths[0] + widths[1], abs=0.2)


def test_figures_are_saved_with_their_table(tmp_path: Path) -> None:
    save_figures([Figure("scores", "Scores", "note", figures.plot_shares("t", SHARES), SHARES)], tmp_path / "f")
    assert sorted(one.name for one in (tmp_path / "f").iterdir()) == ["scores.csv", "scores.png", "scores.svg"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "f" / "scores.csv").read_text())))
    assert [(one["class"], one["n"]) for one in rows] == [("0", "3"), ("1+", "1"), ("0", "0"), ("1+", "4")]


def test_cells_of_a_csv_are_no_formulas() -> None:
    assert "'=evil()" in table_to_csv(SHARES)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    r, g, b = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1])
def test_text_has_enough_contrast(mode: int) -> None:
    for word in ("ink", "soft", "accent", "bad", "good"):
        for ground in ("page", "panel"):
            assert contrast(PALETTE[word][mode], PALETTE[ground][mode]) >= 4.5, (word, ground)


@pytest.mark.parametrize("mode", [0, 1])
def test_classes_differ_by_lightness_alone(mode: int) -> None:
    """Neighbours in a stacked bar differ in luminance by a third or more."""
    for classes in CLASSES.values():
        light = [luminance(PALETTE[CLASS_COLOURS[one]][mode]) for one in classes]
        for a, b in pairwise(light):
            assert max(a, b) / min(a, b) > 1.33, (classes, light)


@pytest.mark.parametrize(
    "classes", [CLASSES["her2-5way"], ("negative", "positive", "ISH decides"), ("a long class",) * 5]
)
def test_the_legend_names_every_class_inside_the_figure(classes: tuple[str, ...]) -> None:
    names = [f"{name}{k}" if classes[0] == "a long class" else name for k, name in enumerate(classes)]
    table = pa.table({"group": ["g"] * len(names), "class": names, "n": [1] * len(names)})
    drawn = ET.fromstring(figures.plot_shares("Shares", table))
    places = {text.text: float(text.get("x", 0)) for text in drawn.iter("text") if text.text in names}
    assert list(places) == names
    assert all(x + 7.2 * len(name) <= figures.FIGURE_WIDTH for name, x in places.items())
    bars = [float(rect.get("y", 0)) for rect in drawn.iter("rect") if float(rect.get("height", 0)) == 17]
    assert min(bars) > max(float(text.get("y", 0)) for text in drawn.iter("text") if text.text in names)


def test_slides_without_a_class_have_a_hue_of_their_own() -> None:
    """Blue grey is the colour of negative: a slide that waits for ISH must not look negative."""
    assert figures.BAR_COLOURS["ISH decides"] not in CLASS_COLOURS.values()


def test_a_value_without_an_interval_is_no_dot() -> None:
    few = pa.table({"name": ["north"], "value": [1.0], "low": [None], "high": [None], "n": [2]})
    drawn = figures.plot_intervals("Kappa", few)
    assert "<circle" not in drawn
    assert "north: too few of 2" in drawn


@pytest.mark.parametrize(("value", "text"), [(5.56e-05, "< 0.001 s"), (0.242, "0.242 s"), (12345.0, "12,345 s")])
def test_seconds_have_no_exponent(value: float, text: str) -> None:
    assert text in html.unescape(figures.plot_bars("Seconds", pa.table({"name": ["rule"], "value": [value]}), " s"))
