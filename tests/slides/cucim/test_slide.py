"""The cuCIM reader, on a CPU."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import SlideError
from her2batch.slides.cucim.slide import CucimSlide
from her2batch.slides.pyramid import write_pyramid
from her2batch.slides.slide import Box, Slide
from her2batch.slides.tiff_slide import TiledTiffSlide
from tests.contract.reader_contract import SlideContract
from tests.slides.test_tiff_tables import write_philips
from tests.slides.tiff.pyramids import halved, ome_xml, padded, picture, write_pages

if "cucim" not in sys.modules and os.environ.get("CUDA_VISIBLE_DEVICES") is None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
pytest.importorskip("cucim.clara", reason="cuCIM isn't installed on this platform")


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "CMU-1-small.tiff", "HE_example.tif"])
class TestCucim(SlideContract):
    @pytest.fixture
    def slide(self, real_data: Path, name: str) -> Iterator[Slide]:
        with CucimSlide(real_data / "slides" / name) as slide:
            assert slide.info.reader == "cucim"
            yield slide


def differences(path: Path, most: int = 2000) -> list[tuple[int, float]]:
    found = []
    with TiledTiffSlide(path) as ours, CucimSlide(path) as theirs:
        assert theirs.info.levels == ours.info.levels
        assert theirs.info.mpp == ours.info.mpp
        for level, size in enumerate(ours.info.levels):
            box = Box(0, 0, min(size.width, most), min(size.height, most))
            gap = np.abs(theirs.read(box, level).astype(int) - ours.read(box, level))
            found.append((int(gap.max()), float(gap.mean())))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "CMU-1-small.tiff", "HE_example.tif"])
def test_pixels_are_identical_to_the_tiff_reader(real_data: Path, name: str) -> None:
    assert set(differences(real_data / "slides" / name)) == {(0, 0.0)}


@pytest.mark.slow
def test_pixels_of_cores_are_identical_to_the_tiff_reader(cores: dict[str, Path]) -> None:
    assert set(differences(cores["0"])) == {(0, 0.0)}


@pytest.mark.slow
def test_jpeg_2000_pixels_are_identical_to_the_tiff_reader(real_data: Path) -> None:
    assert set(differences(real_data / "slides/tcga-cr-7395-01a-01-ts1.svs", most=600)) == {(0, 0.0)}


@pytest.mark.slow
def test_damaged_slide_is_refused_before_cucim_opens_it(tmp_path: Path, real_data: Path) -> None:
    data = (real_data / "slides/CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "cut.svs").write_bytes(data[:-1000])
    with pytest.raises(SlideError) as caught:
        CucimSlide(tmp_path / "cut.svs")
    assert caught.value.code == "truncated"


@pytest.mark.slow
def test_levels_of_other_size_in_cucim_are_decoded_by_the_tiff_reader(tmp_path: Path) -> None:
    images = [np.full((h, w, 3), 120, np.uint8) for h, w in ((384, 640), (256, 384))]
    with CucimSlide(write_philips(tmp_path / "a.tiff", *images)) as slide:  # with padding, which is removed
        assert slide.info.levels[1].width == 320
        assert np.abs(slide.read(Box(0, 0, 320, 192), 1).astype(int) - 120).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "CMU-1-small.tiff", "HE_example.tif"])
def test_pyramids_of_both_readers_have_the_same_bytes(real_data: Path, tmp_path: Path, name: str) -> None:
    found = []
    for reader in (TiledTiffSlide, CucimSlide):
        with reader(real_data / "slides" / name) as slide:
            write_pyramid(slide, np.ones((8, 8), bool), tmp_path / reader.name, 80)
        root = tmp_path / reader.name
        found.append({str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()})
    assert found[0] == found[1]
    assert found[0]


@pytest.mark.slow
def test_files_of_kinds_that_cucim_lacks_are_decoded_by_the_tiff_reader(tmp_path: Path) -> None:
    image, macro = picture(600, 500), picture(128, 256, seed=2)
    xml = ome_xml(("macro", (256, 128), 8.0, 0), ("scan", (500, 600), 0.25, 1)).encode()
    images = [image, padded(halved(image), 128), padded(halved(image, 2), 128)]
    for path in (
        write_pages(tmp_path / "macro.ome.tif", [(macro, {"description": xml}), (image, {})]),
        write_pages(tmp_path / "padded.tif", [(level, {"subfiletype": int(k > 0)}) for k, level in enumerate(images)]),
        write_pages(tmp_path / "planes.tif", [(np.moveaxis(image, -1, 0).copy(), {"planarconfig": "separate"})]),
    ):
        assert {most for most, _ in differences(path)} == {0}
