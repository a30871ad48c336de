"""Scores of pieces, and the flags that controls raise."""

import numpy as np
import pyarrow as pa
import pytest

from her2batch.pipeline.pieces.piece_results import (
    PieceResult,
    control_flags,
    control_mm2,
    piece_table,
    rescore_pieces,
    score_pieces,
    with_control_failed,
)
from her2batch.pipeline.pieces.roles import CONTROL, EXCLUDED, Role, SlidePieces
from her2batch.pipeline.slide_state import TileColumns
from her2batch.store.schemas import table_schema
from her2batch.vision.membrane import MEMBRANE_COLUMNS
from her2batch.vision.pieces.connected import Piece

BOX = Piece(10, 20, 30, 40, 1000)


def slide(*roles: Role, tiles: tuple[int, ...] = (0, 0, 1, 1), **values: bool) -> SlidePieces:
    pieces = tuple(BOX for _ in roles)
    return SlidePieces(pieces, roles, np.array(tiles, np.int16), (8.0, 8.0), **values)


def measured(strong: tuple[bool, ...]) -> TileColumns:
    """Membrane shares of tiles, read in reverse order: everything is intense on the strong ones, nothing on others."""
    shares = np.array([[0.3] + [float(one)] * (len(MEMBRANE_COLUMNS) - 1) for one in strong], np.float32)
    return TileColumns(np.arange(len(strong))[::-1], {"membrane": shares[::-1]})


def test_each_piece_has_the_score_of_its_own_tiles() -> None:
    found = score_pieces(slide(Role(), Role(CONTROL)), measured((False, False, True, True)), "her2")
    assert [result.predicted for result in found] == ["0", "3+"]


@pytest.mark.parametrize("stain", ["er", "he"])
def test_a_piece_of_another_stain_or_without_tiles_has_no_score(stain: str) -> None:
    assert score_pieces(slide(Role(), Role()), measured((True,) * 4), stain) == [PieceResult()] * 2
    without = score_pieces(slide(Role(), Role(), tiles=(0, 0, 0, 0)), measured((True,) * 4), "her2")
    assert without[1] == PieceResult()


@pytest.mark.parametrize(
    ("pieces", "predicted", "flags"),
    [
        (slide(Role(), Role()), ("0", "0"), []),
        (slide(Role(), Role(CONTROL, "3+")), ("0", "3+"), []),
        (slide(Role(), Role(CONTROL, "3+")), ("0", "2+"), ["control-failed"]),
        (slide(Role(), Role(CONTROL, "0")), ("3+", "1+"), ["control-failed"]),
        (slide(Role(), Role(CONTROL)), ("0", "2+"), []),
        (slide(Role(), Role(CONTROL, "3+"), tiles=(0, 0, 0, 0)), ("0", None), ["control-missing"]),
        (slide(Role(), missing=True, tiles=(0,)), ("0",), ["control-missing"]),
        (slide(Role(), Role(suspected=True)), ("0", "3+"), ["control-suspected"]),
        (slide(Role(EXCLUDED), Role(CONTROL, "3+")), ("0", "3+"), ["only-controls"]),
        (slide(Role(CONTROL, "3+"), control_slide=True), ("3+",), ["control-slide"]),
        (slide(Role(CONTROL, "3+"), control_slide=True), ("1+",), ["control-slide", "control-failed"]),
    ],
)  # fmt: skip
def test_flags_of_a_slide(pieces: SlidePieces, predicted: tuple[str | None, ...], flags: list[str]) -> None:
    assert control_flags(pieces, [PieceResult(one, 0.0 if one else None) for one in predicted]) == flags


@pytest.mark.parametrize(
    ("stain", "before", "after"),
    [
        ("her2", ["pen", "control-suspected"], ["pen", "control-failed", "control-suspected"]),
        ("er", ["pen", "control-failed", "control-suspected"], ["pen", "control-suspected"]),
    ],
)
def test_another_stain_scores_the_pieces_again(stain: str, before: list[str], after: list[str]) -> None:
    pieces, strong = slide(Role(), Role(CONTROL, "3+")), measured((False,) * 4)
    shares = strong.in_tile_order("membrane", 4, len(MEMBRANE_COLUMNS))
    columns = {name: shares[:, k] for k, name in enumerate(MEMBRANE_COLUMNS)}
    stored = piece_table("S1", pieces, [PieceResult()] * 2, 1e-6)
    found = rescore_pieces(stored, pa.table({"piece": pieces.of_tiles}), pa.table(columns), stain)
    assert found.equals(piece_table("S1", pieces, score_pieces(pieces, strong, stain), 1e-6))
    assert with_control_failed(before, found) == after


def test_the_table_has_boxes_in_level_0_px_and_areas_in_mm2() -> None:
    pieces = slide(Role(), Role(CONTROL, "3+"))
    table = piece_table("S1", pieces, [PieceResult("0", 0.1), PieceResult("3+", 2.9)], 64e-6)
    assert table.schema == table_schema("pieces")
    row = table.to_pylist()[1]
    assert (row["x"], row["y"], row["width"], row["height"], row["n_tiles"]) == (80, 160, 240, 320, 2)
    assert row["area_mm2"] == pytest.approx(0.064)
    assert (row["role"], row["expected"], row["predicted"]) == ("control", "3+", "3+")
    assert control_mm2(pieces, 64e-6) == pytest.approx(0.064)
    assert control_mm2(slide(Role()), 64e-6) is None
