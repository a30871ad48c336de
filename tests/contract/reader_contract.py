"""Requirements for every slide reader."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from her2batch.errors import SlideError
from her2batch.slides.slide import MPP_RANGE, Box, Slide, resample

MAX_CORNER = 800
"""Size of the corner in which levels are compared, px."""


def corner_box(slide: Slide, level: int) -> Box:
    size = slide.info.levels[level]
    return Box(0, 0, min(size.width, MAX_CORNER), min(size.height, MAX_CORNER))


def sample_boxes(whole: Box, chunk: int, seed: int) -> list[Box]:
    """Return the first and the last px, a chunk on the grid, one beside it, and random boxes."""
    rng = np.random.default_rng(seed)
    last = Box(whole.width - 1, whole.height - 1, 1, 1)
    edge = min(chunk, whole.width, whole.height)
    off = min(7, whole.width - edge, whole.height - edge)
    found = [Box(0, 0, 1, 1), last, Box(0, 0, edge, edge), Box(off, off, edge, edge)]
    for _ in range(4):
        x, y = int(rng.integers(whole.width)), int(rng.integers(whole.height))
        width, height = 1 + int(rng.integers(whole.width - x)), 1 + int(rng.integers(whole.height - y))
        found.append(Box(x, y, width, height))
    return found


class SlideContract:
    """Tests to inherit. The subclass provides the fixture `slide`: newly opened, without an override of its mpp."""

    def test_metadata_is_plausible(self, slide: Slide) -> None:
        info = slide.info
        assert info.format
        assert info.reader
        assert list(info.level_downsamples) == sorted(info.level_downsamples)
        assert info.level_downsamples[0] == 1
        assert all(min(level.chunk_width, level.chunk_height) >= 1 for level in info.levels)
        assert (info.mpp is None) == (info.mpp_source is None)
        assert info.mpp is None or MPP_RANGE[0] <= info.mpp <= MPP_RANGE[1]

    def test_intact_slide_is_valid(self, slide: Slide) -> None:
        slide.validate()

    def test_read_outside_a_level_is_refused(self, slide: Slide) -> None:
        for level, size in enumerate(slide.info.levels):
            for box in (
                Box(-1, 0, 2, 2), Box(0, -1, 2, 2), Box(size.width - 1, 0, 2, 1), Box(0, size.height - 1, 1, 2),
                Box(size.width, size.height, 1, 1),
            ):  # fmt: skip
                with pytest.raises(ValueError, match="leaves level"):
                    slide.read(box, level)

    def test_missing_level_is_refused(self, slide: Slide) -> None:
        for level in (-1, len(slide.info.levels)):
            with pytest.raises(ValueError, match="no level"):
                slide.read(Box(0, 0, 1, 1), level)

    def test_empty_box_is_refused(self, slide: Slide) -> None:
        for box in (Box(0, 0, 0, 1), Box(0, 0, 1, 0), Box(1, 1, -1, 1)):
            with pytest.raises(ValueError, match="leaves level"):
                slide.read(box)

    def test_pixels_have_the_shape_of_the_box(self, slide: Slide) -> None:
        for level in range(len(slide.info.levels)):
            for box in sample_boxes(corner_box(slide, level), slide.info.levels[level].chunk_width, seed=level):
                pixels = slide.read(box, level)
                assert pixels.shape == (box.height, box.width, 3)
                assert pixels.dtype == np.uint8
                assert pixels.flags.c_contiguous

    def test_small_reads_are_crops_of_large_reads(self, slide: Slide) -> None:
        for level, size in enumerate(slide.info.levels):
            whole = slide.read(corner_box(slide, level), level)
            for box in sample_boxes(corner_box(slide, level), size.chunk_width, seed=level):
                part = whole[box.y : box.bottom, box.x : box.right]
                assert np.array_equal(slide.read(box, level), part), (level, box)

    @pytest.mark.parametrize("by", [2, 4, 8])
    def test_shrunk_level_is_close_to_the_area_mean(self, slide: Slide, by: int) -> None:
        size = slide.info.levels[0].downscale(by)
        box = Box(0, 0, min(size.width, MAX_CORNER // by), min(size.height, MAX_CORNER // by))
        whole = slide.read(box, 0, by)
        assert whole.shape == (box.height, box.width, 3)
        across, down = min(slide.info.width // by, box.width), min(slide.info.height // by, box.height)
        area = resample(slide.read(Box(0, 0, across * by, down * by)), across, down)
        assert np.abs(whole[:down, :across].mean((0, 1)) - area.mean((0, 1))).max() < 4  # hard edges overshoot
        with pytest.raises(ValueError, match="leaves level"):
            slide.read(Box(0, 0, size.width + 1, 1), 0, by)

    @pytest.mark.parametrize("by", [1, 2])
    def test_needed_boxes_have_their_pixels(self, slide: Slide, by: int) -> None:
        size = slide.info.levels[0].downscale(by)
        box = Box(0, 0, min(size.width, MAX_CORNER), min(size.height, MAX_CORNER))
        places = np.array(sample_boxes(box, size.chunk_width, seed=by), np.int64)[4:8]
        whole, some = slide.read(box, 0, by), slide.read(box, 0, by, places)
        assert some.shape == whole.shape
        for x, y, width, height in places.tolist():
            assert np.array_equal(some[y : y + height, x : x + width], whole[y : y + height, x : x + width])

    def test_repeated_read_gives_the_same_bytes_in_a_new_array(self, slide: Slide) -> None:
        box = corner_box(slide, 0)
        first = slide.read(box)
        before = first.copy()
        other = slide.read(Box(0, 0, max(1, box.width // 2), max(1, box.height // 2)))
        other[:] = 0
        assert np.array_equal(first, before)
        assert slide.read(box).tobytes() == before.tobytes()

    def test_region_at_the_mpp_of_the_slide_equals_a_read(self, slide: Slide) -> None:
        slide.info = slide.info.with_mpp(0.25)
        box = corner_box(slide, 0)
        assert slide.info.mpp is not None
        assert np.array_equal(slide.region(box, slide.info.mpp), slide.read(box))

    def test_region_at_a_coarser_mpp_is_smaller_with_the_same_mean(self, slide: Slide) -> None:
        slide.info = slide.info.with_mpp(0.25)
        box = corner_box(slide, 0)
        assert slide.info.mpp is not None
        small = slide.region(box, slide.info.mpp * 2)
        assert small.shape == (max(1, round(box.height / 2)), max(1, round(box.width / 2)), 3)
        assert np.abs(small.mean((0, 1)) - slide.read(box).mean((0, 1))).max() < 4

    def test_region_outside_the_slide_is_white(self, slide: Slide) -> None:
        slide.info = slide.info.with_mpp(0.25)
        info = slide.info
        assert info.mpp is not None
        inside = Box(0, 0, min(20, info.width), min(15, info.height))
        region = slide.region(Box(-20, -10, 20 + inside.width, 10 + inside.height), info.mpp)
        assert (region[:10] == 255).all()
        assert (region[:, :20] == 255).all()
        assert np.array_equal(region[10:, 20:], slide.read(inside))
        assert (slide.region(Box(info.width, 0, 8, 8), info.mpp) == 255).all()

    def test_overview_covers_the_whole_slide(self, slide: Slide) -> None:
        slide.info = slide.info.with_mpp(0.25)
        info = slide.info
        assert info.mpp is not None
        view = slide.overview(info.mpp * 4)
        assert view.shape == (max(1, round(info.height / 4)), max(1, round(info.width / 4)), 3)
        left = slide.region(Box(0, 0, info.width // 8 * 4, info.height), info.mpp * 4)
        assert np.abs(view[:, : left.shape[1]].mean((0, 1)) - left.mean((0, 1))).max() < 3

    def test_override_counts_only_for_a_file_without_mpp(self, slide: Slide) -> None:
        own = slide.info.mpp
        settled = slide.info.with_mpp(0.33)
        assert (settled.mpp, settled.mpp_source) == ((0.33, "override") if own is None else (own, "file"))
        with pytest.raises(SlideError, match="neither a plausible mpp nor an objective") as caught:
            replace(slide.info, mpp=None, mpp_source=None).with_mpp(None)
        assert caught.value.code == "no-mpp"

    def test_closing_twice_is_allowed(self, slide: Slide) -> None:
        slide.close()
        slide.close()
