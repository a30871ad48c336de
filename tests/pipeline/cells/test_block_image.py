"""Blocks with a margin: every block shows the same px of the slide, whatever the resolution."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.pipeline.cells.block_image import WHITE, BlockFrames, BlockImage, resample_to_grid
from her2batch.pipeline.tile_reader import plan_reads, read_tiles
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Slide
from her2batch.vision import tile_grid
from her2batch.vision.tile_grid import TileGrid
from tests.conftest import write_slide

MARGIN_UM = 20.0


@pytest.fixture(scope="module", params=[0.25, 0.2325, 0.5, 0.55])
def slide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Slide:
    """A slide of 0.8 × 0.7 mm at the resolutions of usual scanners, and one that is enlarged."""
    mpp = request.param
    size = round(1600 / mpp / 2), round(1400 / mpp / 2)
    coarse = np.random.default_rng(3).integers(40, 240, (size[1] // 8, size[0] // 8, 3)).astype(np.uint8)
    rgb = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    path = write_slide(tmp_path_factory.mktemp("blocks") / "a.tiff", rgb, mpp=mpp, tile=64)
    return open_slide(Path(path), "auto")


def grid_of(slide: Slide, tile: int = 64) -> TileGrid:
    tiles = tile_grid.plan_tiles(slide.info.width, slide.info.height, slide.info.mpp, 0.5, tile)
    rng = np.random.default_rng(1)
    return TileGrid(0.5, tile, tiles[rng.random(len(tiles)) < 0.7])


def read_blocks(slide: Slide, grid: TileGrid, step: int = 2) -> tuple[list[BlockImage], list[np.ndarray]]:
    reads = plan_reads(slide, grid)
    frames = BlockFrames.plan(grid, slide.info.mpp, reads.scale, reads.size, MARGIN_UM, step, lambda image: image)
    batches = list(read_tiles(slide, reads, 0, "auto", None, frames))
    return [image for batch in batches for image in batch.found], [batch.pixels for batch in batches]


def test_blocks_cover_their_tiles_with_a_margin(slide: Slide) -> None:
    grid = grid_of(slide)
    step = 64 * 0.5 / slide.info.mpp
    for image in read_blocks(slide, grid)[0]:
        assert image.left % 2 == image.top % 2 == 0
        corners = np.round(grid.tiles[image.tiles, :2] / step).astype(int) * 64 - [image.left, image.top]
        margin = round(MARGIN_UM / 0.5)
        for x, y in corners.tolist():
            assert image.excluded is None or not image.excluded[max(0, y) : y + 64, max(0, x) : x + 64].any()
            assert x >= min(margin, x + image.left)
            assert y >= min(margin, y + image.top)


def test_all_blocks_show_the_same_px(slide: Slide) -> None:
    shown = np.zeros((1500, 1700, 3), np.uint8)
    seen = np.zeros(shown.shape[:2], bool)
    blocks, _ = read_blocks(slide, grid_of(slide))
    assert len(blocks) > 3
    for image in blocks:
        height, width = image.pixels.shape[:2]
        inside = slice(image.top, image.top + height), slice(image.left, image.left + width)
        read = np.ones((height, width), bool) if image.excluded is None else ~image.excluded
        read[:4] = read[-4:] = read[:, :4] = read[:, -4:] = False  # the rim of a frame is interpolated
        read = cv2.erode(read.view(np.uint8), np.ones((9, 9), np.uint8)).view(bool)
        again = read & seen[inside]
        difference = np.abs(shown[inside].astype(int) - image.pixels)[again]
        assert difference.max(initial=0) <= 6, "interpolation knows 32 positions between two px"
        assert difference.mean() < 0.4 if again.any() else True
        shown[inside][read] = image.pixels[read]
        seen[inside] |= read
    assert seen.mean() > 0.4


def test_tiles_are_the_same_with_and_without_blocks(slide: Slide) -> None:
    grid = grid_of(slide)
    plain = [batch.pixels for batch in read_tiles(slide, plan_reads(slide, grid), 0, "auto")]
    _, beside = read_blocks(slide, grid)
    assert all(np.array_equal(a, b) for a, b in zip(plain, beside, strict=True))


def test_px_far_from_every_tile_are_white_and_excluded(slide: Slide) -> None:
    tiles = tile_grid.plan_tiles(slide.info.width, slide.info.height, slide.info.mpp, 0.5, 64)
    blocks, _ = read_blocks(slide, TileGrid(0.5, 64, tiles[[0, 5]]))
    assert blocks[0].excluded is not None
    assert (blocks[0].pixels[blocks[0].excluded] == WHITE).all()


def test_a_margin_that_cannot_be_read_is_left_out(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    from her2batch.errors import SlideError

    grid, read = grid_of(slide), slide.read
    reads = plan_reads(slide, grid)
    own = {tuple(block.box) for batch in reads.batches for block in batch}

    def damaged_margins(box, *rest):
        if tuple(box) not in own:
            raise SlideError("unreadable", slide.info.path, "a tile of its margin is damaged")
        return read(box, *rest)

    plain = [batch.pixels for batch in read_tiles(slide, reads, 0, "auto")]
    monkeypatch.setattr(slide, "read", damaged_margins)
    blocks, pixels = read_blocks(slide, grid)
    assert all(np.array_equal(a, b) for a, b in zip(plain, pixels, strict=True))
    assert all(image.excluded is not None for image in blocks)


@given(ratio=st.sampled_from([0.9, 1.0, 1.075, 2.0, 2.15, 3.4, 4.0]), x=st.integers(0, 40), y=st.integers(0, 40))
def test_a_frame_does_not_depend_on_where_reading_began(ratio: float, x: int, y: int) -> None:
    waves = np.add.outer(np.sin(np.arange(700) / 9), np.cos(np.arange(700) / 7))
    rgb = np.repeat((127 + 50 * waves)[..., None], 3, axis=2).astype(np.uint8)
    whole = resample_to_grid(rgb, (0, 0), (ratio, ratio), (0, 0, 120, 120))
    left, top = int(x * ratio), int(y * ratio)
    part = resample_to_grid(rgb[top:, left:], (left, top), (ratio, ratio), (x + 4, y + 4, 60, 60))
    assert np.abs(whole[y + 4 : y + 64, x + 4 : x + 64].astype(int) - part).max() <= 3
