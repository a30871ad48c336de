"""From what the stages gave to the slide's tables and its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.models.predictor import BundlePredictor, SlideFeatures
from her2batch.pipeline.inventory import SlideJob
from her2batch.pipeline.stages import StageContext, State
from her2batch.slides.slide import SlideInfo
from her2batch.store import schemas
from her2batch.store.cohort import Draft, Row
from her2batch.tasks import MEMBRANE as MEMBRANE_RULE
from her2batch.vision.membrane import MEMBRANE
from her2batch.vision.tile_grid import TileGrid

BLANK_RANGE = 2
"""A tile whose grey values span no more than this holds no image: glass has noise, tissue has structure."""

DONE: Row = {"status": "done", "error_code": None, "error": None}

BLANK_LIMIT = 0.01
"""Share of a slide's tissue tiles that may be blank; beyond, the slide fails."""


def row_facts(info: SlideInfo) -> Row:
    """What a slide says of itself, as columns of `slides`."""
    return {
        "format": info.format,
        "reader": info.reader,
        "width": info.width,
        "height": info.height,
        "level_downsamples": list(info.level_downsamples),
        "mpp": info.mpp,
        "mpp_source": info.mpp_source,
        "objective": info.objective,
    }


def write_tables(
    draft: Draft, state: State, context: StageContext, todo: SlideJob, judge: BundlePredictor | None = None
) -> Row:
    """Write every table of a slide and its picture to the draft; returns the columns of its row.

    judge: the heads of the bundle, if there is one.
    Raises SlideError `blank-tiles`; OSError when the disk refuses.
    """
    grid: TileGrid = state["grids"]["tiles"]
    order = _order(state, "tiles")
    n = len(grid.tiles)
    blank = int(_rows(state, "tiles_blank", order, n).sum())
    if blank > BLANK_LIMIT * n:
        what = f"{blank} of {n} tiles inside its tissue hold no image"
        raise SlideError("blank-tiles", todo.source.path, what)
    numbers = pa.array(np.arange(n, dtype=np.int32))
    ids = pa.array([todo.slide_id] * n, pa.string())
    draft.write("tiles", _tiles(ids, numbers, grid, state, order))
    membrane = _rows(state, "tiles_membrane", order, n, len(MEMBRANE)).astype(np.float32)
    columns = {name: membrane[:, k] for k, name in enumerate(MEMBRANE)}
    draft.write("membrane", pa.table({"slide_id": ids, "tile": numbers, **columns}, schemas.schema("membrane")))
    embeddings = {}
    for name in context.plan.encoders:
        vectors = _rows(state, f"embeddings/{name}", order, n, context.dims[name])
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        draft.write(f"embeddings/{encoder_folder(name)}", schemas.embeddings(todo.slide_id, numbers, flat))
        embeddings[name] = vectors
    patches = _write_nets(draft, state, context, todo)
    rows = [{**one, "slide_id": todo.slide_id, "patient_id": todo.patient_id} for one in state["predictions"]]
    draft.write(f"predictions/{MEMBRANE_RULE}", pa.Table.from_pylist(rows, schemas.schema("predictions")))
    draft.thumbnail().write_bytes(state["picture"])
    row = {**_judged(state, n, order), "blank_tiles": blank, "stain": todo.stain or state["marker"], **DONE}
    if judge is not None:
        nets = {(one["task"], one["method"], one["input"]): np.array(one["p"], np.float32)
                for one in state.get("thumbnails", [])}  # fmt: skip
        evidence = SlideFeatures(row["stain"], tuple(row["flags"]), embeddings, patches, nets)
        for name, table in prediction_tables(judge, evidence, todo.slide_id, todo.patient_id).items():
            draft.write(name, table)
    return row


def prediction_tables(
    judge: BundlePredictor, evidence: SlideFeatures, slide_id: str, patient_id: str | None
) -> dict[str, pa.Table]:
    """What a bundle says of a slide: its predictions, and the attention of its MIL heads where it has some."""
    found, attention = judge(evidence)
    rows = [{**one, "slide_id": slide_id, "patient_id": patient_id} for one in found]
    folder = judge.bundle.id
    tables = {f"predictions/{folder}": pa.Table.from_pylist(rows, schemas.schema("predictions"))}
    parts = []
    for key, shares in attention.items():
        named = [pa.array([one] * len(shares), pa.string()) for one in (slide_id, *key)]
        tiles = pa.array(np.arange(len(shares), dtype=np.int32))
        parts.append(pa.table([*named, tiles, pa.array(shares)], schema=schemas.schema("attention")))
    if parts:
        tables[f"attention/{folder}"] = pa.concat_tables(parts)
    return tables


