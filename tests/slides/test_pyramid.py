"""Pyramids: tissue only, tiles copied from the slide, readable by Zarr tools and as a Slide."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import dask.array
import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from her2batch.errors import SlideError
from her2batch.slides.pyramid import Pyramid, write_pyramid
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, Slide
from her2batch.slides.tiff_slide import TiledTiffSlide
from tests.conftest import tissue_image, write_slide
from tests.contract.reader_contract import SlideContract


@pytest.fixture
def slide(make_slide: Callable) -> Slide:
    return open_slide(make_slide(size=(1500, 1100), brown=0.4, levels=3))


def read_level(slide: Slide, level: int = 0) -> np.ndarray:
    size = slide.info.levels[level]
    return slide.read(Box(0, 0, size.width, size.height), level)


def all_tissue(slide: Slide) -> np.ndarray:
    return np.ones((slide.info.height // 64, slide.info.width // 64), bool)


class TestLosslessPyramid(SlideContract):
    """A pyramid meets the requirements for every reader."""

    @pytest.fixture
    def slide(self, tmp_path: Path, real_data: Path) -> Slide:
        source = open_slide(real_data / "slides/dicom_boxes/boxes_0.dcm")
        write_pyramid(source, np.ones((1, 1), bool), tmp_path / "p.zarr", 90, lossless=True)
        return Pyramid(tmp_path / "p.zarr")


class TestPyramid(SlideContract):
    """A pyramid meets the requirements for every reader."""

    @pytest.fixture
    def slide(self, tmp_path: Path, make_slide: Callable) -> Slide:
        source = open_slide(make_slide(size=(1500, 1100), brown=0.4, levels=3))
        write_pyramid(source, all_tissue(source), tmp_path / "p.zarr", 90)
        return Pyramid(tmp_path / "p.zarr")


def test_pixels_of_copied_tiles_are_identical(slide: Slide, tmp_path: Path) -> None:
    write_pyramid(slide, all_tissue(slide), tmp_path / "p.zarr", 90)
    pyramid = Pyramid(tmp_path / "p.zarr")
    for level in range(3):
        assert np.array_equal(read_level(pyramid, level), read_level(slide, level))
    box = Box(301, 77, 800, 600)
    assert np.array_equal(pyramid.region(box, 0.7), slide.region(box, 0.7))


def shard_files(pyramid: Path) -> list[Path]:
    return [path for path in pyramid.rglob("c/**/*") if path.is_file()]


def test_size_is_within_3_percent_of_the_tissue_in_the_slide(tmp_path: Path) -> None:
    """Also for small levels and thin tissue, because the size of shards is adapted."""
    image = np.tile(tissue_image(1000, 1040, brown=0.4), (5, 7, 1))
    slide = open_slide(write_slide(tmp_path / "a.tiff", image, levels=4))
    assert isinstance(slide, TiledTiffSlide)
    thin = np.eye(40, 54, dtype=bool)
    for name, tissue in (("whole", np.ones((40, 54), bool)), ("thin", thin)):
        write_pyramid(slide, tissue, tmp_path / name, 90)
        stored = sum(path.stat().st_size for path in shard_files(tmp_path / name))
        source = 0
        for level in range(4):
            size = slide.info.levels[level]
            for index, count in enumerate(slide.table(level).byte_counts.tolist()):
                row, column = divmod(index, slide.table(level).across)
                y, x = row * size.chunk_height * 40 // size.height, column * size.chunk_width * 54 // size.width
                bottom = -(-min((row + 1) * size.chunk_height, size.height) * 40 // size.height)
                right = -(-min((column + 1) * size.chunk_width, size.width) * 54 // size.width)
                source += count * tissue[y:bottom, x:right].any()
        assert source < stored < 1.03 * source


def reorder_tiles(path: Path, order: np.ndarray, left_out: list[int]) -> Path:
    """Write the tiles of level 0 again in another order, without some of them, as in a sparse TIFF."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        page, handle = file.pages[0], file.filehandle
        offsets, counts = list(page.dataoffsets), list(page.databytecounts)
        tiles = list(file.filehandle.read_segments(offsets, counts, sort=False))
        for index in order.tolist():
            handle.seek(0, 2)
            offsets[index] = handle.tell() if index not in left_out else 0
            counts[index] = handle.write(tiles[index][0]) if index not in left_out else 0
        page.tags["TileOffsets"].overwrite(offsets)
        page.tags["TileByteCounts"].overwrite(counts)
    return path


