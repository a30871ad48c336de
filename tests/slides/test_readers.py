"""The choice of a reader for each file; all readers return the same pixels."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from her2batch.errors import InputError, SlideError
from her2batch.slides.readers import READERS, open_slide
from her2batch.slides.slide import Box, Level, Slide, SlideInfo
from tests.slides.ndpi import write_ndpi


@pytest.mark.parametrize(
    ("name", "kind", "reader", "mpp", "source"),
    [
        ("CMU-1-Small-Region.svs", "aperio", "tiff", 0.499, "file"),
        ("tcga-cr-7395-01a-01-ts1.svs", "aperio", "tiff", None, None),
        ("CMU-1-small.tiff", "generic-tiff", "tiff", 3.195, "file"),
        ("HE_example.tif", "ome-tiff", "tiff", 0.5, "file"),
        ("boxes.tiff", "generic-tiff", "tiff", None, None),  # 352.8 µm/px is 72 dpi, not a resolution
        ("small.svs", "aperio", "tiff", 0.499, "file"),
        ("😐.svs", "aperio", "tiff", 0.499, "file"),
        ("jpeg.dicom", "dicom", "openslide", 16.783, "file"),
        ("sm_image.dcm", "dicom", "openslide", 0.499, "file"),
        ("multi_frame_jpeg_camelyon_challenge_image.dcm", "dicom", "openslide", None, None),
        ("dicom_boxes/boxes_0.dcm", "dicom", "openslide", 0.499, "file"),
    ],
)
def test_real_slides_open_with_the_right_reader(real_data: Path, name, kind, reader, mpp, source) -> None:
    with open_slide(real_data / "slides" / name) as slide:
        slide.validate()
        assert (slide.info.format, slide.info.reader, slide.info.mpp_source) == (kind, reader, source)
        assert slide.info.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
        assert slide.read(Box(0, 0, 8, 8)).shape == (8, 8, 3)


def read_first_px(path: Path) -> NDArray[np.uint8]:
    """Validate a slide and read its first px."""
    with open_slide(path) as slide:
        slide.validate()
        return slide.read(Box(0, 0, 1, 1))


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("broken.svs", "unreadable", "Unsupported or missing image file"),
        ("unreadable.svs", "unreadable", "tile 0"),
        ("unopenable.tiff", "unreadable", "compression 52479"),
        ("mask_test.tif", "not-a-slide", "not a brightfield slide"),
    ],
)
def test_bad_slides_are_refused_with_the_reason(real_data: Path, name: str, code: str, words: str) -> None:
    path = real_data / "bad_slides" / name
    with pytest.raises(SlideError, match=words) as caught:
        read_first_px(path)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_all_readers_return_the_same_pixels(cores: dict[str, Path], real_data: Path) -> None:
    """Limit: 0, because all three use the same libjpeg-turbo; other builds may differ by 1 or 2 grey levels."""
    for path in (cores["3+"], real_data / "slides/CMU-1-Small-Region.svs"):
        shown = []
        for reader in READERS:
            if reader == "cucim":
                pytest.importorskip("cucim.clara")
            with open_slide(path, reader) as slide:
                assert slide.info.reader == reader
                shown.append(slide.read(Box(100, 200, 900, 700)).astype(int))
        assert max(int(np.abs(pixels - shown[0]).max()) for pixels in shown) == 0


def test_openslide_interpolates_levels_of_rounded_size(real_data: Path) -> None:
    """The downsample of level 1 is 2.0005. Measured outside the first cell: max 49, mean 4.4; inside: 0."""
    path = real_data / "slides/tcga-cr-7395-01a-01-ts1.svs"
    with open_slide(path) as ours, open_slide(path, "openslide") as theirs:
        for box, most, mean in ((Box(0, 0, 500, 400), 0, 0.0), (Box(1100, 1050, 500, 400), 255, 6.0)):
            gap = np.abs(ours.read(box, 1).astype(int) - theirs.read(box, 1))
            assert gap.max() <= most
            assert gap.mean() <= mean


def test_ndpi_is_read_from_its_runs_or_through_openslide(tmp_path: Path) -> None:
    path = write_ndpi(tmp_path / "a.ndpi", np.full((256, 1024, 3), 200, np.uint8), mpp=0.23)
    for reader, used in (("auto", "tiff"), ("tiff", "tiff"), ("openslide", "openslide")):
        with open_slide(path, reader) as slide:
            assert slide.info.reader == used


def test_proprietary_tiff_needs_openslide(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    rgb = np.zeros((256, 256, 3), np.uint8)
    about = "Background Color=E6E6E6;Objective Power=20;OverlapsXY=4 4"
    tifffile.imwrite(path, rgb, photometric="rgb", tile=(64, 64), software="MedScan", description=about, metadata=None)
    with pytest.raises(SlideError, match="use the reader openslide"):
        open_slide(path, "tiff")


def test_unsupported_tiff_is_read_through_openslide(tmp_path: Path) -> None:
    grey = np.full((256, 256, 3), (200, 128, 128), np.uint8)
    path = tmp_path / "luminance.tiff"
    tifffile.imwrite(path, grey, photometric="ycbcr", subsampling=(1, 1), tile=(64, 64), metadata=None)
    with open_slide(path) as slide:
        assert slide.info.reader == "openslide"
        assert (slide.read(Box(0, 0, 256, 256)) == 200).all()


def test_error_names_the_unsupported_feature(tmp_path: Path) -> None:
    path = tmp_path / "luminance.tiff"  # in strips, which OpenSlide does not read
    grey = np.full((256, 256, 3), (200, 128, 128), np.uint8)
    tifffile.imwrite(path, grey, photometric="ycbcr", subsampling=(1, 1), metadata=None)
    with pytest.raises(SlideError, match="YCbCr with compression"):
        open_slide(path)


def test_truncated_slide_is_not_given_to_another_reader(tmp_path: Path, real_data: Path) -> None:
    data = (real_data / "slides/CMU-1-Small-Region.svs").read_bytes()
    for size in (6, 12, 1000, len(data) // 2, len(data) - 1):
        (tmp_path / "a.svs").write_bytes(data[:size])
        with pytest.raises(SlideError) as caught:
            open_slide(tmp_path / "a.svs")
        assert caught.value.code == "truncated"


def test_empty_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").touch()
    (tmp_path / "folder.svs").mkdir()
    for name, code in (("empty.svs", "unreadable"), ("folder.svs", "unreadable"), ("nothing.svs", "gone")):
        with pytest.raises(SlideError) as caught:
            open_slide(tmp_path / name)
        assert caught.value.code == code


def test_unknown_reader_is_refused_with_the_valid_names(real_data: Path) -> None:
    with pytest.raises(InputError, match="auto, tiff, cucim, nvimgcodec, openslide"):
        open_slide(real_data / "slides/small.svs", "bioformats")


class ToySlide(Slide):
    """A new reader is one class and one row."""

    def __init__(self, path: Path) -> None:
        self.info = SlideInfo(path, "toy", "toy", (Level(64, 48, 16, 16),), None, None, None)

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        return np.full((box.height, box.width, 3), 42, np.uint8)


def test_new_reader_is_one_class_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "toy", ToySlide)
    (tmp_path / "a.toy").write_text("whatever")
    with open_slide(tmp_path / "a.toy", "toy") as slide:
        assert (slide.read(Box(0, 0, 5, 4)) == 42).all()
        assert slide.info.with_mpp(0.5).mpp == 0.5


def test_auto_does_not_import_cucim(real_data: Path) -> None:
    """Importing cuCIM takes about 500 MB on every GPU it can see."""
    code = (
        "import sys; from pathlib import Path; from her2batch.slides.readers import open_slide; "
        f"open_slide(Path({str(real_data / 'slides/small.svs')!r})).validate(); "
        "print([name for name in sys.modules if name.split('.')[0] in ('cucim', 'cupy', 'ray', 'torch')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert run.stderr == ""
