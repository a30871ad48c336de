"""The evidence of one slide: where its staining lies, example tiles, the steps of the membrane rule, provenance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from her2batch.assessment import Assessment
from her2batch.errors import SlideError
from her2batch.files.atomic import atomic_write
from her2batch.method_results import cells_are_scored, depends_on_ish
from her2batch.models.membrane_rule import guideline_steps, slide_shares
from her2batch.pipeline.cells.scoring import NUCLEAR_STAINS
from her2batch.reports import worklists
from her2batch.reports.cells.cell_evidence import OutlinedTiles, cell_evidence
from her2batch.reports.controls.piece_outlines import piece_outlines, without_controls
from her2batch.reports.figures import plot_shares
from her2batch.reports.layers.overlay_layers import (
    attention_layers,
    membrane_layers,
    patch_layers,
    read_table,
    saliency_layers,
    split_by_head,
)
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import jpeg_data_uri, render_html_page, render_template, shrink_to_fit
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.slide import Box
from her2batch.store.cohort import Row, tables_of
from her2batch.tasks import IHC_SCORES, MEMBRANE_RULE, RESOLUTIONS
from her2batch.vision import heatmap

OVERVIEW_PX: Final = 1024
"""Long edge of the slide image, px."""

EXAMPLES_PER_KIND: Final = 3
"""Example tiles of each kind."""

MIN_EXAMPLE_SHARE: Final = 0.01
"""Smallest share of the cellular area for which a tile is an example."""

SCALE_BAR_LENGTHS_MM: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


@dataclass(frozen=True)
class ExampleTile:
    """An example tile at full resolution. kind: what it is an example of.  source: table and column."""

    kind: str
    image_uri: str
    caption: str
    source: tuple[str, str]


def render_evidence_sections(data: ReportData) -> list[tuple[str, Assessment, Markup]]:
    """Return (slide_id, assessment, HTML of the evidence) for every slide in `data.page_links`."""
    return [
        (
            slide_id,
            data.assessments[slide_id],
            render_template("evidence.html", **slide_evidence(data, slide_id), level=4),
        )
        for slide_id in data.page_links
    ]


def write_slide_pages(data: ReportData, folder: Path, report: str, name: str = "cohort report") -> int:
    """Write a page for every slide in `data.page_links` and return their number.

    folder: where the pages are written.  report: relative address of the report from there.  name: of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write(slide_id: str) -> None:
        evidence = render_template("evidence.html", **slide_evidence(data, slide_id), level=1)
        body = render_template("slide.html", evidence=evidence, report=report, name=name)
        with atomic_write(folder / f"{slide_id}.html") as part:
            part.write_text(render_html_page(f"{slide_id} · evidence", body, {}, {}), encoding="utf-8")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return len(list(pool.map(write, data.page_links)))


def slide_evidence(data: ReportData, slide_id: str) -> dict[str, Any]:
    """Return the values of the template `evidence.html` for one slide."""
    row, plan = data.rows[slide_id], data.cohort.plan()
    tiles, membrane = (read_table(data, row, name) for name in ("tiles", "membrane"))
    pieces = read_table(data, row, "pieces")
    tile_px = plan.tile * plan.mpp / row["mpp"]  # level-0 px
    layers, cells = [], np.empty((0, 2), np.int64)
    if tiles is not None and tiles.num_rows:
        cells = heatmap.grid_cells(tiles["x"].to_numpy(), tiles["y"].to_numpy(), tile_px)
        layers = [
            *membrane_layers(membrane, cells, tile_px, row["stain"] in NUCLEAR_STAINS),
            *attention_layers(data, row, cells, tile_px),
            *patch_layers(data, row),
            *saliency_layers(data, row),
        ]
    membrane = without_controls(data.cohort, row, membrane)  # the layers show all tissue, the figures the patient's
    shares, is_nuclear = _membrane_shares(membrane), row["stain"] in NUCLEAR_STAINS
    predictions = [prediction for task in data.task_classes for prediction in data.predictions_for(slide_id, task)]
    rule, found = _rule_prediction(predictions), data.assessments[slide_id]
    shown = () if found.not_scorable else predictions
    definite = [one for one in shown if not depends_on_ish(one, found.needs_ish, found.result)]
    examples, no_examples_reason = _example_tiles(data, row, tiles, membrane)
    return {
        "row": row, "found": found, "reviews": data.reviews.get(slide_id, []), "site": data.site_of(slide_id),
        "overview": _overview_uri(data, slide_id), "outline": heatmap.outline_path(cells), "tile_px": tile_px,
        "scale_bar": scale_bar(row["width"], row["mpp"]), "layers": layers, "initial_layer": _initial_layer(rule),
        "gradient": heat_gradient(), "shares": shares, "intensities": _intensity_rows(shares),
        "steps": guideline_steps(shares) if shares and rule else [], "rule": rule, "predictions": definite,
        "probability_charts": _probability_charts(slide_id, definite), "examples": examples,
        "no_examples_reason": no_examples_reason, "links": table_links(data, row), "version": version("her2batch"),
        "plan_bundle": plan.bundle, "method_label": worklists.method_label, "is_nuclear": is_nuclear,
        "laboratory": worklists.laboratory_text(found), "verdict_text": worklists.verdict_text,
        "pieces": piece_outlines(pieces, tiles, cells, tile_px, not found.not_scorable),
        **cell_evidence(data.predictions.get(slide_id, ())),
        "bundles": sorted({one["bundle"] for one in predictions}),
    }  # fmt: skip


