"""The base class of slides: boxes, levels, resolution, resampling."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides.slide import DISAGREE, Box, Level, Slide, SlideInfo, resample, resolve_mpp, split_box


class GradientSlide(Slide):
    """A computed slide: red increases to the right, green downwards, equally at every level."""

    def __init__(self, *sizes: tuple[int, int], mpp: float | None = 0.25, chunk: int = 64) -> None:
        levels = tuple(Level(w, h, chunk, chunk) for w, h in sizes)
        self.info = SlideInfo(Path("gradient"), "toy", "toy", levels, mpp, None if mpp is None else "file", None)
        self.most = 0

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        self.most = max(self.most, box.width * box.height)
        size = self.info.levels[level]
        y, x = np.mgrid[box.y : box.bottom, box.x : box.right]
        red, green = (x + 0.5) / size.width * 255, (y + 0.5) / size.height * 255
        return np.stack([red, green, np.zeros_like(red)], axis=2).astype(np.uint8)


def test_right_and_bottom_of_a_box() -> None:
    assert (Box(2, 3, 10, 20).right, Box(2, 3, 10, 20).bottom) == (12, 23)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 300), st.integers(1, 300), st.integers(1, 128))
def test_split_box_covers_each_px_once(x: int, y: int, width: int, height: int, edge: int) -> None:
    seen = np.zeros((y + height, x + width), int)
    for part in split_box(Box(x, y, width, height), edge):
        assert max(part.width, part.height) <= edge
        seen[part.y : part.bottom, part.x : part.right] += 1
    assert (seen[y:, x:] == 1).all()
    assert seen.sum() == width * height


@pytest.mark.parametrize(
    ("axes", "objective", "settled"),
    [
        ((0.25, 0.25), 40, (0.25, "file")),
        ((0.25, 0.26), None, (0.255, "file")),
        ((0.25, None), 20, (0.25, "file")),
        ((0.25, 0.5), 40, (0.25, "objective")),  # axes that differ by more than 10 % are no resolution
        ((352.8, 352.8), None, (None, None)),  # 72 dpi
        ((352.8, 352.8), 20, (0.5, "objective")),
        ((0.0, 0.0), None, (None, None)),
        ((float("nan"), float("nan")), None, (None, None)),
        ((None, None), 40, (0.25, "objective")),
        ((None, None), 0, (None, None)),
        ((None, None), 1000, (None, None)),
        ((None, None), None, (None, None)),
    ],
)
def test_mpp_comes_from_the_file_else_from_the_objective(axes, objective, settled) -> None:
    assert resolve_mpp(*axes, objective) == settled


def test_too_large_read_is_refused_before_it_starts() -> None:
    slide = GradientSlide((100_000, 100_000))
    with pytest.raises(SlideError, match="100000 × 100000") as caught:
        slide.read(Box(0, 0, 100_000, 100_000))
    assert caught.value.code == "out-of-memory"
    with pytest.raises(SlideError, match="px"):
        slide.region(Box(-500_000, 0, 1_000_000, 10_000), 0.25)
    assert slide.most == 0


def test_level_for_a_downsample_is_never_coarser() -> None:
    slide = GradientSlide((4000, 4000), (1000, 1000), (250, 250))
    assert [slide.level_for(ds) for ds in (0.5, 1, 3.9, 4, 15, 16, 100)] == [0, 0, 0, 1, 1, 2, 2]


def test_region_is_read_from_the_coarsest_sufficient_level() -> None:
    slide = GradientSlide((4000, 4000), (1000, 1000))
    region = slide.region(Box(0, 0, 2000, 4000), 1.0)
    assert region.shape == (1000, 500, 3)
    assert slide.most == 500 * 1000
    assert region[:, -1, 0].tolist() == pytest.approx([127] * 1000, abs=1)


def test_tiles_are_read_from_a_level_twice_as_fine() -> None:
    slide = GradientSlide((4000, 4000), (2000, 2000), (1000, 1000))
    assert [slide.tile_source(ds) for ds in (1, 2, 4, 8, 64)] == [(0, 1), (0, 2), (1, 2), (2, 2), (2, 8)]
    assert [slide.tile_source(ds) for ds in (1.94, 1.95, 2.2, 3.9)] == [(0, 1), (0, 2), (0, 2), (0, 4)]


def test_overview_is_read_in_strips() -> None:
    slide = GradientSlide((6400, 6400))
    view = slide.overview(4.0)
    assert view.shape == (400, 400, 3)
    assert slide.most <= 6400 * 128
    expected = np.linspace(0, 255, 401)
    assert np.abs(view[0, :, 0] - (expected[:-1] + expected[1:]) / 2).max() <= 1.5
    assert np.abs(view[:, 0, 1] - (expected[:-1] + expected[1:]) / 2).max() <= 1.5


def test_strips_of_huge_chunks_are_limited() -> None:
    slide = GradientSlide((120_000, 9000), chunk=4096)
    with pytest.raises(SlideError):
        slide.read(Box(0, 0, 120_000, 8192))
    slide._pixels = lambda box, level: np.full((1, box.width, 3), 7, np.uint8)
    assert slide.whole_slide(300).shape == (30, 400, 3)


def test_resampling_keeps_a_uniform_image_uniform() -> None:
    flat = np.full((40, 60, 3), 90, np.uint8)
    for width, height in ((60, 40), (30, 20), (7, 9), (90, 80)):
        assert (resample(flat, width, height) == 90).all()


def test_region_and_overview_need_a_resolution() -> None:
    slide = GradientSlide((100, 100), mpp=None)
    for ask in (lambda: slide.region(Box(0, 0, 10, 10), 0.5), lambda: slide.overview(8)):
        with pytest.raises(SlideError) as caught:
            ask()
        assert caught.value.code == "no-mpp"


def test_slide_with_holes_is_read_completely() -> None:
    slide = GradientSlide((3000, 2500), (1500, 1250))
    slide.validate()
    assert slide.most == 0
    slide.validate(((0, 512),))
    assert slide.most == 2048 * 2048


def test_forced_resolution_replaces_what_the_file_states() -> None:
    info = replace(GradientSlide((100, 100), mpp=1.0).info, notes=(DISAGREE,))
    forced = info.with_mpp(0.5, 0.25)
    assert (forced.mpp, forced.mpp_source, forced.notes) == (0.25, "override", ("mpp-forced",))
    assert info.with_mpp(0.5, 1.0005) == info  # the same value: nothing is forced
    unstated = replace(info, mpp=None, mpp_source=None, notes=()).with_mpp(0.5, 0.25)
    assert (unstated.mpp, unstated.mpp_source, unstated.notes) == (0.25, "override", ())
