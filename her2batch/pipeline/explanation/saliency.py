"""Saliency of the thumbnail networks of a bundle, as a table: the places that raise the predicted class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.models.bundle import ModelEntry
from her2batch.models.nets import ImageClassifier
from her2batch.store import schemas
from her2batch.vision.thumbnail import crop_to_tissue, letterbox_frame


def saliency_table(
    slide_id: str,
    networks: Sequence[tuple[ModelEntry, ImageClassifier]],
    thumbnail: NDArray[np.uint8],
    tiles: NDArray[np.int32],
    width: int,
    height: int,
) -> pa.Table:
    """Return the saliency table of a slide: one row a place of each network's map, without its empty margins.

    thumbnail: the stored one, (H, W, 3).  tiles: (n, 3) x, y, size, level-0 px.  width, height: of level 0.  A network
    whose features have no known grid has no rows.
    """
    from her2batch.models.explanation.class_activation import class_activation_map

    schema = schemas.table_schema("saliency")
    parts, frame = [schema.empty_table()], letterbox_frame(thumbnail, tiles, width, height)
    for entry, classify in networks:
        pixels, _ = crop_to_tissue(thumbnail, tiles, width, height, entry.edge)
        values = class_activation_map(classify, pixels)
        if values is None:
            continue
        places, inside = map_places(values.shape, frame)
        names = (slide_id, entry.task, entry.method, entry.input)
        texts = [pa.array([text] * len(places), pa.string()) for text in names]
        parts.append(pa.table([*texts, *places.T, values[inside]], schema=schema))
    return pa.concat_tables(parts)


def map_places(
    shape: tuple[int, ...], frame: tuple[NDArray[np.float64], NDArray[np.float64], float]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return x, y and size of the places of a map that show the slide, (n, 3) level-0 px, and where they lie in it.

    shape: rows and columns.  frame: as of `letterbox_frame`.
    """
    corner, (box_width, box_height), edge = frame
    rows, columns = shape
    assert rows == columns
    size = edge / rows
    margin = (edge - np.array([box_width, box_height])) / 2
    starts = np.arange(rows) * size
    inside_x, inside_y = ((starts + size > gap) & (starts < edge - gap) for gap in margin)
    inside = inside_y[:, None] & inside_x[None, :]
    row, column = np.nonzero(inside)
    x, y = (corner[k] - margin[k] + starts[index] for k, index in enumerate((column, row)))
    places = np.stack([x, y, np.full(len(x), size)], axis=1).round().astype(np.int32)
    return places, inside
