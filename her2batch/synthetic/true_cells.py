"""The truth of every cell of a synthetic slide: a table, and the comparison of detected cells with it.

cells = pq.read_table("truth/P001-1.cells.parquet")
match = match_cells(cells, x, y, mpp)        # row of the true cell of each detection, -1 for none
precision, recall = np.mean(match >= 0), np.count_nonzero(match >= 0) / len(cells)
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from her2batch.store.tables.column import Column
from her2batch.synthetic.cell_layout import ERYTHROCYTE, FIBROBLAST, KIND_NAMES, LYMPHOCYTE, TUMOUR
from her2batch.synthetic.cell_sums import CellSums
from her2batch.synthetic.specimen import SlideTruth, SyntheticTissue

NUCLEATED = (FIBROBLAST, LYMPHOCYTE, TUMOUR)
"""Kinds of cells that have a nucleus."""

MIN_NUCLEUS_UM2 = 2.0
"""Least visible area of a nucleus: less is hidden behind its neighbours, or outside the slide."""

F32 = pa.float32()

CELL_COLUMNS: tuple[Column, ...] = (
    Column("slide_id", pa.string(), "key"),
    Column("x", F32, "centre of gravity of the nucleus (of the cell for an erythrocyte), level-0 px"),
    Column("y", F32, "as x"),
    Column("kind", pa.string(), "tumour, fibroblast, lymphocyte or erythrocyte, which has no nucleus"),
    Column("tumour", pa.bool_(), "the cell is a tumour cell"),
    Column("category", pa.uint8(), "of a tumour cell, as painted. HER2: 0 no membrane staining, 1 faint, incomplete, "
           "2 weak to moderate and complete, 3 intense and complete. ER, PR, Ki-67: nucleus 0 negative, 1 weak, "
           "2 moderate, 3 strong"),
    Column("completeness", F32, "share of a tumour cell's membrane that is stained, 0–1; null for nuclear markers"),
    Column("area", F32, "visible area of the nucleus, µm²"),
    Column("long_axis", F32, "length of the ellipse with the same moments as the nucleus, µm"),
    Column("short_axis", F32, "width of that ellipse, µm"),
    Column("angle", F32, "of the long axis from the x axis towards the y axis, radians, 0–π"),
    Column("elongation", F32, "long over short axis"),
    Column("haematoxylin", F32, "mean density of the nucleus as painted, before blur and tone curve, OD"),
    Column("nuclear_dab", F32, "as haematoxylin"),
    Column("membrane_dab", F32, "density of the stained part of the membrane, OD"),
    Column("cytoplasm_dab", F32, "mean density of the cytoplasm, OD"),
    Column("edge_um", F32, "distance to the outline of the tissue, µm"),
    Column("artefact", pa.string(), "pen, fold, blur or bubble that covers the cell; null for none"),
)  # fmt: skip
"""Columns of `truth/SLIDE.cells.parquet`, one row a cell that is visible on the slide."""

CELL_SCHEMA = pa.schema([pa.field(column.name, column.type) for column in CELL_COLUMNS])

MEAN_CHROMATIN = 0.8
"""Mean of the painter's chromatin profile over the nucleus."""


def empty_cells() -> pa.Table:
    """Return the table of a slide without cells."""
    return CELL_SCHEMA.empty_table()