def encoder_folder(encoder: str) -> str:
    """An encoder's name as a folder name: 'timm:resnet18.a1' has a colon, which shares may refuse."""
    return encoder.replace(":", "-").replace("/", "-")


def _judged(state: State, n_tiles: int, order: NDArray[np.int64]) -> Row:
    """Tissue and quality, as columns of `slides`."""
    quality, tissue = state["quality"].with_tiles(_rows(state, "tiles_blur", order, n_tiles)), state["tissue"]
    area = float(tissue.mask.sum()) * state["overview_mpp"] ** 2 / 1e6
    flags = [*state["notes"], *quality.flags] + (
        ["no-tissue"] if n_tiles == 0 and "no-tissue" not in quality.flags else []
    )
    return {
        "tissue_mm2": area,
        "tissue_method": tissue.method,
        "tissue_disagreement": tissue.disagreement,
        "n_tiles": n_tiles,
        "flags": flags,
        "blur": quality.blur,
        "pen": quality.pen,
        "saturated": quality.saturated,
        "background": quality.background,
    }


def _tiles(ids: pa.Array, numbers: pa.Array, grid: TileGrid, state: State, order: NDArray[np.int64]) -> pa.Table:
    n = len(grid.tiles)
    columns = {
        "slide_id": ids,
        "tile": numbers,
        **{name: grid.tiles[:, k].astype(np.int32) for k, name in enumerate(("x", "y", "size"))},
        "tissue": state["fractions"].astype(np.float32),
        "dab": _rows(state, "tiles_dab", order, n).astype(np.float32),
        "blur": _rows(state, "tiles_blur", order, n).astype(np.float32),
    }
    return pa.table(columns, schemas.schema("tiles"))


def _write_nets(draft: Draft, state: State, context: StageContext, todo: SlideJob) -> dict[str, NDArray[np.float32]]:
    """The tables of a bundle's nets, none without a bundle; returns the patches' probabilities by input."""
    if context.bundle is None:
        return {}
    parts = {name: _patches(state, name, grid, todo) for name, grid in state["grids"].items() if name != "tiles"}
    if parts:
        draft.write(f"patches/{context.bundle.id}", pa.concat_tables(list(parts.values())))
    if "thumbnails" in state:
        rows = [{**one, "slide_id": todo.slide_id} for one in state["thumbnails"]]
        draft.write(f"thumbnails/{context.bundle.id}", pa.Table.from_pylist(rows, schemas.schema("thumbnails")))
    return {name: patch_probabilities(part) for name, part in parts.items()}


def patch_probabilities(patches: pa.Table) -> NDArray[np.float32]:
    """(n, 4) of rows of the patches table."""
    return np.stack([patches.column(f"p{k}").to_numpy() for k in range(4)], axis=1).astype(np.float32)


def _patches(state: State, name: str, grid: TileGrid, todo: SlideJob) -> pa.Table:
    """Patch classes of one resolution; white and black patches are left out, as in training."""
    order = _order(state, name)
    n = len(grid.tiles)
    usable = _rows(state, f"{name}_usable", order, n).astype(bool)
    p = _rows(state, name, order, n, 4)[usable].astype(np.float32)
    tiles = grid.tiles[usable].astype(np.int32)
    return patch_rows(todo.slide_id, name, tiles, p)


def patch_rows(slide_id: str, name: str, tiles: NDArray[np.int32], p: NDArray[np.float32]) -> pa.Table:
    """Rows of the patches table of one input: (n, 3) x, y, size in level-0 px, (n, 4) probabilities."""
    columns: Mapping[str, Any] = {
        "slide_id": pa.array([slide_id] * len(p), pa.string()),
        "resolution": pa.array([name.removeprefix("patches-")] * len(p), pa.string()),
        **{axis: tiles[:, k] for k, axis in enumerate(("x", "y", "size"))},
        **{f"p{k}": p[:, k] for k in range(4)},
    }
    return pa.table(columns, schemas.schema("patches"))


def _order(state: State, grid: str) -> NDArray[np.int64]:
    """Positions that put block order back into tile order."""
    order: NDArray[np.int64] = np.argsort(state.get(f"{grid}_order", np.empty(0, np.int64)), kind="stable")
    return order


def _rows(state: State, key: str, order: NDArray[np.int64], n: int, width: int | None = None) -> NDArray[Any]:
    """A stage's output, one row a tile, in tile order; empty where the slide has no tiles."""
    if n == 0:
        return np.empty((0,) if width is None else (0, width), np.float16)
    values: NDArray[Any] = state[key][order]
    assert len(values) == n, f"{key}: {len(values)} rows for {n} tiles"
    return values
