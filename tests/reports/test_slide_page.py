"""The evidence of a slide: what it shows is what the tables say, on synthetic slides and on real tissue."""

import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from her2batch.files.locations import remove_tree
from her2batch.reports.report_data import ReportData, load_report_data, names_of
from her2batch.reports.slide_page import facts, heads, links, scale_bar, sections, write_pages
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort


def with_patches(material: ReportData) -> str:
    return next(one for one, row in material.rows.items() if names_of(row, "patches"))


def unpacked(address: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)


def test_layers_cover_the_tiles_that_the_tables_name(material: ReportData) -> None:
    slide_id = with_patches(material)
    found = facts(material, slide_id)
    keys = [one.key for one in found["layers"]]
    assert keys == ["intense_complete", "moderate_complete", "faint", "attention-0", "patches-0"]
    n = material.rows[slide_id]["n_tiles"]
    for one in found["layers"][:4]:
        assert np.count_nonzero(unpacked(one.picture)[..., 3]) == n
    row = material.rows[slide_id]
    assert found["layers"][0].box[0] <= row["width"] + found["step"]
    assert found["layers"][0].box[1] <= row["height"] + found["step"]


def test_attention_is_shown_a_head_at_a_time(material: ReportData) -> None:
    name = next(names_of(row, "attention")[0] for row in material.rows.values() if names_of(row, "attention"))
    slide_id = next(one for one, row in material.rows.items() if name in names_of(row, "attention"))
    (keys, part), = heads(material.cohort.read(name, slide_id))  # fmt: skip
    assert keys == ("her2-3way", "clam-sb", "stain")
    assert sum(part["attention"].to_pylist()) == pytest.approx(1, abs=1e-3)
    assert heads(None) == []


def test_the_rule_is_walked_to_the_class_it_gave(material: ReportData) -> None:
    for slide_id in material.rows:
        found = facts(material, slide_id) if material.rows[slide_id]["status"] == "done" else {"steps": []}
        if found["steps"]:
            climbed = next((one.category for one in found["steps"] if one.reached), "0")
            assert climbed == found["rule"]["predicted"], slide_id


def test_examples_are_the_tiles_themselves(material: ReportData) -> None:
    slide_id = with_patches(material)
    examples = facts(material, slide_id)["examples"]
    assert {one.kind for one in examples} >= {"patches called 3+", "most attention of clam-sb, her2-3way"}
    tile = next(one for one in examples if "attention" in one.kind)
    size = round(224 * 0.5 / material.rows[slide_id]["mpp"])
    assert max(abs(edge - size) for edge in unpacked(tile.picture).shape[:2]) <= 1


def test_a_slide_whose_pyramid_was_let_go_still_has_its_evidence(reported: Cohort, tmp_path: Path) -> None:
    cohort = Cohort(Path(shutil.copytree(reported.root, tmp_path / "c")))
    material = load_report_data(cohort)
    slide_id = with_patches(material)
    remove_tree(cohort.pyramid(slide_id))
    found = facts(material, slide_id)
    assert found["examples"] == []
    assert "pyramid" in found["why_none"]
    assert found["layers"]
    cohort.thumbnail(slide_id).unlink()
    html = sections(replace(material, pages={slide_id: "#"}))[0][2]
    assert "can&#39;t be read" in html or "can't be read" in html


def test_a_slide_that_nobody_labelled_has_its_page(material: ReportData) -> None:
    slide_id = with_patches(material)
    (_, _, html), = sections(replace(material, pages={slide_id: "#"}, labels={}))  # fmt: skip
    assert "by the membrane rule" in html
    assert "label " not in html[: html.index("</p>")]


def test_every_source_that_is_named_exists(material: ReportData, tmp_path: Path) -> None:
    slide_id = with_patches(material)
    pages = {slide_id: f"x/{slide_id}.html"}
    assert write_pages(replace(material, pages=pages, beside=tmp_path / "x"), tmp_path / "x", "../r.html") == 1
    html = (tmp_path / "x" / f"{slide_id}.html").read_text()
    assert html.count("For research use") == 1
    assert 'href="../r.html"' in html
    named = re.findall(r'class="src" title="(\S+), column ([^"]+)" href="([^"]+)"', html)
    assert len(named) > 15
    for place, columns, href in named:
        path = (tmp_path / "x" / href).resolve()
        assert path == (material.cohort.root / place).resolve()
        table = material.cohort.read(str(path.parent.relative_to(material.cohort.root.resolve() / "tables")), slide_id)
        wanted = {"p0…p3": ["p0", "p3"]}.get(columns, columns.split(", "))
        assert set(wanted) <= set(table.column_names), (place, columns)


def test_a_cohort_far_away_has_no_links(material: ReportData) -> None:
    row = next(iter(material.rows.values()))
    assert links(replace(material, beside=None), row) == {}


@pytest.mark.parametrize(("width", "mpp", "bar"), [(80_000, 0.25, 5), (5468, 0.25, 0.2), (2000, 0.5, 0.2)])
def test_a_scale_bar_is_a_round_length_about_a_fifth_wide(width: int, mpp: float, bar: float) -> None:
    length, share = scale_bar(width, mpp)
    assert length == bar
    assert share == pytest.approx(length / (width * mpp / 1000))
    assert 0.1 < share < 0.4


def test_the_3_plus_core_shows_its_membranes_and_the_0_core_none(cores: dict[str, Path], tmp_path: Path) -> None:
    """Real tissue: where the 3+ core is intense and complete, the 0 core has nothing to show."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in cores.values():
        (scans / path.name).symlink_to(path)
    assert ingest(IngestRequest(scans, tmp_path / "c"), Plan(), Resources(workers=0)).exit_code == 0
    material = load_report_data(Cohort(tmp_path / "c"))
    three, zero = facts(material, "core-3"), facts(material, "core-0")
    assert three["rule"]["predicted"] == "3+"
    assert [one.reached for one in three["steps"]] == [True] * 4
    assert three["shares"]["intense_complete"] > 0.2
    assert any(one.kind == "intense, complete" for one in three["examples"])
    assert three["first"] == "intense_complete"
    assert zero["rule"]["predicted"] in ("0", "1+")
    assert not any(one.reached for one in zero["steps"][:3])
    assert zero["shares"]["moderate_complete"] < 0.01
    assert not any("complete" in one.kind for one in zero["examples"])
    layer = {one.key: unpacked(one.picture) for one in three["layers"]}
    dark = {one.key: unpacked(one.picture) for one in zero["layers"]}
    assert layer["intense_complete"][..., 1].max() > 2 * dark["intense_complete"][..., 1].max()
