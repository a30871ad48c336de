"""The evidence of one slide: where the stain lies, which tiles show it, what the rule made of it, its source."""

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
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.files.atomic import atomic_write
from her2batch.models.membrane_rule import TEN_PERCENT, guideline_steps, slide_shares
from her2batch.reports import worklists
from her2batch.reports.figures import CLASS_COLOURS, PALETTE, plot_shares
from her2batch.reports.report_data import ReportData, slide_table_names
from her2batch.reports.theme import data_uri, jpeg_data_uri, render_html_page, render_template, shrink_to_fit
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.slide import Box
from her2batch.store.cohort import Row
from her2batch.tasks import CLASSES, IHC_SCORES, MEMBRANE_RULE, PATCH_PX, RESOLUTIONS
from her2batch.vision import heatmap

OVERVIEW_PX: Final = 1024
"""Long edge of the slide's picture, px."""

EXAMPLES_PER_KIND: Final = 3
"""Tiles of each kind that are shown at full size."""

MEMBRANE_SCALE_END: Final = 0.5
"""Share of the cellular area at which a membrane layer is at its lightest: the same on every slide."""

MIN_EXAMPLE_SHARE: Final = 0.01
"""Least share for which a tile is shown as an example."""

MEMBRANE_LAYERS: Final = {
    "intense_complete": "intense, complete",
    "moderate_complete": "moderate or stronger, complete",
    "faint": "faint or stronger",
}

SCALE_BAR_LENGTHS_MM: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
"""Lengths of a scale bar."""


@dataclass(frozen=True)
class OverlayLayer:
    """An overlay. box: its width and height, level-0 px.  ends: of its scale, or none.  source: column."""

    key: str
    label: str
    picture: str
    box: tuple[float, float]
    ends: tuple[str, str] | None
    source: tuple[str, str]


@dataclass(frozen=True)
class ExampleTile:
    """A tile at full size. kind: what it is an example of."""

    kind: str
    picture: str
    words: str
    source: tuple[str, str]


def render_evidence_sections(data: ReportData) -> list[tuple[str, str | None, Markup]]:
    """Every slide that has a page, its class by the rule and its evidence, to stand in the report."""
    found = [(one, slide_evidence(data, one)) for one in data.page_links]
    return [
        (slide_id, shown["rule"] and shown["rule"]["predicted"], render_template("evidence.html", **shown, level=4))
        for slide_id, shown in found
    ]


