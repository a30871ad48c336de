"""Tiles: where they lie, which block is read for them, how they are cut."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from her2batch.vision.grid import BLOCK, blocks, cut, plan

slides = st.tuples(st.integers(1, 30_000), st.integers(1, 30_000), st.floats(0.2, 0.6), st.sampled_from([64, 224, 256]))


def test_a_plan_worked_by_hand() -> None:
    tiles = plan(1000, 500, slide_mpp=0.25, mpp=0.5, tile=224)
    assert tiles.tolist() == [
        [0, 0, 448],
        [448, 0, 448],
        [896, 0, 448],
        [0, 448, 448],
        [448, 448, 448],
        [896, 448, 448],
    ]


def test_a_fractional_step_does_not_drift() -> None:
    tiles = plan(200_000, 500, slide_mpp=0.23, mpp=0.5, tile=224)
    step = 224 * 0.5 / 0.23
    assert np.abs(tiles[:, 0][: len(tiles) // 2] - np.arange(len(tiles) // 2) * step).max() <= 0.5


@given(slides)
def test_tiles_cover_the_slide_and_hardly_overlap(slide: tuple[int, int, float, int]) -> None:
    width, height, mpp, tile = slide
    tiles = plan(width, height, mpp, 0.5, tile)
    first_row = tiles[tiles[:, 1] == 0]
    gaps = np.diff(first_row[:, 0]) - first_row[:-1, 2]
    assert np.abs(gaps).max(initial=0) <= 1
    assert first_row[-1, 0] < width <= first_row[-1, 0] + first_row[-1, 2] + 1
    assert (tiles[:, 0] < width).all()
    assert (tiles[:, 1] < height).all()


@given(slides, st.sampled_from([1.0, 2.0, 4.0005]), st.sampled_from([240, 256, 512]), st.integers(0, 2**32))
def test_every_tile_is_in_one_block_and_inside_what_is_read(
    slide: tuple[int, int, float, int], downsample: float, chunk: int, seed: int
) -> None:
    width, height, mpp, tile = slide
    tiles = plan(width, height, mpp, 0.5 * downsample, tile)
    tiles = tiles[np.random.default_rng(seed).random(len(tiles)) < 0.5][:500]
    level = (max(1, round(width / downsample)), max(1, round(height / downsample)))
    found = blocks(tiles, (downsample, downsample), (chunk, chunk), level)
    assert sorted(one for block in found for one in block.tiles) == list(range(len(tiles)))
    for block in found:
        box = block.box
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= level[0]
        assert box.y + box.height <= level[1]
        assert box.width <= BLOCK[1] * 2
        corners = block.places[:, :2] + np.array([box.x, box.y])
        assert np.abs(corners - tiles[list(block.tiles), :2] / downsample).max() <= 1


def test_blocks_fall_on_the_chunk_grid_where_they_can() -> None:
    tiles = plan(20_000, 20_000, 0.25, 0.5, 224)
    found = blocks(tiles, (1.0, 1.0), (256, 256), (20_000, 20_000))
    assert {block.box.x % 256 for block in found} == {0}
    assert found[0].box.width == 1792


def test_cut_is_the_mean_of_the_pixels_under_a_tile() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (896, 896, 3), dtype=np.uint8)
    block = blocks(plan(896, 896, 0.25, 0.5, 224), (1.0, 1.0), (256, 256), (896, 896))[0]
    cuts = cut(rgb, block, 224)
    assert cuts.shape == (4, 224, 224, 3)
    mean = rgb[448:, :448].reshape(224, 2, 224, 2, 3).mean((1, 3))
    assert np.abs(cuts[2] - mean).max() <= 0.51


def test_the_quick_way_and_the_tile_by_tile_way_agree() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (1000, 900, 3), dtype=np.uint8)
    block = blocks(plan(900, 1000, 0.25, 0.5, 224), (1.0, 1.0), (256, 256), (900, 1000))[0]
    import cv2

    for tile, (x, y, w, h) in zip(cut(rgb, block, 224), block.places, strict=True):
        part = np.full((h, w, 3), 255, np.uint8)
        inside = rgb[y : y + h, x : x + w]
        part[: inside.shape[0], : inside.shape[1]] = inside
        assert np.array_equal(tile, cv2.resize(part, (224, 224), interpolation=cv2.INTER_AREA))


def test_what_lies_outside_the_slide_is_white() -> None:
    block = blocks(plan(300, 300, 0.5, 0.5, 224), (1.0, 1.0), (256, 256), (300, 300))[0]
    last = cut(np.zeros((300, 300, 3), np.uint8), block, 224)[3]
    assert last[:76, :76].max() == 0
    assert last[76:].min() == 255


def test_no_tiles_no_blocks() -> None:
    assert blocks(np.empty((0, 3), np.int32), (1.0, 1.0), (256, 256), (10, 10)) == []
