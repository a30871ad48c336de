"""Schemas of the table of cells, and of the predictions that are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.store.tables.column import F32, I32, TEXT, Column

OD_STEP, SHARE_STEP = 1 / 512, 1 / 256
"""Units of optical densities and of shares: far below what differs between two cells."""

CELL_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("cell", I32, "number of the cell, from 0, in the order of the tiles", byte_split=True),
    Column("tile", I32, "tile in which the centre of the nucleus lies, as in tiles"),
    Column("piece", pa.int16(), "piece of tissue, as in tiles"),
    Column("x", F32, "centre of the nucleus, level-0 px, in steps of 0.25", 0.25, byte_split=True),
    Column("y", F32, "centre of the nucleus, level-0 px, in steps of 0.25", 0.25, byte_split=True),
    Column("area", F32, "area of the nucleus, µm², in steps of 1/8", 1 / 8),
    Column("elongation", F32, "long over short axis of the nucleus, in steps of 1/64", 1 / 64),
    Column("haematoxylin", F32, "mean haematoxylin of the nucleus, OD, in steps of 1/512", OD_STEP),
    Column("nuclear_dab", F32, "mean DAB of the nucleus, OD, in steps of 1/512", OD_STEP),
    Column("membrane_dab", F32, "mean DAB of the membrane, OD, in steps of 1/512", OD_STEP),
    Column("cytoplasm_dab", F32, "mean DAB between nucleus and membrane, OD, in steps of 1/512", OD_STEP),
    Column("faint", F32, "share of the circumference with faint or stronger membrane staining", SHARE_STEP),
    Column("moderate", F32, "share of the circumference with moderate or stronger membrane staining", SHARE_STEP),
    Column("intense", F32, "share of the circumference with intense membrane staining", SHARE_STEP),
    Column("tumour", F32, "likelihood that it is a tumour cell, 0–1; 1 or 0 where regions decide", SHARE_STEP),
    Column(
        "category",
        pa.uint8(),
        "HER2: 0–3, the cell's own 0, 1+, 2+, 3+; ER, PR, Ki-67: 0 negative, 1 weak, 2 moderate, 3 strong",
    ),
)
"""Cells of a slide, sorted by tile, then from top to bottom."""

CELL_PREDICTION_COLUMNS = (
    Column("percent", pa.list_(F32), "percent of the tumour cells of category 0, 1, 2, 3"),
    Column("h_score", F32, "1 × percent weak + 2 × percent moderate + 3 × percent strong, 0–300"),
    Column("n_cells", I32, "number of cells"),
    Column("n_tumour", I32, "number of tumour cells"),
)
"""Further columns of predictions/cells."""

CELL_SCHEMA = pa.schema([pa.field(column.name, column.type) for column in CELL_COLUMNS])


def cells_table(slide_id: str, columns: Mapping[str, NDArray[Any]]) -> pa.Table:
    """The cells table of one slide, from its columns but slide_id, (n,) each. Values are rounded to their steps."""
    values: dict[str, Any] = {"slide_id": pa.array([slide_id] * len(columns["cell"]), TEXT)}
    for column in CELL_COLUMNS[1:]:
        own = columns[column.name]
        if column.step is not None:
            own = np.round(own / np.float64(column.step)) * np.float64(column.step)
        values[column.name] = pa.array(own.astype(column.type.to_pandas_dtype()))
    return pa.table(values, CELL_SCHEMA)