def table_links(data: ReportData, row: Row) -> dict[str, str]:
    """Return table → relative address of its file. Empty for a cohort on an object store."""
    if data.cohort.remote or data.page_folder is None:
        return {}
    kinds = ("slides", "pieces", "tiles", "membrane", "cells", "attention", "patches", "saliency", "predictions")
    names = ["slides", *(name for kind in kinds for name in tables_of(row, kind))]
    return {name: os.path.relpath(data.cohort.table(name, row["slide_id"]), data.page_folder) for name in names}


def scale_bar(width: int, mpp: float) -> tuple[float, float]:
    """Return the length of a scale bar of about a fifth of the slide: in mm, and as a share of the slide's width.

    width: of the slide, level-0 px.
    """
    width_mm = width * mpp / 1000
    length_mm = min(SCALE_BAR_LENGTHS_MM, key=lambda length: abs(length - width_mm / 5))
    return length_mm, length_mm / width_mm


def heat_gradient() -> str:
    """Return the colour scale of the layers as the stops of a CSS gradient: clear at 0."""
    colour = " ".join(map(str, heatmap.HEAT_COLOUR))
    return f"rgb({colour} / 0), rgb({colour})"


def _overview_uri(data: ReportData, slide_id: str) -> str | None:
    """Return the thumbnail with a long edge of OVERVIEW_PX as a data URI; None when it can't be read."""
    try:
        jpeg = np.frombuffer(data.cohort.thumbnail(slide_id).read_bytes(), np.uint8)
    except OSError:
        return None
    image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    return (
        None if image is None else jpeg_data_uri(shrink_to_fit(np.asarray(image, np.uint8), OVERVIEW_PX)[..., ::-1], 76)
    )


# -- predictions -------------------------------------------------------------------------------------------------


def _membrane_shares(membrane: pa.Table | None) -> dict[str, float]:
    """Return the membrane shares of the whole slide; empty without a membrane table."""
    if membrane is None or not membrane.num_rows:
        return {}
    return slide_shares({name: membrane[name].to_numpy() for name in membrane.column_names[2:]})


def _intensity_rows(shares: Mapping[str, float]) -> list[tuple[str, str, float, float]]:
    """Return (label, column, total share, share of complete membranes) for each intensity."""
    names = ("intense", "moderate", "faint") if shares else ()
    return [(name, name, shares[name], shares[f"{name}_complete"]) for name in names]


def _rule_prediction(predictions: list[Row]) -> Row | None:
    """Return the prediction of the membrane rule for the four classes."""
    rule = (row for row in predictions if (row["method"], row["task"]) == (MEMBRANE_RULE, worklists.HER2_4WAY))
    return next(rule, None)


def _initial_layer(rule: Row | None) -> str:
    """Return the key of the layer that is shown first: the share that decided the class."""
    return {"3+": "intense_complete", "2+": "moderate_complete"}.get(rule["predicted"] if rule else "", "faint")


def _probability_charts(slide_id: str, predictions: list[Row]) -> list[tuple[str, str]]:
    """Return (task, SVG) for each task with classes: the probabilities of each method."""
    charts = []
    for task in dict.fromkeys(prediction["task"] for prediction in predictions if prediction["classes"]):
        rows = [
            {"group": worklists.method_label(prediction), "class": name, "n": round(p, 4)}
            for prediction in predictions if prediction["task"] == task
            for name, p in zip(prediction["classes"], prediction["p"], strict=True)
        ]  # fmt: skip
        charts.append((task, plot_shares(f"Probabilities, {task}, {slide_id}", pa.Table.from_pylist(rows))))
    return charts


# -- example tiles -----------------------------------------------------------------------------------------------


ExampleRegion = tuple[str, Box, str, tuple[str, str]]
"""Kind, box in level-0 px, caption and source of an example tile."""


