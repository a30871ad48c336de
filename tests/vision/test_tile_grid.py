"""Tests of the tile grid: positions, blocks, and cutting tiles from a block."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from her2batch.vision.tile_grid import (
    BLOCK_PX,
    MAX_UPSAMPLING,
    Block,
    Rect,
    TileGrid,
    cut_tiles,
    plan_blocks,
    plan_overlapping_tiles,
    plan_tiles,
    rows_of_places,
    spread_evenly,
)

mpps = st.decimals("0.2", "0.6", places=4).map(float)
slides = st.tuples(st.integers(1, 30_000), st.integers(1, 30_000), mpps, st.sampled_from([64, 224, 256]))


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_grid_worked_by_hand() -> None:
    assert plan_tiles(1000, 500, slide_mpp=0.25, mpp=0.5, tile=224).tolist() == [
        [0, 0, 448],
        [448, 0, 448],
        [896, 0, 448],
        [0, 448, 448],
        [448, 448, 448],
        [896, 448, 448],
    ]


def test_a_fractional_step_worked_by_hand() -> None:
    tiles = plan_tiles(2000, 1, slide_mpp=0.2525, mpp=0.5, tile=224)  # 443.564… level-0 px
    assert tiles.tolist() == [[0, 0, 444], [444, 0, 444], [887, 0, 444], [1331, 0, 444], [1774, 0, 444]]


@pytest.mark.parametrize("mpp", ["0.23", "0.2499", "0.4987654321"])
def test_positions_do_not_drift_on_the_widest_slide(mpp: str) -> None:
    tiles = plan_tiles(2_000_000, 1, float(mpp), 0.5, 224)
    step = 224 * Fraction("0.5") / Fraction(mpp)
    last = len(tiles) - 1
    assert abs(tiles[last, 0] - last * step) <= Fraction(1, 2)
    assert last * step < 2_000_000 <= (last + 1) * step + Fraction(1, 2)


@given(slides)
def test_tiles_cover_the_slide_and_hardly_overlap(slide: tuple[int, int, float, int]) -> None:
    width, height, mpp, tile = slide
    tiles = plan_tiles(width, height, mpp, 0.5, tile)
    first_row = tiles[tiles[:, 1] == 0]
    gaps = np.diff(first_row[:, 0]) - first_row[:-1, 2]
    assert np.abs(gaps).max(initial=0) <= 1
    assert first_row[-1, 0] < width <= first_row[-1, 0] + first_row[-1, 2] + 1
    assert (tiles[:, 1] < height).all()
    assert np.array_equal(np.lexsort((tiles[:, 0], tiles[:, 1])), np.arange(len(tiles)))


@settings(deadline=None)
@example((1, 9486, 0.2834, 64), 4.0, 240, 0)  # its last tile starts in a row that the level dropped
@given(slides, st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([240, 256, 512, 30_000]), st.integers(0, 2**32))
def test_every_tile_is_in_one_block_and_inside_its_box(
    slide: tuple[int, int, float, int], downsample: float, chunk: int, seed: int
) -> None:
    width, height, mpp, tile = slide
    tiles = plan_tiles(width, height, mpp, 0.5 * downsample, tile)
    tiles = tiles[np.random.default_rng(seed).random(len(tiles)) < 0.5][:500]
    level = (max(1, int(width // downsample)), max(1, int(height // downsample)))
    blocks = plan_blocks(tiles, (width / level[0], height / level[1]), (chunk, chunk), level)
    assert sorted(one for block in blocks for one in block.tiles) == list(range(len(tiles)))
    assert len(blocks) == len({block.box for block in blocks})
    for block in blocks:
        box = block.box
        assert min(box.x, box.y) >= 0
        assert min(box.width, box.height) >= 1
        assert box.x + box.width <= level[0]
        assert box.y + box.height <= level[1]
        assert max(box.width, box.height) <= BLOCK_PX[2] + 1
        corners = block.tile_rects[:, :2] + np.array([box.x, box.y])
        places = np.minimum(tiles[list(block.tiles), :2] / downsample, np.array(level) - 1)  # writers drop an odd row
        assert np.abs(corners - places).max() <= 1
        assert (block.tile_rects[:, :2] < np.array([box.width, box.height])).all()


def test_overlapping_tiles_begin_within_one_another() -> None:
    tiles = plan_overlapping_tiles(1000, 500, 0.25, 0.5, 224, 2)
    assert tiles[tiles[:, 1] == 224, 0].tolist() == [0, 224, 448, 672, 896]
    assert set(tiles[:, 2].tolist()) == {448}
    once = plan_overlapping_tiles(1000, 500, 0.2525, 0.5, 224, 1)
    assert np.array_equal(once, plan_tiles(1000, 500, 0.2525, 0.5, 224))


@pytest.mark.parametrize("per_edge", [2, 4])
def test_blocks_of_overlapping_tiles_are_small_and_hold_each_once(per_edge: int) -> None:
    tiles = plan_overlapping_tiles(23_218, 20_529, 0.23, 3.24, 224, per_edge)
    assert len(tiles) > 40 * per_edge**2
    level = (23_218 // 8, 20_529 // 8)
    blocks = plan_blocks(tiles, (23_218 / level[0], 20_529 / level[1]), (256, 256), level)
    assert sorted(row for block in blocks for row in block.tiles) == list(range(len(tiles)))
    assert max(len(block.tiles) for block in blocks) <= 256
    assert max(max(block.box.width, block.box.height) for block in blocks) <= BLOCK_PX[2]
    rects = np.concatenate([block.tile_rects[:, :2] + block.box[:2] for block in blocks])
    rows = np.concatenate([block.tiles for block in blocks])
    assert np.abs(rects - tiles[rows, :2] / 8).max() <= 1


def test_blocks_align_with_the_chunk_grid() -> None:
    blocks = plan_blocks(plan_tiles(20_000, 20_000, 0.25, 0.5, 224), (1.0, 1.0), (256, 256), (20_000, 20_000))
    assert {block.box.x % 256 for block in blocks} == {0}
    assert blocks[0].box == Rect(0, 0, 1792, 1792)
    assert len(blocks[0].tiles) == 16


@pytest.mark.parametrize(("chunk", "edge"), [(512, 3584), (256, 1792), (8, 896), (240, 2240)])
def test_a_block_spans_the_number_of_tiles_with_least_waste(chunk: int, edge: int) -> None:
    blocks = plan_blocks(plan_tiles(20_000, 20_000, 0.25, 0.5, 224), (1.0, 1.0), (chunk, chunk), (20_000, 20_000))
    assert blocks[0].box.width == edge


def test_a_block_is_read_only_as_far_as_it_holds_tiles() -> None:
    tiles = np.array([[448, 896, 448], [896, 896, 448]], np.int32)
    assert [block.box for block in plan_blocks(tiles, (1.0, 1.0), (256, 256), (9000, 9000))] == [
        Rect(448, 896, 896, 448)
    ]


def test_a_level_whose_last_row_was_dropped_does_not_shift_its_tiles() -> None:
    width = 99_999
    level = width // 4
    tiles = plan_tiles(width, 448, 0.125, 0.5, 224)
    blocks = plan_blocks(tiles, (width / level, 1.0), (256, 256), (level, 448))
    assert {(block.box.x + place[0]) % 224 for block in blocks for place in block.tile_rects} == {0}


def test_blocks_and_their_tiles_are_ordered_row_by_row() -> None:
    blocks = plan_blocks(plan_tiles(9000, 9000, 0.25, 0.5, 224), (1.0, 1.0), (256, 256), (9000, 9000))
    assert [(block.box.y, block.box.x) for block in blocks] == sorted((block.box.y, block.box.x) for block in blocks)
    assert all(list(block.tiles) == sorted(block.tiles) for block in blocks)


def test_no_tiles_give_no_blocks() -> None:
    assert plan_blocks(np.empty((0, 3), np.int32), (1.0, 1.0), (256, 256), (10, 10)) == []


def one_block(width: int, height: int, slide_mpp: float, tile: int = 224) -> Block:
    (block,) = plan_blocks(plan_tiles(width, height, slide_mpp, 0.5, tile), (1.0, 1.0), (256, 256), (width, height))
    return block


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_cut_is_the_mean_of_the_pixels_under_a_tile(factor: int) -> None:
    edge = 100 * factor
    rgb = noise(2 * edge, 2 * edge)
    cuts = cut_tiles(rgb, one_block(2 * edge, 2 * edge, 0.5 / factor, tile=100), 100)
    mean = rgb[edge:, :edge].reshape(100, factor, 100, factor, 3).mean((1, 3))
    assert cuts.shape == (4, 100, 100, 3)
    assert np.abs(cuts[2] - mean).max() <= 0.51


def test_tiles_at_the_slides_own_resolution_are_unchanged() -> None:
    rgb = noise(448, 448)
    assert np.array_equal(cut_tiles(rgb, one_block(448, 448, 0.5), 224)[3], rgb[224:, 224:])


@given(st.integers(230, 1400), st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_a_shrink_by_a_fraction_is_close_to_the_exact_area_mean(size: int, seed: int) -> None:
    smooth = cv2.GaussianBlur(noise(size, size, seed), (0, 0), 2.0).astype(np.uint8)  # a microscope's blur
    block = Block(Rect(0, 0, size, size), (0,), np.array([[0, 0, size, size]]))
    exact = cv2.resize(smooth, (224, 224), interpolation=cv2.INTER_AREA)
    difference = np.abs(cut_tiles(smooth, block, 224)[0].astype(int) - exact)
    assert difference.mean() < 1.5
    assert difference.max() <= 16


def test_a_slightly_coarser_slide_is_enlarged() -> None:
    rgb = np.repeat(np.arange(180, dtype=np.uint8)[None, :, None], 180, axis=0).repeat(3, axis=2)
    (tile,) = cut_tiles(rgb, Block(Rect(0, 0, 180, 180), (0,), np.array([[0, 0, 180, 180]])), 224)
    assert (np.diff(tile[0, :, 0].astype(int)) >= 0).all()
    assert (tile[0, 0, 0], tile[0, -1, 0]) == (0, 179)


def test_area_outside_the_slide_is_white() -> None:
    last = cut_tiles(np.zeros((300, 300, 3), np.uint8), one_block(300, 300, 0.5), 224)[3]
    assert last[:76, :76].max() == 0
    assert last[76:].min() == last[:, 76:].min() == 255


@given(st.integers(300, 1500), st.integers(300, 1500), mpps)
@settings(deadline=None, max_examples=25)
def test_tiles_do_not_depend_on_the_rest_of_their_block(width: int, height: int, mpp: float) -> None:
    rgb = noise(height, width)
    tiles = plan_tiles(width, height, mpp, 0.5, 224)
    together = np.empty((len(tiles), 224, 224, 3), np.uint8)
    for block in plan_blocks(tiles, (1.0, 1.0), (256, 256), (width, height)):
        x, y, w, h = block.box
        together[list(block.tiles)] = cut_tiles(rgb[y : y + h, x : x + w], block, 224)
    for k in (0, len(tiles) - 1):
        (block,) = plan_blocks(tiles[k : k + 1], (1.0, 1.0), (256, 256), (width, height))
        x, y, w, h = block.box
        assert np.array_equal(cut_tiles(rgb[y : y + h, x : x + w], block, 224)[0], together[k])


def test_a_grid_holds_resolution_edge_and_tiles() -> None:
    one = TileGrid(0.5, 224, np.array([[0, 0, 448]], np.int32))
    assert (one.mpp, one.edge, one.tiles.tolist()) == (0.5, 224, [[0, 0, 448]])
    assert 1 < MAX_UPSAMPLING < 2


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, unique=True), st.integers(0, 2**16))
def test_places_of_a_grid_are_found_in_any_order(own: list[tuple[int, int]], seed: int) -> None:
    wanted = np.random.default_rng(seed).integers(-1, 11, (30, 2))
    expected = [own.index(tuple(place)) if tuple(place) in own else -1 for place in wanted.tolist()]
    assert rows_of_places(np.array(own), wanted).tolist() == expected


@pytest.mark.parametrize(("n", "count", "expected"), [(0, 3, []), (2, 5, [0, 1]), (9, 3, [0, 4, 8])])
def test_a_sample_is_spread_over_all_tiles(n: int, count: int, expected: list[int]) -> None:
    assert spread_evenly(np.arange(n), count).tolist() == expected