def test_tiles_in_any_order_or_missing_are_placed_correctly(make_slide: Callable, tmp_path: Path) -> None:
    path = make_slide(size=(1500, 1100), brown=0.4)
    before = read_level(open_slide(path))
    reorder_tiles(path, np.random.default_rng(0).permutation(30), left_out=[0, 8])
    slide = open_slide(path)
    write_pyramid(slide, all_tissue(slide), tmp_path / "p.zarr", 90)
    after = read_level(Pyramid(tmp_path / "p.zarr"))
    assert np.array_equal(after, read_level(slide))
    assert (after[:256, :256] == 255).all()
    assert np.array_equal(after[:256, 256:], before[:256, 256:])


def test_other_slides_are_encoded_as_jpeg(real_data: Path, tmp_path: Path) -> None:
    source = open_slide(real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs")
    source.info = source.info.with_mpp(0.25)
    write_pyramid(source, all_tissue(source), tmp_path / "p.zarr", 90)
    pyramid = Pyramid(tmp_path / "p.zarr")
    box = Box(1000, 1000, 1500, 1200)
    difference = np.abs(pyramid.read(box).astype(int) - source.read(box))
    assert difference.mean() < 3
    assert pyramid.info.mpp_source == "override"


@pytest.mark.parametrize(
    ("name", "reader"), [("tcga-cr-7395-01a-01-ts1.svs", "tiff"), ("dicom_boxes/boxes_0.dcm", "openslide")]
)
def test_lossless_pyramid_has_identical_pixels(real_data: Path, tmp_path: Path, name: str, reader: str) -> None:
    """Lossless pyramids need nothing but Zarr to be read."""
    source = open_slide(real_data / "slides" / name)
    assert source.info.reader == reader
    write_pyramid(source, np.ones((1, 1), bool), tmp_path / "p.zarr", 90, lossless=True)
    for level in range(len(source.info.levels)):
        expected = np.moveaxis(read_level(source, level), -1, 0)
        codecs = json.loads((tmp_path / "p.zarr" / str(level) / "zarr.json").read_text())["codecs"][0]
        assert [codec["name"] for codec in codecs["configuration"]["codecs"]] == ["transpose", "bytes", "zstd"]
        assert np.array_equal(zarr.open_group(tmp_path / "p.zarr", mode="r")[str(level)][:], expected)
        assert np.array_equal(dask.array.from_zarr(tmp_path / "p.zarr", component=str(level)).compute(), expected)
    location = parse_url(tmp_path / "p.zarr", mode="r")
    assert location is not None
    node = next(iter(Reader(location)()))
    assert np.array_equal(np.asarray(node.data[level]), expected)
    assert np.array_equal(read_level(Pyramid(tmp_path / "p.zarr"), level), read_level(source, level))


def test_lossless_copies_jpeg_tiles_too(slide: Slide, tmp_path: Path) -> None:
    for name, lossless in (("a.zarr", False), ("b.zarr", True)):
        write_pyramid(slide, all_tissue(slide), tmp_path / name, 90, lossless)
    for shard in shard_files(tmp_path / "a.zarr"):
        assert shard.read_bytes() == (tmp_path / "b.zarr" / shard.relative_to(tmp_path / "a.zarr")).read_bytes()


def test_background_is_not_stored_and_reads_as_white(slide: Slide, tmp_path: Path) -> None:
    tissue = np.zeros((11, 15), bool)
    tissue[5:8, 6:9] = True
    write_pyramid(slide, tissue, tmp_path / "p.zarr", 90)
    pyramid = Pyramid(tmp_path / "p.zarr")
    assert (pyramid.read(Box(0, 0, 200, 200)) == 255).all()
    inside = Box(600, 500, 300, 300)  # below the tissue: a px of the mask covers 100 px
    assert np.array_equal(pyramid.read(inside), slide.read(inside))


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_consolidated_metadata_are_those_of_the_levels(slide: Slide, tmp_path: Path) -> None:
    write_pyramid(slide, all_tissue(slide), tmp_path / "p.zarr", 90)
    group = zarr.open_consolidated(tmp_path / "p.zarr", mode="r")
    assert group.metadata.consolidated_metadata is not None
    written = json.loads((tmp_path / "p.zarr" / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    assert written == {
        str(k): json.loads((tmp_path / "p.zarr" / str(k) / "zarr.json").read_text())
        for k in range(len(slide.info.levels))
    }
    before = group.metadata.consolidated_metadata
    shutil.copytree(tmp_path / "p.zarr", tmp_path / "again.zarr")
    assert zarr.consolidate_metadata(tmp_path / "again.zarr").metadata.consolidated_metadata == before
    for folder in (tmp_path / "p.zarr").glob("?"):
        (folder / "zarr.json").unlink()  # what a reader over HTTP does not have to request
    assert np.array_equal(np.moveaxis(np.asarray(group["1"][:]), 0, -1), read_level(slide, 1))


def test_zarr_dask_and_ome_zarr_open_pyramids(slide: Slide, tmp_path: Path) -> None:
    write_pyramid(slide, all_tissue(slide), tmp_path / "p.zarr", 90)
    expected = np.moveaxis(read_level(slide, 1), -1, 0)
    assert np.array_equal(zarr.open_group(tmp_path / "p.zarr", mode="r")["1"][:], expected)
    assert np.array_equal(dask.array.from_zarr(tmp_path / "p.zarr", component="1").compute(), expected)
    location = parse_url(tmp_path / "p.zarr", mode="r")
    assert location is not None
    node = next(iter(Reader(location)()))
    assert [level.shape for level in node.data] == [(3, size.height, size.width) for size in slide.info.levels]
    assert np.array_equal(np.asarray(node.data[1]), expected)
    scales = [transform[0]["scale"] for transform in node.metadata["coordinateTransformations"]]
    np.testing.assert_allclose([scale[-1] for scale in scales], [0.25, 0.5, 1.0], rtol=0.01)


def test_damaged_shard_index_raises(slide: Slide, tmp_path: Path) -> None:
    write_pyramid(slide, all_tissue(slide), tmp_path / "p.zarr", 90)
    shard = tmp_path / "p.zarr" / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SlideError, match="index of the shard is damaged"):
        read_level(Pyramid(tmp_path / "p.zarr"))


@pytest.mark.parametrize("lossless", [False, True])
def test_damaged_chunk_is_an_error_with_remedy(real_data: Path, tmp_path: Path, lossless: bool) -> None:
    source = open_slide(real_data / "slides/dicom_boxes/boxes_0.dcm")
    write_pyramid(source, np.ones((1, 1), bool), tmp_path / "p.zarr", 90, lossless)
    shard = next(path for path in sorted((tmp_path / "p.zarr" / "0" / "c").rglob("*")) if path.is_file())
    data = bytearray(shard.read_bytes())
    data[40:400] = bytes(360)
    shard.write_bytes(data)
    with pytest.raises(SlideError, match="run ingest again"):
        read_level(Pyramid(tmp_path / "p.zarr"))


def test_folder_without_pyramid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no pyramid"):
        Pyramid(tmp_path)
