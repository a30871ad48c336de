"""The slide's row from the results of the stages."""

from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import SlideError
from her2batch.pipeline.results import result_columns
from her2batch.pipeline.slide_state import Overview, SlideState, StainFit, TileColumns, TissueTiles
from her2batch.vision.quality import Quality
from her2batch.vision.stain import Stains
from her2batch.vision.tile_grid import TileGrid
from her2batch.vision.tissue import Tissue


def a_state(n_tiles: int, blank: int = 0) -> SlideState:
    state = SlideState("a", None, None, ("mended",))
    mask = np.ones((2, 2), np.bool_)
    state.overview = Overview(np.zeros((2, 2, 3), np.uint8), 8.0, b"")
    grid = TileGrid(0.5, 224, np.zeros((n_tiles, 3), np.int32))
    state.tissue_tiles = TissueTiles(Tissue(mask, ~mask, "otsu", 0.0), {"tiles": grid}, np.ones(n_tiles))
    state.quality = Quality(0.0, 0.0, 0.0, 240.0, ())
    state.stain_fit = StainFit(Stains(), "ihc")
    if n_tiles:
        nothing = np.zeros(n_tiles, np.float32)
        columns = {"blank": np.arange(n_tiles) < blank, "blur": nothing, "ink": nothing}
        state.measurements = TileColumns(np.arange(n_tiles), columns)
    return state


def test_slide_without_tiles_is_done_and_flagged() -> None:
    row = result_columns(a_state(0), Path("a.tiff"))
    assert (row["status"], row["n_tiles"], row["blank_tiles"]) == ("done", 0, 0)
    assert row["flags"] == ["mended", "no-tissue"]
    assert (row["stain"], row["tissue_mm2"]) == ("ihc", 4 * 64 / 1e6)


def test_more_than_one_percent_of_blank_tiles_fails_the_slide() -> None:
    assert result_columns(a_state(100, blank=1), Path("a.tiff"))["blank_tiles"] == 1
    with pytest.raises(SlideError, match="2 of 100 tiles") as refused:
        result_columns(a_state(100, blank=2), Path("a.tiff"))
    assert refused.value.code == "blank-tiles"
