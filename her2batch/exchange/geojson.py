"""Export of tiles, patches and heatmaps as QuPath objects, in the GeoJSON dialect of QuPath 0.4 and later.

A file is a FeatureCollection with one Feature on each line. Coordinates are level-0 px, as in QuPath. Tiles are tile
objects, classified patches and places of saliency maps are detections, the outline of all tiles is a locked annotation.
The values from the tables are measurements, which QuPath shows as measurement maps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from her2batch.tasks import IHC_SCORES

CLASS_COLOURS: Final = {"0": (90, 120, 200), "1+": (240, 200, 80), "2+": (230, 130, 40), "3+": (150, 40, 20)}
"""HER2 score → colour in QuPath: R, G, B."""

GREY: Final = (128, 128, 128)

SALIENCY_COLOUR: Final = (160, 0, 110)
"""As of heatmaps in reports and in the viewer."""

TISSUE: Final = "Tissue"
TILE: Final = "Tile"

TILE_MEASUREMENTS: Final = {"dab": "DAB OD mean", "tissue": "Tissue share", "blur": "Blur"}
"""Column of the tiles table → name of the measurement in QuPath."""

SEAM: Final = 1
"""Largest gap or overlap between neighbouring tiles, level-0 px, when their size is no integer (plan_tiles)."""

NumberTexts = list[str | None]
"""A column of numbers as JSON text; None for missing values."""


def write_feature_collection(path: Path, features: Iterable[str]) -> None:
    """Write Features (JSON text) as a FeatureCollection, one at a time."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for feature in features:
            file.write(separator + feature)
            separator = ",\n"
        file.write("\n]}\n")


def slide_features(
    row: Mapping[str, Any],
    tiles: pa.Table,
    membrane: pa.Table | None,
    attention: Mapping[str, pa.Table],
    patches: Mapping[str, pa.Table],
    saliency: Mapping[str, pa.Table] = MappingProxyType({}),
) -> Iterator[str]:
    """Yield all objects of one slide: the outline of its tissue, its tiles, its patches, the places of saliency maps.

    row: of the slides table.  membrane: one row for each tile.  attention, patches, saliency: id of a bundle → its
    table.
    """
    if not len(tiles):
        return
    yield outline_feature(row, tiles)
    yield from tile_features(tiles, membrane, attention)
    for bundle, table in patches.items():
        yield from patch_features(bundle, table)
    for bundle, table in saliency.items():
        yield from saliency_features(bundle, table)


def outline_feature(row: Mapping[str, Any], tiles: pa.Table) -> str:
    """Return the outline of all tiles as a locked annotation, with the area of the tissue and the number of tiles."""
    (area,) = number_texts(pa.chunked_array([[row["tissue_mm2"]]], pa.float32()))
    texts = [f'"Tissue mm^2": {area}'] if area is not None else []
    texts.append(f'"Tiles": {len(tiles)}')
    geometry = shapely.to_geojson(outline_polygons(tiles))
    return _feature(geometry, "annotation", TISSUE, GREY, texts, ', "name": "Tiles of her2batch", "isLocked": true')


def tile_features(tiles: pa.Table, membrane: pa.Table | None, attention: Mapping[str, pa.Table]) -> Iterator[str]:
    """Yield every tile as a tile object. The attention of all tiles of a slide sums to 1."""
    columns = {"Tile": number_texts(tiles["tile"])}
    columns |= {label: number_texts(tiles[name]) for name, label in TILE_MEASUREMENTS.items()}
    if membrane is not None:
        shares = [name for name in membrane.column_names if name not in ("slide_id", "tile")]
        columns |= {f"Membrane: {name.replace('_', ', ')}": number_texts(membrane[name]) for name in shares}
    for bundle, table in attention.items():
        columns |= {
            f"Attention: {head} ({bundle})": texts for head, texts in _attention_texts(table, len(tiles)).items()
        }
    yield from _squares(tiles, "tile", [TILE] * len(tiles), dict.fromkeys([TILE], GREY), columns)


def patch_features(bundle: str, patches: pa.Table) -> Iterator[str]:
    """Yield every classified patch as a detection of its most probable class, for example `Patch low: 3+`."""
    p = np.stack([patches[f"p{k}"].to_numpy() for k in range(len(IHC_SCORES))], axis=1)
    best = [IHC_SCORES[k] for k in p.argmax(axis=1)] if len(p) else []
    resolutions = patches["resolution"].to_pylist()
    classes = [f"Patch {resolution}: {score}" for resolution, score in zip(resolutions, best, strict=True)]
    colours = {name: CLASS_COLOURS[name.rsplit(" ", 1)[1]] for name in set(classes)}
    columns = {f"p {name} ({bundle})": number_texts(patches[f"p{k}"]) for k, name in enumerate(IHC_SCORES)}
    yield from _squares(patches, "detection", classes, colours, columns)