def write_slide_pages(data: ReportData, folder: Path, report: str) -> int:
    """A page for every slide that has one, in a folder; `report`: how the report is reached from there."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(slide_id: str) -> None:
        body = render_template(
            "slide.html",
            evidence=render_template("evidence.html", **slide_evidence(data, slide_id), level=1),
            report=report,
        )
        with atomic_write(folder / f"{slide_id}.html") as part:
            part.write_text(render_html_page(f"{slide_id} · evidence", body, {}, {}), encoding="utf-8")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return len(list(pool.map(write, data.page_links)))


def slide_evidence(data: ReportData, slide_id: str) -> dict[str, Any]:
    """All that the page of a slide shows."""
    row = data.rows[slide_id]
    tables = {name: _read_table(data, row, name) for name in ("tiles", "membrane")}
    tiles, membrane = tables["tiles"], tables["membrane"]
    plan = data.cohort.plan()
    layers, where = [], np.empty((0, 2), np.int64)
    step = plan.tile * plan.mpp / row["mpp"]
    if tiles is not None and tiles.num_rows:
        where = heatmap.grid_cells(tiles["x"].to_numpy(), tiles["y"].to_numpy(), step)
        layers = [*_membrane_layers(membrane, where, step), *_attention_layers(data, row, where, step),
                  *_patch_layers(data, row)]  # fmt: skip
    found = _membrane_shares(membrane)
    calls = [one for task in CLASSES for one in data.predictions_for(slide_id, task)]
    examples, why_none = _examples(data, row, tiles, membrane)
    return {
        "row": row, "label": data.labels.get(slide_id), "site": data.site_of(slide_id),
        "overview": _overview_uri(data, slide_id), "outline": heatmap.outline_path(where), "step": step,
        "bar": scale_bar(row["width"], row["mpp"]), "layers": layers, "first": _initial_layer(calls),
        "viridis": viridis_gradient(), "shares": found, "intensities": _intensity_rows(found),
        "steps": guideline_steps(found) if found and _rule_prediction(calls) else [], "rule": _rule_prediction(calls), "calls": calls,
        "chart": _probability_charts(slide_id, calls), "examples": examples, "why_none": why_none,
        "links": table_links(data, row), "version": version("her2batch"), "ten": TEN_PERCENT, "hues": CLASS_COLOURS,
        "plan_bundle": plan.bundle, "name": worklists.method_label,
    }  # fmt: skip


def table_links(data: ReportData, row: Row) -> dict[str, str]:
    """Table → how its file is reached from the page; empty where the cohort lies on an object store."""
    if data.cohort.remote or data.page_folder is None:
        return {}
    kinds = ("slides", "tiles", "membrane", "attention", "patches", "predictions")
    names = ["slides", *(name for kind in kinds for name in slide_table_names(row, kind))]
    return {one: os.path.relpath(data.cohort.table(one, row["slide_id"]), data.page_folder) for one in names}


def scale_bar(width: int, mpp: float) -> tuple[float, float]:
    """Length of a scale bar in mm, about a fifth of the slide, and its share of the slide's width."""
    mm = width * mpp / 1000
    length = min(SCALE_BAR_LENGTHS_MM, key=lambda one: abs(one - mm / 5))
    return length, length / mm


def viridis_gradient() -> str:
    """The layers' colours as a CSS gradient."""
    stops = heatmap.viridis_rgb(np.linspace(0, 255, 9).astype(np.uint8)).tolist()
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in stops)


def _read_table(data: ReportData, row: Row, name: str) -> pa.Table | None:
    try:
        return data.cohort.read(name, row["slide_id"])
    except (OSError, pa.ArrowInvalid):
        return None


def _overview_uri(data: ReportData, slide_id: str) -> str | None:
    try:
        packed = np.frombuffer(data.cohort.thumbnail(slide_id).read_bytes(), np.uint8)
    except OSError:
        return None
    picture = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return (
        None
        if picture is None
        else jpeg_data_uri(shrink_to_fit(np.asarray(picture, np.uint8), OVERVIEW_PX)[..., ::-1], 76)
    )


# -- layers ------------------------------------------------------------------------------------------------------


def _layer(
    key: str, label: str, picture: NDArray[np.uint8], step: float, ends: tuple[str, str] | None, source: tuple[str, str]
) -> OverlayLayer:
    rows, columns = picture.shape[:2]
    return OverlayLayer(
        key, label, data_uri("image/png", heatmap.encode_png(picture)), (columns * step, rows * step), ends, source
    )


def _membrane_layers(membrane: pa.Table | None, where: heatmap.GridCells, step: float) -> list[OverlayLayer]:
    if membrane is None:
        return []
    own = where[membrane["tile"].to_numpy()]
    ends = ("0 %", f"≥ {MEMBRANE_SCALE_END:.0%} of the cellular area")
    return [
        _layer(
            name,
            label,
            heatmap.heatmap_image(own, membrane[name].to_numpy(), MEMBRANE_SCALE_END),
            step,
            ends,
            ("membrane", name),
        )
        for name, label in MEMBRANE_LAYERS.items()
    ]


