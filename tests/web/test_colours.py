"""The page and the report have the same colours and scales."""

import json
import re
from pathlib import Path

import her2batch
from her2batch.pipeline.cells.scoring import NUCLEAR_STAINS
from her2batch.reasons import KINDS
from her2batch.reports.cells.cell_evidence import CLASS_MARKS
from her2batch.reports.figures import CLASS_COLOURS, PALETTE
from her2batch.vision.heatmap import DAB_SCALE_END, HEAT_COLOUR, SHARE_SCALE_END

STATIC = Path(her2batch.__file__).parent / "web" / "static"
SCRIPT = (STATIC / "colours.js").read_text()
STYLE = (STATIC / "style.css").read_text()


def constant(name: str) -> str:
    found = re.search(rf"const {name} = (.+?);", SCRIPT)
    assert found is not None
    return found[1]


def test_heatmaps_have_one_colour_and_one_scale() -> None:
    assert json.loads(constant("HEAT")) == list(HEAT_COLOUR)
    assert (float(constant("SHARE_SCALE_END")), float(constant("DAB_SCALE_END"))) == (SHARE_SCALE_END, DAB_SCALE_END)


def test_classes_have_the_colours_of_the_report() -> None:
    assert json.loads(constant("CLASSES")) == [
        [name, PALETTE[CLASS_COLOURS[name]][0]] for name in ("0", "1+", "2+", "3+")
    ]
    named = dict(re.findall(r'"?([\w+]+)"?: "(c\w)"', constant("CLASS_NAMES")))
    assert named == CLASS_COLOURS
    for name in ("c0", "c1", "c2", "c3", "bar"):
        assert re.findall(rf"--{name}: (#\w+);", STYLE) == list(PALETTE[name])


def test_the_page_filters_by_every_kind_of_reason() -> None:
    page = (STATIC / "index.html").read_text()
    select = page[page.index('<select name="kind">') :].partition("</select>")[0]
    assert dict(re.findall(r'<option value="([\w-]+)">([^<]+)</option>', select)) == KINDS


def test_the_marks_of_a_class_are_those_of_the_report() -> None:
    marks = json.loads(re.sub(r"(\w+):", r'"\1":', constant("MARKS")))
    assert marks == {name: mark for name, mark in CLASS_MARKS.items() if name != "her2"}
    assert set(marks) == NUCLEAR_STAINS
