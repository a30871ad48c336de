"""A slide's tiles and heatmaps as QuPath objects: GeoJSON in the dialect that QuPath writes and reads from 0.4 on.

A FeatureCollection, one Feature a line. Coordinates are level-0 px, as QuPath's are. Tiles are tile objects, classified
patches are detections, the outline of all tiles is a locked annotation; what the tables hold of each is in its
measurements, from which QuPath colours its measurement maps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from her2batch.tasks import IHC_SCORES

CLASS_COLOURS: Final = {"0": (90, 120, 200), "1+": (240, 200, 80), "2+": (230, 130, 40), "3+": (150, 40, 20)}
"""R, G, B of the classes in QuPath."""

GREY: Final = (128, 128, 128)

TISSUE: Final = "Tissue"
TILE: Final = "Tile"

TILE_MEASUREMENTS: Final = {"dab": "DAB OD mean", "tissue": "Tissue share", "blur": "Blur"}
"""Column of tiles → its name in QuPath."""

SEAM: Final = 1
"""Gap or overlap between neighbours where a tile is no whole number of level-0 px (vision.grid.plan)."""

Texts = list[str | None]
"""A column as numbers in JSON; None where there is none."""


def write_feature_collection(path: Path, features: Iterable[str]) -> None:
    """A FeatureCollection of Features in JSON, one after the other: nothing is held."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        mark = "\n"
        for feature in features:
            file.write(mark + feature)
            mark = ",\n"
        file.write("\n]}\n")


def slide_features(
    row: Mapping[str, Any],
    tiles: pa.Table,
    membrane: pa.Table | None,
    attention: Mapping[str, pa.Table],
    patches: Mapping[str, pa.Table],
) -> Iterator[str]:
    """All objects of one slide: its outline, its tiles, its patches.

    row: the slide's row.  membrane: tile by tile as `tiles`.  attention, patches: a bundle's id → its table.
    """
    if not len(tiles):
        return
    yield outline_feature(row, tiles)
    yield from tile_features(tiles, membrane, attention)
    for bundle, table in patches.items():
        yield from patch_features(bundle, table)


def outline_feature(row: Mapping[str, Any], tiles: pa.Table) -> str:
    """The tissue, as far as it is tiled: a locked annotation with the slide's own figures."""
    (area,) = number_texts(pa.chunked_array([[row["tissue_mm2"]]], pa.float32()))
    texts = [f'"Tissue mm^2": {area}'] if area is not None else []
    texts.append(f'"Tiles": {len(tiles)}')
    geometry = shapely.to_geojson(outline_polygons(tiles))
    return _feature(geometry, "annotation", TISSUE, GREY, texts, ', "name": "Tiles of her2batch", "isLocked": true')


def tile_features(tiles: pa.Table, membrane: pa.Table | None, attention: Mapping[str, pa.Table]) -> Iterator[str]:
    """Every tile as a tile object. Attention is the tile's share: over a slide it sums to 1."""
    columns = {"Tile": number_texts(tiles["tile"])}
    columns |= {words: number_texts(tiles[name]) for name, words in TILE_MEASUREMENTS.items()}
    if membrane is not None:
        shares = [name for name in membrane.column_names if name not in ("slide_id", "tile")]
        columns |= {f"Membrane: {name.replace('_', ', ')}": number_texts(membrane[name]) for name in shares}
    for bundle, table in attention.items():
        columns |= {f"Attention: {head} ({bundle})": texts for head, texts in _attention(table, len(tiles)).items()}
    yield from _squares(tiles, "tile", [TILE] * len(tiles), dict.fromkeys([TILE], GREY), columns)


def patch_features(bundle: str, patches: pa.Table) -> Iterator[str]:
    """Every classified patch as a detection of its most probable class, named by its resolution: `Patch low: 3+`."""
    p = np.stack([patches[f"p{k}"].to_numpy() for k in range(len(IHC_SCORES))], axis=1)
    best = [IHC_SCORES[k] for k in p.argmax(axis=1)] if len(p) else []
    resolutions = patches["resolution"].to_pylist()
    classes = [f"Patch {where}: {what}" for where, what in zip(resolutions, best, strict=True)]
    colours = {name: CLASS_COLOURS[name.rsplit(" ", 1)[1]] for name in set(classes)}
    columns = {f"p {name} ({bundle})": number_texts(patches[f"p{k}"]) for k, name in enumerate(IHC_SCORES)}
    yield from _squares(patches, "detection", classes, colours, columns)


def outline_polygons(tiles: pa.Table) -> BaseGeometry:
    """What the tiles cover: polygons, level-0 px, seams between neighbours closed.

    Tiles of a row are joined first: the union of 20,000 squares would take ten times as long.
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


def number_texts(column: pa.ChunkedArray) -> Texts:
    """Numbers as the shortest text that reads back as the same value; None for what is no finite number."""
    texts: Texts = pc.cast(column, pa.string()).to_pylist()
    if not pa.types.is_floating(column.type):
        return texts
    finite = pc.is_finite(column).to_pylist()
    return [text if good else None for text, good in zip(texts, finite, strict=True)]


def _attention(table: pa.Table, n: int) -> dict[str, Texts]:
    """Head → its attention, tile by tile."""
    heads = [" ".join(one) for one in zip(*(table[k].to_pylist() for k in ("task", "method", "input")), strict=True)]
    found: dict[str, Texts] = {head: [None] * n for head in dict.fromkeys(heads)}
    for head, tile, text in zip(heads, table["tile"].to_pylist(), number_texts(table["attention"]), strict=True):
        if 0 <= tile < n:
            found[head][tile] = text
    return found


def _squares(
    table: pa.Table, kind: str, classes: list[str], colours: Mapping[str, tuple[int, ...]], columns: Mapping[str, Texts]
) -> Iterator[str]:
    """Each row of x, y, size as a square with its measurements."""
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
    said = f'{{"name": {_text(name)}, "color": {list(colour)}}}'
    properties = (
        f'"objectType": "{kind}", "classification": {said}{more}, "measurements": {{{", ".join(measurements)}}}'
    )
    return f'{{"type": "Feature", "geometry": {geometry}, "properties": {{{properties}}}}}'


def _text(words: str) -> str:
    return json.dumps(words, ensure_ascii=False)