def _attention_layers(data: ReportData, row: Row, where: heatmap.GridCells, step: float) -> list[OverlayLayer]:
    """One a MIL head: attention as a multiple of what every tile would have if all counted alike."""
    made: list[OverlayLayer] = []
    for name in slide_table_names(row, "attention"):
        for keys, part in split_by_head(_read_table(data, row, name)):
            weights = part["attention"].to_numpy() * part.num_rows
            top = max(2.0, float(np.percentile(weights, 99)))
            picture = heatmap.heatmap_image(where[part["tile"].to_numpy()], weights, top)
            label = f"attention of {keys[1]}, {keys[0]}"
            ends = ("0", f"≥ {top:.1f} times an even share")
            made.append(_layer(f"attention-{len(made)}", label, picture, step, ends, (name, "attention")))
    return made


def split_by_head(attention: pa.Table | None) -> list[tuple[tuple[str, str, str], pa.Table]]:
    """The attention of each head by itself: (task, method, input) → its rows."""
    if attention is None:
        return []
    names = ("task", "method", "input")
    keys = sorted(set(zip(*(attention[name].to_pylist() for name in names), strict=True)))
    found = []
    for one in keys:
        mask = [pc.equal(attention[name], value) for name, value in zip(names, one, strict=True)]
        found.append((one, attention.filter(pc.and_(pc.and_(mask[0], mask[1]), mask[2]))))
    return found


def _patch_layers(data: ReportData, row: Row) -> list[OverlayLayer]:
    """One a resolution: each patch in the colour of its likeliest class."""
    palette = np.array([_rgb_of(CLASS_COLOURS[one]) for one in IHC_SCORES], np.uint8)
    made: list[OverlayLayer] = []
    for name in slide_table_names(row, "patches"):
        patches = _read_table(data, row, name)
        for resolution, mpp in RESOLUTIONS.items():
            part = None if patches is None else patches.filter(pc.equal(patches["resolution"], resolution))
            if part is None or not part.num_rows:
                continue
            step = PATCH_PX * mpp / row["mpp"]
            where = heatmap.grid_cells(part["x"].to_numpy(), part["y"].to_numpy(), step)
            kinds = np.stack([part[f"p{k}"].to_numpy() for k in range(4)], axis=1).argmax(axis=1)
            picture = heatmap.class_image(where, kinds, palette)
            made.append(
                _layer(f"patches-{len(made)}", f"patch classes, {resolution}", picture, step, None, (name, "p0…p3"))
            )
    return made


def _rgb_of(name: str) -> tuple[int, int, int]:
    text = PALETTE[name][0]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


# -- figures of the rule -----------------------------------------------------------------------------------------


def _membrane_shares(membrane: pa.Table | None) -> dict[str, float]:
    if membrane is None or not membrane.num_rows:
        return {}
    return slide_shares({name: membrane[name].to_numpy() for name in membrane.column_names[2:]})


def _intensity_rows(found: Mapping[str, float]) -> list[tuple[str, str, float, float]]:
    """Name, column, share in all and complete, by intensity; nothing without membrane figures."""
    names = ("intense", "moderate", "faint") if found else ()
    return [(name, name, found[name], found[f"{name}_complete"]) for name in names]


def _rule_prediction(calls: list[Row]) -> Row | None:
    return next((one for one in calls if one["method"] == MEMBRANE_RULE and one["task"] == worklists.HER2_4WAY), None)


def _initial_layer(calls: list[Row]) -> str:
    """The layer that is shown first: the one that decided the class."""
    rule = _rule_prediction(calls)
    return {"3+": "intense_complete", "2+": "moderate_complete"}.get(rule["predicted"] if rule else "", "faint")


def _probability_charts(slide_id: str, calls: list[Row]) -> list[tuple[str, str]]:
    """(task, figure): the probabilities of each method for each task."""
    made = []
    for task in dict.fromkeys(one["task"] for one in calls):
        rows = [
            {"group": worklists.method_label(one), "class": name, "n": round(p, 4)}
            for one in calls if one["task"] == task
            for name, p in zip(one["classes"], one["p"], strict=True)
        ]  # fmt: skip
        made.append((task, plot_shares(f"Probabilities, {task}, {slide_id}", pa.Table.from_pylist(rows))))
    return made


