"""Results of the pieces of a slide: each scored like a slide, and what the controls say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.models.membrane_rule import apply_rule
from her2batch.pipeline.pieces.roles import CONTROL, TISSUE, SlidePieces
from her2batch.store import schemas
from her2batch.store.pieces.control_runs import CONTROL_FAILED, has_failed
from her2batch.tasks import HER2_TASKS, task_applies
from her2batch.vision.membrane import MEMBRANE_COLUMNS


class PieceResult(NamedTuple):
    """The score of a piece by the membrane rule; None for both where no HER2 task applies or it has no tile."""

    predicted: str | None = None
    score: float | None = None


class MeasuredTiles(Protocol):
    """Measurements of tiles, see `slide_state.TileColumns`."""

    def in_tile_order(self, name: str, n_tiles: int, width: int | None = None) -> NDArray[Any]:
        """A column that has one row for each tile, in their order."""


def score_pieces(pieces: SlidePieces, measured: MeasuredTiles, stain: str | None) -> list[PieceResult]:
    """Score every piece of a slide by the membrane rule. measured: the column `membrane` of its tiles."""
    if not pieces.pieces or not len(pieces.of_tiles):
        return [PieceResult()] * len(pieces.pieces)
    shares = measured.in_tile_order("membrane", len(pieces.of_tiles), len(MEMBRANE_COLUMNS)).astype(np.float32)
    membrane = {name: shares[:, k] for k, name in enumerate(MEMBRANE_COLUMNS)}
    return _score_each(len(pieces.pieces), pieces.of_tiles, membrane, stain)


def _score_each(
    count: int, of_tiles: NDArray[np.int16], membrane: Mapping[str, NDArray[np.float32]], stain: str | None
) -> list[PieceResult]:
    """Score pieces 0 to count - 1. of_tiles: the piece of each tile, (n,).  membrane: columns of its table, (n,)."""
    return [score_tiles(membrane, of_tiles == number, stain) for number in range(count)]


def score_tiles(membrane: Mapping[str, NDArray[np.float32]], own: NDArray[np.bool_], stain: str | None) -> PieceResult:
    """Score some tiles of a slide like a slide. membrane: columns of its table, (n,).  own: the tiles, (n,)."""
    if not own.any() or not task_applies(HER2_TASKS[0], stain):
        return PieceResult()
    found = apply_rule({name: values[own] for name, values in membrane.items()})
    return PieceResult(found.category, found.score)


def rescore_pieces(pieces: pa.Table, tiles: pa.Table, membrane: pa.Table, stain: str | None) -> pa.Table:
    """Return the pieces table of a slide with the scores that another stain gives. Arguments: its stored tables."""
    shares = {name: membrane.column(name).to_numpy() for name in MEMBRANE_COLUMNS}
    scored = _score_each(pieces.num_rows, tiles.column("piece").to_numpy(), shares, stain)
    rows = [{**row, **one._asdict()} for row, one in zip(pieces.to_pylist(), scored, strict=True)]
    return pa.Table.from_pylist(rows, schemas.table_schema("pieces"))


def with_control_failed(flags: Sequence[str], pieces: pa.Table) -> list[str]:
    """Return the flags of a slide whose pieces were scored again. pieces: the new table."""
    kept = [name for name in flags if name != CONTROL_FAILED]
    if not any(has_failed(row["expected"], row["predicted"]) for row in pieces.to_pylist()):
        return kept
    at = next((k for k, name in enumerate(kept) if name in ("control-missing", "control-suspected")), len(kept))
    return [*kept[:at], CONTROL_FAILED, *kept[at:]]


def control_flags(pieces: SlidePieces, results: Sequence[PieceResult]) -> list[str]:
    """Return the flags of a slide that its pieces raise."""
    counts = [role.role == TISSUE for role in pieces.roles]
    flags = {
        "control-slide": pieces.control_slide,
        "only-controls": bool(counts) and not any(counts) and not pieces.control_slide,
        CONTROL_FAILED: any(
            has_failed(role.expected, result.predicted) for role, result in zip(pieces.roles, results, strict=True)
        ),
        "control-missing": pieces.missing
        or any(
            role.role == CONTROL and role.expected is not None and not (pieces.of_tiles == k).any()
            for k, role in enumerate(pieces.roles)
        ),
        "control-suspected": pieces.suspected,
    }
    return [name for name, raised in flags.items() if raised]


def piece_table(slide_id: str, pieces: SlidePieces, results: Sequence[PieceResult], mm2: float) -> pa.Table:
    """Return the pieces table of a slide. mm2: area of a px of the overview."""
    fx, fy = pieces.scale
    rows: list[dict[str, Any]] = []
    for k, (piece, role, result) in enumerate(zip(pieces.pieces, pieces.roles, results, strict=True)):
        rows.append(
            {
                "slide_id": slide_id, "piece": k, "x": round(piece.x * fx), "y": round(piece.y * fy),
                "width": round(piece.width * fx), "height": round(piece.height * fy), "area_mm2": piece.area * mm2,
                "n_tiles": int((pieces.of_tiles == k).sum()), "role": role.role, "expected": role.expected,
                "predicted": result.predicted, "score": result.score, "suspected": role.suspected,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schemas.table_schema("pieces"))


def control_mm2(pieces: SlidePieces, mm2: float) -> float | None:
    """Return the area of a slide's controls and excluded pieces, mm²; None without any. mm2: area of an overview px."""
    areas = [piece.area for piece, role in zip(pieces.pieces, pieces.roles, strict=True) if role.role != TISSUE]
    return sum(areas) * mm2 if areas else None
