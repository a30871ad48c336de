"""A slide as arrays: blocks of every level equal direct reads, with any number of threads."""

from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import SlideError
from her2batch.exchange import slide_arrays
from her2batch.exchange.slide_arrays import SlideReader
from tests.conftest import MakeSlide


@pytest.fixture
def path(make_slide: MakeSlide) -> Path:
    return make_slide("a.tiff", size=(900, 700), brown=0.4, levels=2)


@pytest.mark.parametrize("level", [0, 1])
def test_every_level_is_an_array_of_blocks(path: Path, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slide_arrays, "BLOCK_PX", 300)
    with SlideReader(path) as slide:
        array, size = slide.dask(level), slide.info.levels[level]
        assert array.shape == (size.height, size.width, 3)
        whole = array.compute(scheduler="threads", num_workers=3)
        assert np.array_equal(whole, array.compute(scheduler="synchronous"))
        if level == 0:
            assert np.array_equal(whole, slide.region((0, 0), (900, 700)))


def test_regions_outside_the_slide_are_white_and_scaled_to_the_resolution(path: Path) -> None:
    with SlideReader(path) as slide:
        assert slide.region((-448, -448), (448, 448), mpp=0.5).shape == (224, 224, 3)
        assert (slide.region((-448, -448), (448, 448), mpp=0.5) == 255).all()


def test_a_thumbnail_is_at_most_2048_px(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SlideReader(path) as slide:
        assert slide.thumbnail.shape == (700, 900, 3)
        monkeypatch.setattr(slide_arrays, "THUMBNAIL_PX", 450)
        assert slide.thumbnail.shape == (350, 450, 3)


def test_a_slide_without_resolution_needs_one(make_slide: MakeSlide) -> None:
    path = make_slide("b.tiff", mpp=None)
    with pytest.raises(SlideError, match="mpp"):
        SlideReader(path).info  # noqa: B018
    with SlideReader(path, mpp=0.25) as slide:
        assert (slide.info.mpp, slide.info.mpp_source) == (0.25, "override")