# -- examples ----------------------------------------------------------------------------------------------------


def _examples(
    data: ReportData, row: Row, tiles: pa.Table | None, membrane: pa.Table | None
) -> tuple[list[ExampleTile], str | None]:
    """Tiles at full size, the most telling of each kind; or why there are none."""
    wanted = [*_membrane_examples(tiles, membrane), *_attention_examples(data, row, tiles), *_patch_examples(data, row)]
    if not wanted:
        return [], "no tile stands out: none shows membranes, and no head or patch net has looked"
    try:
        with Pyramid(data.cohort.pyramid(row["slide_id"])) as slide:
            return [
                ExampleTile(kind, jpeg_data_uri(slide.region(box, max(row["mpp"], 0.2)), 76), words, source)
                for kind, box, words, source in wanted
            ], None
    except (SlideError, OSError) as error:
        return [], f"the pyramid can't be read ({error})"


ExampleRegion = tuple[str, Box, str, tuple[str, str]]


def _membrane_examples(tiles: pa.Table | None, membrane: pa.Table | None) -> list[ExampleRegion]:
    if tiles is None or membrane is None or not membrane.num_rows:
        return []
    get = {name: membrane[name].to_numpy() for name in membrane.column_names[1:]}
    kinds = (
        ("intense, complete", "intense_complete", get["intense_complete"]),
        ("moderate, complete", "moderate_complete", get["moderate_complete"] - get["intense_complete"]),
        ("faint", "faint", get["faint"] - get["moderate"]),
    )
    found = []
    for kind, column, share in kinds:
        for k in np.argsort(-share * get["cells"], kind="stable")[:EXAMPLES_PER_KIND].tolist():
            if share[k] > MIN_EXAMPLE_SHARE:
                words = f"{share[k]:.0%} of its cellular area; tile {get['tile'][k]}"
                found.append((kind, _tile_box(tiles, int(get["tile"][k])), words, ("membrane", column)))
    return found


def _attention_examples(data: ReportData, row: Row, tiles: pa.Table | None) -> list[ExampleRegion]:
    found: list[ExampleRegion] = []
    for name in slide_table_names(row, "attention") if tiles is not None else ():
        for (task, method, _), part in split_by_head(_read_table(data, row, name))[:1]:
            weights = part["attention"].to_numpy()
            for k in np.argsort(-weights, kind="stable")[:EXAMPLES_PER_KIND].tolist():
                tile = part["tile"][k].as_py()
                words = f"{weights[k] * part.num_rows:.1f} times an even share; tile {tile}"
                found.append(
                    (f"most attention of {method}, {task}", _tile_box(tiles, tile), words, (name, "attention"))
                )
    return found


def _patch_examples(data: ReportData, row: Row) -> list[ExampleRegion]:
    """The surest patches of each class, at the finest resolution there is."""
    found: list[ExampleRegion] = []
    for name in slide_table_names(row, "patches"):
        patches = _read_table(data, row, name)
        if patches is None:
            continue
        best = next((one for one in reversed(RESOLUTIONS) if one in patches["resolution"].to_pylist()), None)
        part = patches.filter(pc.equal(patches["resolution"], best))
        p = np.stack([part[f"p{k}"].to_numpy() for k in range(4)], axis=1)
        for k, ihc in enumerate(IHC_SCORES):
            for at in np.argsort(-p[:, k], kind="stable")[:EXAMPLES_PER_KIND].tolist():
                if p[at].argmax() == k:
                    words = f"p = {p[at, k]:.2f}, {best} resolution"
                    found.append((f"patches called {ihc}", _tile_box(part, at), words, (name, f"p{k}")))
    return found


def _tile_box(table: pa.Table | None, k: int) -> Box:
    assert table is not None
    x, y, size = (int(table[name][k].as_py()) for name in ("x", "y", "size"))
    return Box(x, y, size, size)
