"""DICOM slides whose levels lie in several folders or series, read as one slide."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import SlideError
from her2batch.slides.dicom.joined import series_files
from her2batch.slides.discover import discover_slides
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, Slide
from tests.contract.reader_contract import SlideContract
from tests.slides.dicom.levels import MPP, level_picture, write_level


def open_joined(folder: Path) -> Slide:
    (files,) = discover_slides(folder).slides
    return open_slide(files.path, members=files.members)


@pytest.fixture(params=["folders", "series"])
def scans(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three levels, the coarsest first: a folder each, or a series each."""
    for level in range(3):
        if request.param == "folders":
            write_level(tmp_path / f"{2 - level}" / "image", level)
        else:
            write_level(tmp_path / f"{2 - level}.dcm", level, series=level)
    return tmp_path


class TestJoinedDicom(SlideContract):
    @pytest.fixture
    def slide(self, scans: Path) -> Iterator[Slide]:
        with open_joined(scans) as slide:
            yield slide

    def test_every_level_has_its_own_pixels(self, slide: Slide) -> None:
        assert [(level.width, level.height) for level in slide.info.levels] == [(384, 256), (192, 128), (96, 64)]
        assert (slide.info.format, slide.info.mpp) == ("dicom", pytest.approx(MPP))
        for level, size in enumerate(slide.info.levels):
            pixels = slide.read(Box(0, 0, size.width, size.height), level)
            assert np.array_equal(pixels, level_picture(level, seed=1))


def test_another_thread_can_open_the_slide_again(scans: Path) -> None:
    with open_joined(scans) as slide, open_slide(slide.info.path, "auto", slide.info.members) as again:
        assert again.info == slide.info


def test_damaged_level_is_named(scans: Path) -> None:
    (files,) = discover_slides(scans).slides
    coarsest = files.members[0]
    coarsest.write_bytes(coarsest.read_bytes()[:-5000])
    with pytest.raises(SlideError, match=coarsest.name), open_joined(scans) as slide:
        slide.validate()


def test_one_series_in_one_folder_is_opened_once(tmp_path: Path) -> None:
    paths = [write_level(tmp_path / f"{level}.dcm", level) for level in range(3)]
    assert series_files(paths) == paths[:1]
