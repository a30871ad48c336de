"""The evidence of a slide equals its tables, on synthetic slides and on real tissue."""

import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from her2batch.files.locations import remove_tree
from her2batch.reports.report_data import ReportData, load_report_data
from her2batch.reports.slide_page import (
    render_evidence_sections,
    scale_bar,
    slide_evidence,
    table_links,
    write_slide_pages,
)
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort, tables_of


def slide_with_patches(report_data: ReportData) -> str:
    return next(one for one, row in report_data.rows.items() if tables_of(row, "patches"))


def decode_data_uri(uri: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)


def test_layers_cover_the_tiles_of_the_tables(report_data: ReportData) -> None:
    slide_id = slide_with_patches(report_data)
    found = slide_evidence(report_data, slide_id)
    keys = [one.key for one in found["layers"]]
    assert keys == ["intense_complete", "moderate_complete", "faint", "attention-0", "patches-0"]
    n = report_data.rows[slide_id]["n_tiles"]
    for one in found["layers"][:4]:
        assert np.count_nonzero(decode_data_uri(one.image_uri)[..., 3]) == n
    row = report_data.rows[slide_id]
    assert found["layers"][0].size[0] <= row["width"] + found["tile_px"]
    assert found["layers"][0].size[1] <= row["height"] + found["tile_px"]


def test_guideline_steps_lead_to_the_class_of_the_rule(report_data: ReportData) -> None:
    for slide_id in report_data.rows:
        found = (
            slide_evidence(report_data, slide_id) if report_data.rows[slide_id]["status"] == "done" else {"steps": []}
        )
        if found["steps"]:
            climbed = next((one.category for one in found["steps"] if one.reached), "0")
            assert climbed == found["rule"]["predicted"], slide_id


def test_examples_are_tiles_at_full_resolution(report_data: ReportData) -> None:
    slide_id = slide_with_patches(report_data)
    examples = slide_evidence(report_data, slide_id)["examples"]
    assert {one.kind for one in examples} >= {"patches predicted 3+", "highest attention of clam-sb, her2-3way"}
    tile = next(one for one in examples if "attention" in one.kind)
    size = round(224 * 0.5 / report_data.rows[slide_id]["mpp"])
    assert max(abs(edge - size) for edge in decode_data_uri(tile.image_uri).shape[:2]) <= 1


def test_a_slide_that_cannot_be_scored_shows_no_class_of_a_rule(report_data: ReportData) -> None:
    """Neither the steps of the membrane rule nor colours of cells say what the refusal denies."""
    slide_id = next(one for one in report_data.rows if _has_both_rules(report_data, one))
    rows = [
        {**one, "predicted": None} if one["method"] == "cells" else one for one in report_data.predictions[slide_id]
    ]
    data = replace(report_data, predictions={slide_id: rows}, page_links={slide_id: "#"})
    ((_, found, html),) = render_evidence_sections(data)
    assert found.not_scorable
    assert "step by step" not in html
    assert "their cells have no category" in html
    assert (
        "Membrane rule, step by step"
        in render_evidence_sections(replace(report_data, page_links={slide_id: "#"}))[0][2]
    )


def test_the_page_of_a_nuclear_marker_names_no_membrane(report_data: ReportData) -> None:
    slide_id = next(one for one, row in report_data.rows.items() if row["stain"] == "er")
    ((_, _, html),) = render_evidence_sections(replace(report_data, page_links={slide_id: "#"}))
    shown = re.sub(r'<a class="src".*?</a>', "", html)  # names of columns
    assert not re.search(r"membrane|complete", shown, re.IGNORECASE)
    assert "strong staining" in shown or "weak or stronger" in shown


def test_pieces_of_a_slide_that_cannot_be_scored_have_no_class() -> None:
    from her2batch.reports.controls.piece_outlines import piece_outlines

    pieces = pa.table({"piece": [0, 1], "role": ["tissue", "control"], "x": [0, 9], "y": [0, 9],
                       "suspected": [False] * 2, "expected": [None, "3+"], "predicted": ["0", "3+"],
                       "score": [0.1, 2.9]})  # fmt: skip
    tiles, cells = pa.table({"piece": [0, 1]}), np.array([[0, 0], [3, 3]])
    assert [one["predicted"] for one in piece_outlines(pieces, tiles, cells, 10.0, scored=False)] == [None, "3+"]
    assert [one["predicted"] for one in piece_outlines(pieces, tiles, cells, 10.0)] == ["0", "3+"]


