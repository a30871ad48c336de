"""Overlays of the slide image in reports: membrane figures, attention, patch classes, saliency of networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from her2batch.reports.figures import CLASS_COLOURS, PALETTE
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import data_uri
from her2batch.store.cohort import Row, tables_of
from her2batch.tasks import IHC_SCORES, PATCH_PX, RESOLUTIONS
from her2batch.vision import heatmap

MEMBRANE_LAYERS: Final = {
    "intense_complete": "intense, complete",
    "moderate_complete": "moderate or stronger, complete",
    "faint": "faint or stronger",
}
"""Column of the table membrane → its name as an overlay."""

NUCLEAR_LAYERS: Final = {"intense": "strong staining", "moderate": "moderate or stronger", "faint": "weak or stronger"}
"""The same for markers that lie in nuclei."""


@dataclass(frozen=True)
class OverlayLayer:
    """An overlay of the slide image.

    size: width and height, level-0 px.  scale_ends: labels of the two ends of its colour scale; None for classes.
    source: table and columns.  origin: its left and top, level-0 px.
    """

    key: str
    label: str
    image_uri: str
    size: tuple[float, float]
    scale_ends: tuple[str, str] | None
    source: tuple[str, str]
    origin: tuple[float, float] = (0, 0)


def read_table(data: ReportData, row: Row, name: str) -> pa.Table | None:
    """Read a table of a slide; None when it can't be read."""
    try:
        return data.cohort.read(name, row["slide_id"])
    except (OSError, pa.ArrowInvalid):
        return None


def _layer(
    key: str,
    label: str,
    image: NDArray[np.uint8],
    cell_px: float,
    ends: tuple[str, str] | None,
    source: tuple[str, str],
    origin: tuple[float, float] = (0, 0),
) -> OverlayLayer:
    """Return a layer from its image, (rows, columns, 4) RGBA with one px per cell. cell_px: level-0 px of a cell."""
    rows, columns = image.shape[:2]
    image_uri = data_uri("image/png", heatmap.encode_png(image))
    return OverlayLayer(key, label, image_uri, (columns * cell_px, rows * cell_px), ends, source, origin)


def membrane_layers(
    membrane: pa.Table | None, cells: heatmap.GridCells, tile_px: float, is_nuclear: bool = False
) -> list[OverlayLayer]:
    """Return the layers of MEMBRANE_LAYERS, or NUCLEAR_LAYERS: shares of the cellular area of each tile."""
    if membrane is None:
        return []
    own = cells[membrane["tile"].to_numpy()]
    ends = ("0 %", f"≥ {100 * heatmap.SHARE_SCALE_END:.0f} % of the cellular area")
    layers = []
    for name, label in (NUCLEAR_LAYERS if is_nuclear else MEMBRANE_LAYERS).items():
        image = heatmap.heatmap_image(own, membrane[name].to_numpy(), heatmap.SHARE_SCALE_END)
        layers.append(_layer(name, label, image, tile_px, ends, ("membrane", name)))
    return layers


def attention_layers(data: ReportData, row: Row, cells: heatmap.GridCells, tile_px: float) -> list[OverlayLayer]:
    """Return one layer for each MIL head: attention as a multiple of uniform attention over all tiles."""
    layers: list[OverlayLayer] = []
    for name in tables_of(row, "attention"):
        for (task, method, _), part in split_by_head(read_table(data, row, name)):
            weights = part["attention"].to_numpy() * part.num_rows
            scale_end = heatmap.attention_scale_end(weights)
            image = heatmap.heatmap_image(cells[part["tile"].to_numpy()], weights, scale_end)
            ends = ("0", f"≥ {scale_end:.1f} × uniform attention")
            key, label = f"attention-{len(layers)}", f"attention of {method}, {task}"
            layers.append(_layer(key, label, image, tile_px, ends, (name, "attention")))
    return layers


def split_by_head(attention: pa.Table | None) -> list[tuple[tuple[str, str, str], pa.Table]]:
    """Split a table of attention or saliency by head: [((task, method, input), rows of that head), …]."""
    if attention is None:
        return []
    names = ("task", "method", "input")
    heads = sorted(set(zip(*(attention[name].to_pylist() for name in names), strict=True)))
    parts = []
    for head in heads:
        masks = [pc.equal(attention[name], value) for name, value in zip(names, head, strict=True)]
        parts.append((head, attention.filter(pc.and_(pc.and_(masks[0], masks[1]), masks[2]))))
    return parts


def patch_layers(data: ReportData, row: Row) -> list[OverlayLayer]:
    """Return one layer for each resolution: each patch in the colour of its most probable class."""
    palette = np.array([_rgb_of(CLASS_COLOURS[score]) for score in IHC_SCORES], np.uint8)
    layers: list[OverlayLayer] = []
    for name in tables_of(row, "patches"):
        patches = read_table(data, row, name)
        for resolution, mpp in RESOLUTIONS.items():
            part = None if patches is None else patches.filter(pc.equal(patches["resolution"], resolution))
            if part is None or not part.num_rows:
                continue
            patch_px = PATCH_PX * mpp / row["mpp"]
            cells = heatmap.grid_cells(part["x"].to_numpy(), part["y"].to_numpy(), patch_px)
            classes = np.stack([part[f"p{k}"].to_numpy() for k in range(4)], axis=1).argmax(axis=1)
            image = heatmap.class_image(cells, classes, palette)
            key, label = f"patches-{len(layers)}", f"patch classes, {resolution}"
            layers.append(_layer(key, label, image, patch_px, None, (name, "p0…p3")))
    return layers


def saliency_layers(data: ReportData, row: Row) -> list[OverlayLayer]:
    """Return one layer for each network of thumbnails: the places that raise the score of its most likely class."""
    layers: list[OverlayLayer] = []
    for name in tables_of(row, "saliency"):
        for (task, method, _), part in split_by_head(read_table(data, row, name)):
            x, y = (part[axis].to_numpy() for axis in ("x", "y"))
            origin = (float(x.min()), float(y.min()))
            size = float(part["size"].to_numpy().mean())
            cells = heatmap.grid_cells(x - x.min(), y - y.min(), size)
            image = heatmap.heatmap_image(cells, part["saliency"].to_numpy(), 1)
            key, label = f"saliency-{len(layers)}", f"saliency of {method}, {task}"
            layers.append(_layer(key, label, image, size, ("0", "largest"), (name, "saliency"), origin))
    return layers


def _rgb_of(name: str) -> tuple[int, int, int]:
    """Return a colour of PALETTE, in light mode, as RGB 0–255."""
    text = PALETTE[name][0]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
