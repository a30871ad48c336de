"""Reading tiles: every tile once, with the same pixels whichever thread decodes it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.errors import SlideError
from her2batch.pipeline.tile_reader import TILES_PER_BATCH, plan_reads, read_tiles
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box
from her2batch.vision.tile_grid import TileGrid, plan_tiles
from tests.conftest import tissue_image, write_slide


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("feed") / "a.tiff", tissue_image(2300, 1900, brown=0.4))


def tile_grid_of(path: Path, mpp: float, edge: int) -> TileGrid:
    with open_slide(path) as slide:
        return TileGrid(mpp, edge, plan_tiles(slide.info.width, slide.info.height, 0.25, mpp, edge))


@pytest.mark.parametrize(("mpp", "edge"), [(0.25, 224), (0.5, 32), (0.5, 224), (0.7, 100), (2.0, 16)])
def test_every_tile_is_read_once_from_its_place(path: Path, mpp: float, edge: int) -> None:
    grid = tile_grid_of(path, mpp, edge)
    with open_slide(path) as slide:
        feed = plan_reads(slide, grid)
        batches = list(read_tiles(slide, feed, 0, "auto"))
        rows = np.concatenate([batch.rows for batch in batches])
        assert sorted(rows.tolist()) == list(range(len(grid.tiles)))
        for row, pixels in zip(rows, np.concatenate([batch.pixels for batch in batches]), strict=True):
            x, y, size = grid.tiles[row].tolist()
            if x + size > slide.info.width or y + size > slide.info.height:
                continue  # its last px is half a px of the slide: which half, the two ways see differently
            there = slide.region(Box(x, y, size, size), mpp)
            assert np.abs(pixels.mean((0, 1)) - there.mean((0, 1))).max() < 3


def brightness(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean(axis=(1, 2, 3), dtype=np.float32)[:, None]


@given(threads=st.integers(1, 4), lo=st.integers(0, 3), more=st.integers(0, 4))
@settings(max_examples=8, deadline=None)
def test_threads_and_ranges_change_no_byte(path: Path, threads: int, lo: int, more: int) -> None:
    grid = tile_grid_of(path, 0.5, 32)
    with open_slide(path) as slide:
        feed = plan_reads(slide, grid)
        one = list(read_tiles(slide, feed, 0, "auto", brightness))[lo : lo + more]
        other = list(read_tiles(slide, feed.part(lo, lo + more), threads, "auto", brightness))
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert np.array_equal(ours.features, brightness(ours.pixels))


def test_batches_are_whole_blocks(path: Path) -> None:
    with open_slide(path) as slide:
        feed = plan_reads(slide, tile_grid_of(path, 0.25, 32))
    counts = [sum(len(block.tiles) for block in batch) for batch in feed.batches]
    largest = max(len(block.tiles) for batch in feed.batches for block in batch)
    assert max(counts) <= max(TILES_PER_BATCH, largest)
    assert len(counts) > 3


def test_grid_without_tiles_has_no_batch(path: Path) -> None:
    with open_slide(path) as slide:
        feed = plan_reads(slide, TileGrid(0.5, 224, np.empty((0, 3), np.int32)))
        assert feed.batches == ()
        assert list(read_tiles(slide, feed, 2, "auto")) == []


def test_decoding_errors_are_raised_with_and_without_threads(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "b.tiff"
    data = bytearray(path.read_bytes())
    with open_slide(path, "tiff") as slide:
        table = slide.table(0)
        start, count = int(table.offsets[10]), int(table.byte_counts[10])
    data[start + count // 2 : start + count - 2] = bytes(count - 2 - count // 2)
    broken.write_bytes(data)
    for threads in (0, 2):
        with open_slide(broken) as slide, pytest.raises(SlideError, match="tile 10"):
            list(read_tiles(slide, plan_reads(slide, tile_grid_of(path, 0.5, 224)), threads, "auto"))
