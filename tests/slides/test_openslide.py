"""Slides read through OpenSlide: DICOM, NDPI and TIFF."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from her2batch.errors import SlideError
from her2batch.slides.fingerprint import fingerprint_slide
from her2batch.slides.jpeg import RGB_MARKER
from her2batch.slides.openslide import OpenSlideSlide
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, Slide
from tests.conftest import tissue_image
from tests.contract.reader_contract import SlideContract
from tests.slides.damage import copies_with_hole, truncated_copies
from tests.slides.ndpi import write_ndpi
from tests.slides.test_jpeg import JFIF_HEADER, as_stored, encode_components
from tests.slides.tiff.pyramids import halved, padded, picture, write_pages
from tests.stand_ins.dicom_files import Kind, make_image


@pytest.fixture(scope="session")
def tissue(real_data: Path) -> np.ndarray:
    """Real HER2 3+ tissue: (1024, 2048, 3) uint8."""
    jpg = next((real_data / "her2_cores").glob("3_*.jpg"))
    return cv2.cvtColor(cv2.imread(str(jpg)), cv2.COLOR_BGR2RGB)[2000:3024, 2000:4048].copy()


@pytest.fixture(scope="session")
def ndpi(tissue: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ndpi(tmp_path_factory.mktemp("ndpi") / "a.ndpi", tissue, mpp=0.23)


class TestNdpi(SlideContract):
    @pytest.fixture
    def slide(self, ndpi: Path) -> Iterator[Slide]:
        with OpenSlideSlide(ndpi) as slide:
            yield slide

    @pytest.mark.slow
    def test_metadata_and_pixels_are_those_written(self, slide: Slide, tissue: np.ndarray) -> None:
        info = slide.info
        assert (info.format, info.reader, info.objective) == ("hamamatsu", "openslide", 40)
        assert (info.mpp, info.mpp_source) == (pytest.approx(0.23), "file")
        assert (info.width, info.height) == (2048, 1024)
        assert len(info.levels) >= 2
        assert np.abs(slide.read(Box(0, 0, 2048, 1024)).astype(int) - tissue).mean() < 1.5

    @pytest.mark.slow
    def test_chunks_have_a_useful_size(self, slide: Slide) -> None:
        assert {(level.chunk_width, level.chunk_height) for level in slide.info.levels} == {(256, 256)}


@pytest.mark.parametrize("name", ["sm_image.dcm", "dicom_boxes/boxes_0.dcm", "jpeg.dicom"])
class TestDicom(SlideContract):
    @pytest.fixture
    def slide(self, real_data: Path, name: str) -> Iterator[Slide]:
        with open_slide(real_data / "slides" / name) as slide:
            assert (slide.info.format, slide.info.reader) == ("dicom", "openslide")
            yield slide


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "CMU-1-small.tiff", "tcga-cr-7395-01a-01-ts1.svs"])
class TestTiff(SlideContract):
    @pytest.fixture
    def slide(self, real_data: Path, name: str) -> Iterator[Slide]:
        with OpenSlideSlide(real_data / "slides" / name) as slide:
            yield slide


@pytest.mark.slow
def test_mpp_without_resolution_comes_from_the_objective(tissue: np.ndarray, tmp_path: Path) -> None:
    with OpenSlideSlide(write_ndpi(tmp_path / "a.ndpi", tissue, mpp=None, objective=20.0)) as slide:
        assert (slide.info.mpp, slide.info.mpp_source) == (0.5, "objective")


@pytest.mark.slow
def test_no_free_text_reaches_the_metadata(ndpi: Path) -> None:
    """The reference in the fixture, which is a patient in real files, is a property in OpenSlide only."""
    with OpenSlideSlide(ndpi) as slide:
        assert "Jane Doe" in dict(slide._slide.properties).values()
        assert "Jane" not in repr(slide.info)


@pytest.mark.slow
def test_transparent_pixels_get_the_background_colour(real_data: Path) -> None:
    with OpenSlideSlide(real_data / "slides/boxes.tiff") as slide:
        rgba = np.zeros((2, 3, 4), np.uint8)
        rgba[0, 0] = (10, 20, 30, 255)
        rgba[1, 1] = (10, 20, 30, 128)
        slide._background = np.array([250, 240, 230], np.uint16)
        shown = slide._blend_background(rgba)
    assert shown[0, 0].tolist() == [10, 20, 30]
    assert shown[0, 2].tolist() == [250, 240, 230]
    assert shown[1, 1].tolist() == pytest.approx([129.5, 129.6, 129.6], abs=1)


def count_results(path: Path, variants: Iterator[bytes], read_all: bool = False) -> Counter[str]:
    found: Counter[str] = Counter()
    for data in variants:
        path.write_bytes(data)
        try:
            with OpenSlideSlide(path) as slide:
                slide.validate(fingerprint_slide([path]).holes)
            found["accepted"] += 1
        except SlideError as error:
            found[error.code] += 1
    return found


@pytest.mark.slow
def test_truncated_ndpi_or_dicom_is_refused(tmp_path: Path, ndpi: Path, real_data: Path) -> None:
    for path in (ndpi, real_data / "slides/sm_image.dcm", real_data / "slides/jpeg.dicom"):
        found = count_results(tmp_path / path.name, truncated_copies(path.read_bytes(), 25, seed=4))
        assert found.keys() <= {"truncated", "unreadable"}, (path.name, found)


@pytest.mark.slow
def test_ndpi_with_a_hole_is_refused(tmp_path: Path, ndpi: Path) -> None:
    found = count_results(tmp_path / "a.ndpi", copies_with_hole(ndpi.read_bytes(), 65536, 25, seed=4))
    assert found.keys() <= {"truncated", "unreadable"}, found


@pytest.mark.slow
def test_unreadable_file_is_an_error_with_the_reason(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    for path in (tmp_path / "text.svs", real_data / "slides/HE_example.tif"):
        with pytest.raises(SlideError, match="OpenSlide cannot read the file") as caught:
            OpenSlideSlide(path)
        assert caught.value.code == "unreadable"


@pytest.mark.slow
def test_slide_stays_refused_after_an_error(real_data: Path) -> None:
    with OpenSlideSlide(real_data / "bad_slides/unreadable.svs") as slide:
        for _ in range(2):
            with pytest.raises(SlideError):
                slide.read(Box(0, 0, 8, 8))


def write_dicom(path: Path, rgb: np.ndarray, photometric: str, encode: Callable[[np.ndarray], bytes]) -> Path:
    image = make_image(rgb, 0.25, Kind(series=7, tile=128))
    image.PhotometricInterpretation = photometric
    tiles = [rgb[y : y + 128, x : x + 128] for y in range(0, len(rgb), 128) for x in range(0, rgb.shape[1], 128)]
    image.PixelData = encapsulate([encode(np.ascontiguousarray(tile)) for tile in tiles])
    image.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
@pytest.mark.parametrize("header", [b"", JFIF_HEADER])
def test_ycbcr_under_the_tag_rgb_in_dicom_is_converted(tmp_path: Path, subsampling: str, header: bytes) -> None:
    rgb = tissue_image(512, 256, seed=4, brown=0.6)

    def encode(tile: np.ndarray) -> bytes:
        return encode_components(as_stored(tile, "YCBCR"), subsampling, header)

    for photometric, notes in (("RGB", ("colour-tag-mended",)), ("YBR_FULL_422", ())):
        with OpenSlideSlide(write_dicom(tmp_path / f"{photometric}.dcm", rgb, photometric, encode)) as slide:
            assert slide.info.notes == notes
            assert np.abs(slide.read(Box(0, 0, 512, 256)).astype(int) - rgb).mean() < 3


@pytest.mark.slow
@pytest.mark.parametrize("header", [b"", RGB_MARKER])
def test_rgb_under_the_tag_ycbcr_in_dicom_is_refused_with_the_command_that_corrects_it(
    tmp_path: Path, header: bytes
) -> None:
    rgb = tissue_image(512, 256, seed=4, brown=0.6)
    path = write_dicom(tmp_path / "a.dcm", rgb, "YBR_FULL_422", lambda tile: encode_components(tile, "444", header))
    with pytest.raises(SlideError, match=r"hold RGB .* dcmodify -m") as refused:
        OpenSlideSlide(path)
    assert refused.value.code == "unreadable"
    assert path.name not in refused.value.remedy  # pseudonymised rows repeat the remedy


@pytest.mark.slow
def test_tag_that_openslide_does_not_know_is_refused_with_the_command_that_corrects_it(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a.dcm", tissue_image(256, 256), "YBR_FULL", lambda tile: encode_components(tile, "444")
    )
    with pytest.raises(SlideError, match=r"YBR_FULL .* dcmodify -m .*YBR_FULL_422"):
        OpenSlideSlide(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more", "mpp"),
    [
        ("a.ome.tif", {"metadata": {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}}, 0.25),
        ("a.tif", {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}, 0.25),
        ("a.tif", {"description": "Other 2\r\n|AppMag = 40|MPP = 0,25"}, 0.25),
        ("a.svs", {"description": "Aperio Image\r\n|AppMag = 40|MPP = 0,2508"}, 0.2508),
    ],
)
def test_resolution_of_plain_tiff_is_the_same_through_openslide(
    tmp_path: Path, name: str, more: dict, mpp: float
) -> None:
    path = tmp_path / name
    image = np.full((300, 400, 3), 200, np.uint8)
    tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb", **{"metadata": None, **more})
    for reader in ("openslide", "tiff"):
        with open_slide(path, reader) as slide:
            assert (slide.info.mpp, slide.info.mpp_source) == (pytest.approx(mpp), "file")


@pytest.mark.slow
def test_unequal_axes_are_named_through_openslide(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    more = {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER", "metadata": None}
    tifffile.imwrite(path, np.full((300, 400, 3), 200, np.uint8), tile=(128, 128), photometric="rgb", **more)
    for reader in ("openslide", "tiff"):
        with (
            open_slide(path, reader) as slide,
            pytest.raises(SlideError, match=r"0\.25 µm/px along x and 0\.5 µm/px along y"),
        ):
            slide.info.with_mpp(None)


@pytest.mark.slow
def test_frames_that_a_sparse_dicom_lacks_are_missing_area(tmp_path: Path) -> None:
    rgb = tissue_image(512, 384, seed=4, brown=0.6)
    image = make_image(rgb, 0.25, Kind(series=8, tile=128))
    image.DimensionOrganizationType = "TILED_SPARSE"
    places = [(y, x) for y in range(0, 384, 128) for x in range(0, 512, 128)]
    stored = [place for place in places if place not in ((128, 256), (0, 0))]
    image.PixelData = encapsulate(
        [encode_components(as_stored(rgb[y : y + 128, x : x + 128], "YCBCR"), "422") for y, x in stored]
    )
    image.NumberOfFrames = len(stored)
    groups = []
    for y, x in stored:
        position, group = Dataset(), Dataset()
        position.ColumnPositionInTotalImagePixelMatrix, position.RowPositionInTotalImagePixelMatrix = x + 1, y + 1
        group.PlanePositionSlideSequence = Sequence([position])
        groups.append(group)
    image.PerFrameFunctionalGroupsSequence = Sequence(groups)
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with OpenSlideSlide(tmp_path / "a.dcm") as slide:
        pixels = slide.read(Box(0, 0, 512, 384))
        assert (pixels[128:256, 256:384] == 255).all()
        assert np.abs(pixels[256:].astype(int) - rgb[256:]).mean() < 3
        area = slide.missing_area()
        assert area is not None
        assert (area.width, area.height) == (512, 384)
        assert area.mask[128:256, 256:384].all()
        assert area.mask.sum() == 2 * 128 * 128


@pytest.mark.slow
def test_levels_padded_to_whole_tiles_are_left_out(tmp_path: Path) -> None:
    image = picture(1152, 1152)
    pages = [(image, {}), *((padded(halved(image, k), 128), {"subfiletype": 1}) for k in (1, 2))]
    with open_slide(write_pages(tmp_path / "padded.tif", pages), "openslide") as slide:
        assert slide.info.level_downsamples == (1.0,)
    pages = [(image, {}), (padded(halved(image), 128), {"subfiletype": 1}), (halved(image, 2), {"subfiletype": 1})]
    with open_slide(write_pages(tmp_path / "mixed.tif", pages), "openslide") as slide:
        assert slide.info.level_downsamples == (1.0, 4.0)
        assert np.array_equal(slide.read(Box(0, 0, 288, 288), 1), halved(image, 2))


@pytest.mark.slow
def test_another_image_than_the_slide_is_refused(tmp_path: Path) -> None:
    """OpenSlide takes the first page for the slide, and one colour for all."""
    image = picture(600, 500)
    pages = [(halved(image, 2), {}), (image, {})]
    small_first = write_pages(tmp_path / "small_first.tif", pages)
    red = tmp_path / "red.ome.tif"
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.25, "Channel": {"Name": ["Red", "Green", "Blue"]}}
    tifffile.imwrite(red, np.moveaxis(image, -1, 0), tile=(128, 128), photometric="minisblack", metadata=metadata)
    for path in (small_first, red):
        with pytest.raises(SlideError, match=r"OpenSlide shows an image of .*use --reader auto"):
            open_slide(path, "openslide")
        with open_slide(path) as slide:
            assert (slide.info.width, slide.info.height) == (500, 600)