def _has_both_rules(data: ReportData, slide_id: str) -> bool:
    rows = data.predictions.get(slide_id, [])
    return {"membrane", "cells"} <= {one["method"] for one in rows if one["task"] == "her2-4way"}


def test_slide_without_a_pyramid_has_its_evidence(reported: Cohort, tmp_path: Path) -> None:
    cohort = Cohort(Path(shutil.copytree(reported.root, tmp_path / "c")))
    report_data = load_report_data(cohort)
    slide_id = slide_with_patches(report_data)
    remove_tree(cohort.pyramid(slide_id))
    found = slide_evidence(report_data, slide_id)
    assert found["examples"] == []
    assert "pyramid" in found["no_examples_reason"]
    assert found["layers"]
    cohort.thumbnail(slide_id).unlink()
    html = render_evidence_sections(replace(report_data, page_links={slide_id: "#"}))[0][2]
    assert "can&#39;t be read" in html or "can't be read" in html


def test_slide_without_a_label_has_a_page(report_data: ReportData) -> None:
    slide_id = slide_with_patches(report_data)
    (_, _, html), = render_evidence_sections(replace(report_data, page_links={slide_id: "#"}, labels={}))  # fmt: skip
    assert "by the membrane rule" in html
    assert "label " not in html[: html.index("</p>")]


def test_every_named_source_exists(report_data: ReportData, tmp_path: Path) -> None:
    slide_id = slide_with_patches(report_data)
    pages = {slide_id: f"x/{slide_id}.html"}
    assert (
        write_slide_pages(
            replace(report_data, page_links=pages, page_folder=tmp_path / "x"), tmp_path / "x", "../r.html"
        )
        == 1
    )
    html = (tmp_path / "x" / f"{slide_id}.html").read_text()
    assert html.count("For research use") == 1
    assert 'href="../r.html"' in html
    named = re.findall(r'class="src" title="(\S+), column ([^"]+)" href="([^"]+)"', html)
    assert len(named) > 15
    for place, columns, href in named:
        path = (tmp_path / "x" / href).resolve()
        assert path == (report_data.cohort.root / place).resolve()
        table = report_data.cohort.read(
            str(path.parent.relative_to(report_data.cohort.root.resolve() / "tables")), slide_id
        )
        wanted = {"p0…p3": ["p0", "p3"]}.get(columns, columns.split(", "))
        assert set(wanted) <= set(table.column_names), (place, columns)


def test_cohort_on_an_object_store_has_no_links(report_data: ReportData) -> None:
    row = next(iter(report_data.rows.values()))
    assert table_links(replace(report_data, page_folder=None), row) == {}


@pytest.mark.parametrize(("width", "mpp", "bar"), [(80_000, 0.25, 5), (5468, 0.25, 0.2), (2000, 0.5, 0.2)])
def test_scale_bar_is_a_round_length_of_about_a_fifth(width: int, mpp: float, bar: float) -> None:
    length, share = scale_bar(width, mpp)
    assert length == bar
    assert share == pytest.approx(length / (width * mpp / 1000))
    assert 0.1 < share < 0.4


def test_3_plus_core_has_stained_membranes_and_0_core_has_none(cores: dict[str, Path], tmp_path: Path) -> None:
    """Real tissue: the 3+ core has intense, complete membranes; the 0 core has none."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in cores.values():
        (scans / path.name).symlink_to(path)
    assert ingest(IngestRequest(scans, tmp_path / "c"), Plan(), Resources(workers=0)).exit_code == 0
    report_data = load_report_data(Cohort(tmp_path / "c"))
    three, zero = slide_evidence(report_data, "core-3"), slide_evidence(report_data, "core-0")
    assert three["rule"]["predicted"] == "3+"
    assert [one.reached for one in three["steps"]] == [True] * 4
    assert three["shares"]["intense_complete"] > 0.2
    assert any(one.kind == "intense, complete" for one in three["examples"])
    assert three["initial_layer"] == "intense_complete"
    assert zero["rule"]["predicted"] in ("0", "1+")
    assert not any(one.reached for one in zero["steps"][:3])
    assert zero["shares"]["moderate_complete"] < 0.01
    assert not any("complete" in one.kind for one in zero["examples"])
    layer = {one.key: decode_data_uri(one.image_uri) for one in three["layers"]}
    dark = {one.key: decode_data_uri(one.image_uri) for one in zero["layers"]}
    assert layer["intense_complete"][..., 3].max() > 2 * dark["intense_complete"][..., 3].max()