def _example_tiles(
    data: ReportData, row: Row, tiles: pa.Table | None, membrane: pa.Table | None
) -> tuple[list[ExampleTile], str | None]:
    """Return the example tiles of each kind from the pyramid; or no tiles and the reason."""
    regions = [
        *_membrane_examples(tiles, membrane, row["stain"] in NUCLEAR_STAINS),
        *_attention_examples(data, row, tiles),
        *_patch_examples(data, row),
    ]
    reason = "There are no example tiles: no staining was found, and no MIL head or patch network was run."
    if not regions:
        return [], reason
    try:
        with Pyramid(data.cohort.pyramid(row["slide_id"])) as slide:
            scored = cells_are_scored(data.predictions.get(row["slide_id"], ()))
            image = OutlinedTiles(data.cohort, row, slide, scored).image
            return [
                ExampleTile(kind, jpeg_data_uri(image(box), 76), caption, source)
                for kind, box, caption, source in regions
            ], None
    except (SlideError, OSError) as error:
        return [], f"There are no example tiles: the pyramid can't be read ({error})."


def _membrane_examples(tiles: pa.Table | None, membrane: pa.Table | None, is_nuclear: bool) -> list[ExampleRegion]:
    """Return the tiles with the most staining of each kind, weighted by their cellular area.

    is_nuclear: the marker lies in nuclei, and no membrane is named.
    """
    if tiles is None or membrane is None or not membrane.num_rows:
        return []
    values = {name: membrane[name].to_numpy() for name in membrane.column_names[1:]}
    kinds = (
        ("intense, complete", "intense_complete", values["intense_complete"]),
        ("moderate, complete", "moderate_complete", values["moderate_complete"] - values["intense_complete"]),
        ("faint", "faint", values["faint"] - values["moderate"]),
    ) if not is_nuclear else (
        ("strong staining", "intense", values["intense"]),
        ("moderate staining", "moderate", values["moderate"] - values["intense"]),
        ("weak staining", "faint", values["faint"] - values["moderate"]),
    )  # fmt: skip
    regions = []
    for kind, column, share in kinds:
        for k in np.argsort(-share * values["cells"], kind="stable")[:EXAMPLES_PER_KIND].tolist():
            if share[k] > MIN_EXAMPLE_SHARE:
                tile = int(values["tile"][k])
                caption = f"{100 * share[k]:.0f} % of the cellular area, tile {tile}"
                regions.append((kind, _tile_box(tiles, tile), caption, ("membrane", column)))
    return regions


def _attention_examples(data: ReportData, row: Row, tiles: pa.Table | None) -> list[ExampleRegion]:
    """Return the tiles with the highest attention of the first MIL head of each bundle."""
    regions: list[ExampleRegion] = []
    for name in tables_of(row, "attention") if tiles is not None else ():
        for (task, method, _), part in split_by_head(read_table(data, row, name))[:1]:
            weights = part["attention"].to_numpy()
            for k in np.argsort(-weights, kind="stable")[:EXAMPLES_PER_KIND].tolist():
                tile = part["tile"][k].as_py()
                caption = f"{weights[k] * part.num_rows:.1f} × uniform attention, tile {tile}"
                kind = f"highest attention of {method}, {task}"
                regions.append((kind, _tile_box(tiles, tile), caption, (name, "attention")))
    return regions


def _patch_examples(data: ReportData, row: Row) -> list[ExampleRegion]:
    """Return the most probable patches of each class, at the finest resolution there is."""
    regions: list[ExampleRegion] = []
    for name in tables_of(row, "patches"):
        patches = read_table(data, row, name)
        if patches is None:
            continue
        resolutions = patches["resolution"].to_pylist()
        finest = next((resolution for resolution in reversed(RESOLUTIONS) if resolution in resolutions), None)
        part = patches.filter(pc.equal(patches["resolution"], finest))
        p = np.stack([part[f"p{k}"].to_numpy() for k in range(4)], axis=1)
        for k, score in enumerate(IHC_SCORES):
            for patch in np.argsort(-p[:, k], kind="stable")[:EXAMPLES_PER_KIND].tolist():
                if p[patch].argmax() == k:
                    caption = f"p = {p[patch, k]:.2f}, {finest} resolution"
                    regions.append((f"patches predicted {score}", _tile_box(part, patch), caption, (name, f"p{k}")))
    return regions


def _tile_box(table: pa.Table | None, k: int) -> Box:
    """Return the box of a row of `tiles` or `patches`, level-0 px."""
    assert table is not None
    x, y, size = (int(table[name][k].as_py()) for name in ("x", "y", "size"))
    return Box(x, y, size, size)
