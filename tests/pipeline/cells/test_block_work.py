"""Stages over blocks: they run in the thread that decodes, on the largest margin that one of them needs."""

import numpy as np

from her2batch.pipeline.cells.block_work import plan_frames
from her2batch.pipeline.slide_state import SlideState, Stage, TileColumns
from her2batch.vision.tile_grid import TileGrid

GRID = TileGrid(0.5, 64, np.array([[0, 0, 128]], np.int32))


def block_stage(name: str, margin: float, step: int) -> Stage:
    return Stage(name, "tiles", (), name, lambda _: None, margin_um=margin, step=lambda _: step)


def test_without_such_stages_there_are_no_frames() -> None:
    assert plan_frames([], SlideState("S", None, None), GRID, 0.25, (1.0, 1.0), (1000, 1000)) is None


def test_frames_suit_all_stages_and_give_each_its_result() -> None:
    def work(image, state, mpp):
        return TileColumns(image.tiles, {"edge": np.array([image.edge * mpp])})

    works = [(block_stage("a", 10, 2), work), (block_stage("b", 24, 3), work)]
    frames = plan_frames(works, SlideState("S", None, None), GRID, 0.25, (1.0, 1.0), (1000, 1000))
    assert (frames.margin, frames.step) == (48, 6)
    from her2batch.vision.tile_grid import plan_blocks

    (block,) = plan_blocks(GRID.tiles, (1.0, 1.0), (256, 256), (1000, 1000))
    area = frames.area(block)
    found = frames(block, area, np.zeros((area.height, area.width, 3), np.uint8))
    assert [(name, gives, value.column("edge")[0]) for name, gives, value, _ in found] == [
        ("a", "a", 32),
        ("b", "b", 32),
    ]