def cell_table(truth: SlideTruth, specimen: SyntheticTissue, sums: CellSums) -> pa.Table:
    """Return the cells of a slide that was painted with `sums`, in the order of the lattice."""
    lattice, cells, mpp = specimen.lattice, specimen.cells, truth.mpp
    kind = lattice.kind.ravel()
    n_px = sums.nucleus[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        mx, my, mxx, myy, mxy = sums.nucleus[1:] / n_px
    x, y = cells.x.ravel() + mx, cells.y.ravel() + my
    shown = np.isin(kind, (*NUCLEATED, ERYTHROCYTE)) & (n_px * mpp**2 >= MIN_NUCLEUS_UM2)
    shown &= (x >= 0) & (y >= 0) & (x < truth.width) & (y < truth.height)
    rows = np.flatnonzero(shown)
    long, short, angle = _ellipse_axes(mxx[rows] - mx[rows] ** 2, myy[rows] - my[rows] ** 2, (mxy - mx * my)[rows])
    tumour, her2 = kind[rows] == TUMOUR, truth.stain == "her2" and truth.kind != "nuclear"
    thickness, dab_factor, edge, artefact = _fields_at(specimen, x[rows], y[rows])
    membrane, stained = sums.membrane[:, rows]
    completeness = stained / np.maximum(membrane, 1)
    in_tumour = tumour if her2 else np.zeros_like(tumour)

    def painted(density: NDArray[np.float32], factor: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.asarray(density.ravel()[rows] * factor)

    columns = {
        "slide_id": [truth.slide_id] * len(rows),
        "x": x[rows], "y": y[rows],
        "kind": np.array(KIND_NAMES)[kind[rows]],
        "tumour": tumour,
        "category": pa.array(specimen.staining.ravel()[rows], mask=~tumour),
        "completeness": pa.array(completeness.astype(np.float32), mask=~in_tumour),
        "area": n_px[rows] * mpp**2,
        "long_axis": long * mpp, "short_axis": short * mpp, "angle": angle,
        "elongation": long / np.maximum(short, 1e-6),
        "haematoxylin": painted(cells.nucleus_h * MEAN_CHROMATIN + cells.body_h, thickness),
        "nuclear_dab": painted(cells.nucleus_d * MEAN_CHROMATIN + cells.body_d, thickness * dab_factor),
        "membrane_dab": painted(cells.ring_d + cells.body_d, thickness * dab_factor),
        "cytoplasm_dab": painted(cells.body_d, thickness * dab_factor),
        "edge_um": edge,
        "artefact": artefact,
    }  # fmt: skip
    arrays = [pa.array(values).cast(field.type) for field, values in zip(CELL_SCHEMA, columns.values(), strict=True)]
    return pa.table(arrays, CELL_SCHEMA)


def _ellipse_axes(
    xx: NDArray[np.float64], yy: NDArray[np.float64], xy: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return long axis, short axis (whole lengths) and angle of the ellipses with these second moments."""
    xx, yy = xx + 1 / 12, yy + 1 / 12  # the moment of a px itself
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    long, short = 4 * np.sqrt(middle + spread), 4 * np.sqrt(np.maximum(middle - spread, 1 / 12))
    return long, short, np.mod(np.arctan2(2 * xy, xx - yy) / 2, np.pi)


def _fields_at(
    specimen: SyntheticTissue, x: NDArray[np.floating], y: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], pa.Array]:
    """Return thickness, factor on DAB, distance to the tissue's outline (µm) and artefact at positions x, y."""
    fields, (h, w) = specimen.fields, specimen.fields.tissue.shape
    row = np.clip(y // fields.px, 0, h - 1).astype(np.intp)
    column = np.clip(x // fields.px, 0, w - 1).astype(np.intp)
    artefact = np.full(len(row), "", dtype="<U8")
    for name, mask in specimen.masks.items():
        if name not in ("tissue", "tumour"):
            artefact[mask[row, column]] = name
    dab_factor = np.ones(len(row), np.float32) if fields.dab_factor is None else fields.dab_factor[row, column]
    names = pc.replace_with_mask(pa.array(artefact), artefact == "", pa.scalar(None, pa.string()))
    return fields.thickness[row, column], dab_factor, fields.tissue[row, column], names


def match_cells(
    cells: pa.Table, x: NDArray[np.floating], y: NDArray[np.floating], mpp: float, grow_um: float = 0.0
) -> NDArray[np.int64]:
    """Return for each detected cell the row of the true cell in whose nucleus its centre lies, one to one; -1 for none.

    cells: a table with CELL_COLUMNS.  x, y: detected centres, level-0 px.  mpp: level-0 µm/px.  grow_um: tolerance by
    which the nuclei are enlarged.  Of several detections in one nucleus the nearest to its centre counts.
    """
    true = np.stack([cells["x"].to_numpy(), cells["y"].to_numpy()], axis=1).astype(np.float64)
    found = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], axis=1)
    out = np.full(len(found), -1, np.int64)
    if not len(true) or not len(found):
        return out
    half_long, half_short = (cells[name].to_numpy() / 2 + grow_um for name in ("long_axis", "short_axis"))
    pairs = cKDTree(found).sparse_distance_matrix(cKDTree(true), float(half_long.max()) / mpp, output_type="coo_matrix")
    detection, row = pairs.row, pairs.col
    offset = (found[detection] - true[row]) * mpp
    angle = cells["angle"].to_numpy()[row]
    along = offset[:, 0] * np.cos(angle) + offset[:, 1] * np.sin(angle)
    across = offset[:, 1] * np.cos(angle) - offset[:, 0] * np.sin(angle)
    within = (along / half_long[row]) ** 2 + (across / half_short[row]) ** 2
    taken = np.zeros(len(true), bool)
    for k in np.argsort(within, kind="stable").tolist():
        if within[k] > 1:
            break
        if out[detection[k]] < 0 and not taken[row[k]]:
            out[detection[k]] = row[k]
            taken[row[k]] = True
    return out