def saliency_features(bundle: str, saliency: pa.Table) -> Iterator[str]:
    """Yield the places of each thumbnail network's saliency map as detections, with their saliency, 0–1."""
    names = zip(*(saliency[column].to_pylist() for column in ("task", "method", "input")), strict=True)
    classes = [f"Saliency: {' '.join(parts)}" for parts in names]
    columns = {f"Saliency ({bundle})": number_texts(saliency["saliency"])}
    yield from _squares(saliency, "detection", classes, dict.fromkeys(classes, SALIENCY_COLOUR), columns)


def outline_polygons(tiles: pa.Table) -> BaseGeometry:
    """Return the area that the tiles cover: polygons in level-0 px, with the seams between neighbours closed.

    Tiles of a row are joined first, because the union of 20,000 squares would take ten times as long.
    """
    x, y, size = (tiles[name].to_numpy().astype(np.int64) for name in ("x", "y", "size"))
    order = np.lexsort((x, y))
    x, y, size = x[order], y[order], size[order]
    apart = (np.diff(y) != 0) | (np.abs(np.diff(x) - size[:-1]) > SEAM)
    first = np.concatenate([[0], np.flatnonzero(apart) + 1])
    last = np.concatenate([first[1:], [len(x)]]) - 1
    strips = shapely.box(x[first], y[first], x[last] + size[last], y[first] + size[first])
    closed = shapely.unary_union(strips).buffer(SEAM, join_style="mitre").buffer(-SEAM, join_style="mitre")
    return shapely.normalize(shapely.set_precision(closed, 1.0))


def number_texts(column: pa.ChunkedArray) -> NumberTexts:
    """Return numbers as the shortest text that reads back as the same value; None if they are not finite."""
    texts: NumberTexts = pc.cast(column, pa.string()).to_pylist()
    if not pa.types.is_floating(column.type):
        return texts
    finite = pc.is_finite(column).to_pylist()
    return [text if is_finite else None for text, is_finite in zip(texts, finite, strict=True)]


def _attention_texts(table: pa.Table, n: int) -> dict[str, NumberTexts]:
    """Return the attention of n tiles for each head: name of the head (task, method, input) → one value a tile."""
    names = zip(*(table[column].to_pylist() for column in ("task", "method", "input")), strict=True)
    heads = [" ".join(parts) for parts in names]
    attention: dict[str, NumberTexts] = {head: [None] * n for head in dict.fromkeys(heads)}
    for head, tile, text in zip(heads, table["tile"].to_pylist(), number_texts(table["attention"]), strict=True):
        if 0 <= tile < n:
            attention[head][tile] = text
    return attention


def _squares(
    table: pa.Table,
    kind: str,
    classes: list[str],
    colours: Mapping[str, tuple[int, ...]],
    columns: Mapping[str, NumberTexts],
) -> Iterator[str]:
    """Yield each row of x, y, size as a square with its class and measurements. kind: of QuPath object."""
    corners: NDArray[np.int64] = np.stack([table[name].to_numpy() for name in ("x", "y", "size")], axis=1)
    names = [_text(name) for name in columns]
    rows = zip(*columns.values(), strict=True) if columns else iter([()] * len(table))
    for (x, y, size), name, values in zip(corners.tolist(), classes, rows, strict=True):
        right, bottom = x + size, y + size
        ring = f"[[{x}, {y}], [{right}, {y}], [{right}, {bottom}], [{x}, {bottom}], [{x}, {y}]]"
        texts = [f"{key}: {value}" for key, value in zip(names, values, strict=True) if value is not None]
        yield _feature(f'{{"type": "Polygon", "coordinates": [{ring}]}}', kind, name, colours[name], texts)


def _feature(
    geometry: str, kind: str, name: str, colour: tuple[int, ...], measurements: Iterable[str], more: str = ""
) -> str:
    classification = f'{{"name": {_text(name)}, "color": {list(colour)}}}'
    values = f'"measurements": {{{", ".join(measurements)}}}'
    properties = f'"objectType": "{kind}", "classification": {classification}{more}, {values}'
    return f'{{"type": "Feature", "geometry": {geometry}, "properties": {{{properties}}}}}'


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
