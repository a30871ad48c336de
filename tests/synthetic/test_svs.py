"""Tests of the written slides: quality and subsampling of the JPEG of every level."""

import numpy as np
import pytest
import tifffile

from her2batch.slides.readers import open_slide
from her2batch.synthetic.specimen import SlideTruth
from her2batch.synthetic.svs import write_svs

TRUTH = SlideTruth("a", width=1100, height=1040)


@pytest.fixture(scope="module")
def picture():
    """Noise in colour: the picture that JPEG changes most."""
    return np.random.default_rng(0).integers(60, 250, (1040, 1100, 3), np.uint8)


@pytest.mark.parametrize(("subsampling", "tag"), [("420", (2, 2)), ("422", (2, 1)), ("444", (1, 1))])
def test_levels_have_the_given_subsampling(tmp_path, picture, subsampling, tag):
    write_svs(tmp_path / "a.svs", picture, TRUTH, 90, subsampling)
    with tifffile.TiffFile(tmp_path / "a.svs") as tiff:
        levels = [page for page in tiff.pages if page.is_tiled]
        assert [level.tags["YCbCrSubSampling"].value for level in levels] == [tag, tag]
        assert tiff.pages[1].tags["YCbCrSubSampling"].value == (2, 2)
    with open_slide(tmp_path / "a.svs") as slide:
        slide.validate()
        assert [(level.width, level.height) for level in slide.info.levels] == [(1100, 1040), (550, 520)]


def test_better_quality_and_full_chroma_are_closer_to_the_picture(tmp_path, picture):
    errors = []
    for quality, subsampling in ((40, "420"), (95, "420"), (95, "444")):
        write_svs(tmp_path / "a.svs", picture, TRUTH, quality, subsampling)
        with open_slide(tmp_path / "a.svs") as slide:
            errors.append(np.abs(slide.overview(0.25).astype(int) - picture).mean())
    assert errors[0] > errors[1] > errors[2]
