"""Patches follow from the tiles table alone, and their pixels from the pyramid."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.pipeline.patch_grid import plan_patches, read_patches
from her2batch.settings import Plan
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.slide import Box, Level, SlideInfo, resample
from her2batch.store.cohort import Cohort
from her2batch.tasks import PATCH_INPUTS
from her2batch.vision.tile_grid import plan_tiles
from tests.conftest import Synthetic


def slide_info(width: int, height: int, mpp: float = 0.25) -> SlideInfo:
    level = Level(width, height, 256, 256)
    return SlideInfo(Path("a.svs"), "aperio", "tiff", (level,), mpp, "file", None)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**30), st.sampled_from(sorted(PATCH_INPUTS.values())))
def test_patch_is_kept_for_the_tissue_of_the_tiles_under_it(seed: int, mpp: float) -> None:
    """Against a picture of the tiles, a px for every 8 level-0 px."""
    rng = np.random.default_rng(seed)
    info, plan = slide_info(448 * 8, 448 * 6), Plan()
    tiles = plan_tiles(info.width, info.height, 0.25, 0.5, 224)
    tissue = rng.random(len(tiles)).astype(np.float32)
    kept = rng.random(len(tiles)) < 0.7  # the others are no rows of the table
    picture = np.zeros((info.height // 8, info.width // 8))
    for (x, y, size), share in zip(tiles[kept], tissue[kept], strict=True):
        picture[y // 8 : (y + size) // 8, x // 8 : (x + size) // 8] = share
    found = {tuple(one) for one in plan_patches(info, plan, tiles[kept], tissue[kept], mpp).tiles.tolist()}
    for x, y, size in plan_tiles(info.width, info.height, 0.25, mpp, 224).tolist():
        inside = picture[y // 8 : (y + size) // 8, x // 8 : (x + size) // 8].sum() / (size / 8) ** 2
        if abs(inside - plan.min_tissue) > 0.05:
            assert ((x, y, size) in found) == (inside > plan.min_tissue)


def test_slide_too_coarse_for_a_resolution_has_no_patches_there() -> None:
    tiles, tissue = np.array([[0, 0, 448]], np.int32), np.ones(1, np.float32)
    assert len(plan_patches(slide_info(4000, 4000, mpp=0.5), Plan(), tiles, tissue, 0.23).tiles) == 0
    assert len(plan_patches(slide_info(4000, 4000), Plan(), tiles[:0], tissue[:0], 1.17).tiles) == 0


def test_overlapping_patches_of_a_slide_of_one_millimetre_are_as_many_as_on_a_large_one() -> None:
    info = slide_info(4800, 4200)
    tiles = plan_tiles(info.width, info.height, 0.25, 0.5, 224)
    counts = [len(plan_patches(info, Plan(), tiles, np.ones(len(tiles), np.float32), 3.24, n).tiles) for n in (1, 4)]
    assert counts[0] <= 4
    assert 24 <= counts[1] <= 48


@pytest.mark.parametrize(
    ("given_input", "per_edge"), [("patches-moderate", 1), ("patches-moderate", 4), ("patches-high", 1)]
)
def test_patches_are_read_from_the_pyramid(given_input: str, per_edge: int, synthetic: Synthetic) -> None:
    cohort = Cohort(synthetic.cohort)
    slide_id = sorted(cohort.rows())[0]
    table = cohort.read("tiles", slide_id)
    tiles = np.stack([table[name].to_numpy() for name in ("x", "y", "size")], axis=1).astype(np.int32)
    with Pyramid(cohort.pyramid(slide_id)) as opened:
        mpp = PATCH_INPUTS[given_input]
        one = plan_patches(opened.info, cohort.plan(), tiles, table["tissue"].to_numpy(), mpp, per_edge)
        assert len(one.tiles)
        seen = 0
        for batch in read_patches(opened, one):
            seen += len(batch.rows)
            x, y, size = one.tiles[batch.rows[0]].tolist()
            expected = resample(opened.region(Box(x, y, size, size), one.mpp), 224, 224)
            assert np.abs(batch.pixels[0].astype(float) - expected).mean() < 3
        assert seen == len(one.tiles)
