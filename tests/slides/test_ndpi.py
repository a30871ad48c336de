"""NDPI slides read from their runs: the same pixels as through OpenSlide, and chunks that are copied unchanged."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import zarr

from her2batch.errors import SlideError
from her2batch.slides.fingerprint import fingerprint_slide
from her2batch.slides.jpeg import complete_jpeg
from her2batch.slides.ndpi import NdpiSlide, RunTable, parse_ndpi
from her2batch.slides.pyramid import Pyramid, write_pyramid
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, Slide
from her2batch.slides.tiff_tables import UnsupportedTiff
from tests.contract.reader_contract import SlideContract
from tests.slides.damage import copies_with_hole, copies_with_zeroed_end, truncated_copies
from tests.slides.ndpi import write_ndpi


@pytest.fixture(scope="session")
def tissue(real_data: Path) -> np.ndarray:
    """Real HER2 3+ tissue: (1100, 2048, 3) uint8; the edge of the image cuts the last runs."""
    jpg = next((real_data / "her2_cores").glob("3_*.jpg"))
    return cv2.cvtColor(cv2.imread(str(jpg)), cv2.COLOR_BGR2RGB)[2000:3100, 2000:4048].copy()


@pytest.fixture(scope="session")
def ndpi(tissue: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ndpi(tmp_path_factory.mktemp("ndpi") / "a.ndpi", tissue, mpp=0.23)


def read_level(slide: Slide, level: int = 0) -> np.ndarray:
    size = slide.info.levels[level]
    return slide.read(Box(0, 0, size.width, size.height), level)


class TestNdpi(SlideContract):
    @pytest.fixture
    def slide(self, ndpi: Path) -> Iterator[Slide]:
        with open_slide(ndpi) as slide:
            yield slide

    def test_metadata_and_pixels_are_those_written(self, slide: Slide, tissue: np.ndarray) -> None:
        info = slide.info
        assert (info.format, info.reader, info.objective) == ("hamamatsu", "tiff", 40)
        assert (info.mpp, info.mpp_source) == (pytest.approx(0.23), "file")
        assert [(level.width, level.height) for level in info.levels] == [(2048, 1100), (512, 275)]
        assert {(level.chunk_width, level.chunk_height) for level in info.levels} == {(256, 256)}
        assert np.abs(read_level(slide).astype(int) - tissue).mean() < 1.5


def test_mpp_without_resolution_comes_from_the_objective(tissue: np.ndarray, tmp_path: Path) -> None:
    with open_slide(write_ndpi(tmp_path / "a.ndpi", tissue, mpp=None, objective=20.0)) as slide:
        assert (slide.info.mpp, slide.info.mpp_source) == (0.5, "objective")


@pytest.mark.parametrize("sampling", ["444", "422"])
@pytest.mark.parametrize("height", [8, 251, 256, 257, 1100])
def test_pixels_are_identical_to_openslide(tissue: np.ndarray, tmp_path: Path, sampling: str, height: int) -> None:
    """Except a last row of blocks that the edge of the image cuts: OpenSlide does not show it."""
    path = write_ndpi(tmp_path / "a.ndpi", tissue[:height], mpp=0.23, levels=1 + (height > 8), sampling=sampling)
    with open_slide(path, "tiff") as ours, open_slide(path, "openslide") as theirs:
        ours.validate()
        sizes = [(level.width, level.height) for level in theirs.info.levels]
        for level, size in enumerate(ours.info.levels):
            high = size.height // 8 * 8
            expected = read_level(theirs, sizes.index((size.width, size.height)))
            assert np.array_equal(read_level(ours, level)[:high], expected[:high])
            assert (expected[high:] == 255).all()


def test_half_width_colour_is_smoothed_only_within_a_run(tissue: np.ndarray, tmp_path: Path) -> None:
    """Decoding the whole JPEG at once gives other pixels at the borders of runs, by up to 11 grey levels here."""
    path = write_ndpi(tmp_path / "a.ndpi", tissue, mpp=0.23, levels=1, sampling="422")
    table = parse_ndpi(path).levels[0]
    assert isinstance(table, RunTable)
    data = path.read_bytes()[: table.starts[-1]]
    at_once = cv2.imdecode(np.frombuffer(data[data.rindex(b"\xff\xd8") :], np.uint8), cv2.IMREAD_COLOR_RGB)
    difference = np.abs(read_level(open_slide(path)).astype(int) - at_once).max(axis=2)
    assert difference.max() <= 11
    assert set(np.unique(np.nonzero(difference)[1] % table.tile_width)) <= {0, table.tile_width - 1}


def test_chunks_are_valid_jpegs(ndpi: Path) -> None:
    with NdpiSlide(ndpi) as slide:
        expected = read_level(slide)
        table = slide.table(0)
        for index in range(len(table.offsets)):
            row, column = divmod(index, table.across)
            chunk = imagecodecs.jpeg8_decode(
                complete_jpeg(slide.raw_tile(0, index), table.jpeg_tables, table.colorspace)
            )
            assert chunk.shape == (256, 256, 3)
            part = expected[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256]
            assert np.array_equal(chunk[: len(part)], part)


def test_small_level_without_restart_markers_is_one_chunk(tissue: np.ndarray, tmp_path: Path) -> None:
    path = write_ndpi(tmp_path / "a.ndpi", tissue, mpp=0.23, runs=1)
    with open_slide(path, "tiff") as ours, open_slide(path, "openslide") as theirs:
        ours.validate()
        last = ours.info.levels[1]
        assert (last.chunk_width, last.chunk_height) == (last.width, last.height) == (512, 275)
        assert np.array_equal(read_level(ours, 1), read_level(theirs, theirs.info.level_downsamples.index(4)))


def test_offsets_beyond_4_gb_are_read(tissue: np.ndarray, tmp_path: Path) -> None:
    path = write_ndpi(tmp_path / "a.ndpi", tissue, mpp=0.23, start=(5 << 30) + 123)  # a sparse file
    with open_slide(path, "tiff") as ours, open_slide(path, "openslide") as theirs:
        assert int(ours.table(0).offsets[0]) > 5 << 30
        assert np.array_equal(read_level(ours)[:1096], read_level(theirs)[:1096])
        write_pyramid(ours, np.ones((1, 1), bool), tmp_path / "p.zarr", 90)
    path.unlink()
    assert np.array_equal(read_level(Pyramid(tmp_path / "p.zarr")), read_level(open_small_ndpi(tissue, tmp_path)))


def open_small_ndpi(tissue: np.ndarray, folder: Path) -> Slide:
    return open_slide(write_ndpi(folder / "small.ndpi", tissue, mpp=0.23))


def test_unusual_files_are_left_to_openslide(tissue: np.ndarray, tmp_path: Path) -> None:
    tall = write_ndpi(tmp_path / "tall.ndpi", tissue, mpp=0.23, sampling="420")
    uneven = write_ndpi(tmp_path / "uneven.ndpi", tissue[:, :1900].copy(), mpp=0.23, levels=1)
    changed = write_ndpi(tmp_path / "changed.ndpi", tissue, mpp=0.23)
    data = changed.read_bytes()
    changed.write_bytes(data.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x08", 1))
    for path, words in ((tall, "whole rows of blocks"), (uneven, "do not cover"), (changed, "not baseline YCbCr")):
        with pytest.raises(UnsupportedTiff, match=words):
            parse_ndpi(path)
    assert open_slide(changed).info.reader == "openslide"


def test_wrong_offsets_of_runs_are_left_to_openslide(tissue: np.ndarray, tmp_path: Path) -> None:
    path = write_ndpi(tmp_path / "a.ndpi", tissue, mpp=0.23)
    with NdpiSlide(path) as slide:
        starts = slide.table(0).starts[:-1] - slide.table(0).starts[0]
    data = path.read_bytes()
    first = data.index(find_run_offsets(data, starts))
    table = np.frombuffer(data[first : first + 4 * len(starts)], "<u4").copy()
    table[1:] += 1
    path.write_bytes(data[:first] + table.tobytes() + data[first + 4 * len(starts) :])
    with pytest.raises(UnsupportedTiff, match="restart markers are not at the offsets"):
        parse_ndpi(path)


def find_run_offsets(data: bytes, relative: np.ndarray) -> bytes:
    """Return the bytes of tag 65426. relative: offsets of the runs, from the first run."""
    for header in range(200, 2000):
        if (found := (relative + header).astype("<u4").tobytes()) in data:
            return found
    raise AssertionError("the offsets of the runs were not found")


def test_macro_image_is_no_level(ndpi: Path) -> None:
    found = parse_ndpi(ndpi)
    assert [level.width for level in found.levels] == [2048, 512]
    assert found.others == ()


@pytest.mark.parametrize(
    "copies", [lambda data: truncated_copies(data, 40, seed=4), lambda data: copies_with_zeroed_end(data, 40, seed=5)]
)
def test_truncated_file_is_refused(tmp_path: Path, ndpi: Path, copies) -> None:
    for data in copies(ndpi.read_bytes()):
        (tmp_path / "a.ndpi").write_bytes(data)
        with pytest.raises(SlideError) as caught, open_slide(tmp_path / "a.ndpi") as slide:
            slide.validate(fingerprint_slide([tmp_path / "a.ndpi"]).holes)
        assert caught.value.code in ("truncated", "unreadable")


@pytest.mark.parametrize("size", [4096, 65536])
def test_hole_is_refused_unless_it_is_outside_all_levels(tmp_path: Path, ndpi: Path, size: int) -> None:
    path = tmp_path / "a.ndpi"
    with open_slide(ndpi) as slide:
        expected = [read_level(slide, level) for level in range(2)]
    refused = 0
    for data in copies_with_hole(ndpi.read_bytes(), size, 40, seed=6):
        path.write_bytes(data)
        try:
            with open_slide(path) as slide:
                slide.validate(fingerprint_slide([path]).holes)
                assert all(np.array_equal(read_level(slide, level), expected[level]) for level in range(2))
        except SlideError as error:
            assert error.code in ("truncated", "unreadable")  # noqa: PT017
            refused += 1
    assert refused >= 36


def test_pyramid_has_the_same_runs_and_no_metadata(ndpi: Path, tmp_path: Path) -> None:
    with open_slide(ndpi) as slide:
        write_pyramid(slide, np.ones((1, 1), bool), tmp_path / "p.zarr", 90)
        for level in range(2):
            expected = read_level(slide, level)
            assert np.array_equal(read_level(Pyramid(tmp_path / "p.zarr"), level), expected)
            stored = zarr.open_group(tmp_path / "p.zarr", mode="r")[str(level)][:]
            assert np.array_equal(np.moveaxis(stored, 0, -1), expected)
    files = [file.read_bytes() for file in (tmp_path / "p.zarr").rglob("*") if file.is_file()]
    assert not any(b"Jane" in data or b"Hamamatsu" in data for data in files)
    shards = sum(file.stat().st_size for file in (tmp_path / "p.zarr/0").rglob("c/**/*") if file.is_file())
    table = parse_ndpi(ndpi).levels[0]
    assert isinstance(table, RunTable)
    assert shards < 1.03 * (table.starts[-1] - table.starts[0]) * (1280 / 1100)  # the last chunks are filled up


def test_flipped_bits_raise_slide_error_or_leave_a_valid_table(tmp_path: Path, ndpi: Path) -> None:
    data, rng = ndpi.read_bytes(), np.random.default_rng(8)
    spots = [at for table in parse_ndpi(ndpi).directories for at in range(*table)]
    spots += list(range(12, 12 + 700))  # the JPEG header of level 0
    for at in rng.choice(spots, 200).tolist():
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.ndpi").write_bytes(flipped)
        with contextlib.suppress(SlideError):
            for table in parse_ndpi(tmp_path / "a.ndpi").levels:
                ends = table.starts if isinstance(table, RunTable) else table.offsets + table.byte_counts
                assert int(ends.max()) <= len(data)
