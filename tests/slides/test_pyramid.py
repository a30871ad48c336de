"""Pyramids: the slide's own tiles, tissue only, open to every Zarr tool; and a Slide themselves."""

from collections.abc import Callable
from pathlib import Path

import dask.array
import numpy as np
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from her2batch.errors import SlideError
from her2batch.slides.pyramid import Pyramid, write
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, Slide
from tests.contract.reader_contract import SlideContract


@pytest.fixture
def slide(make_slide: Callable) -> Slide:
    return open_slide(make_slide(size=(1500, 1100), brown=0.4, levels=3))


def whole(slide: Slide, level: int = 0) -> np.ndarray:
    size = slide.info.levels[level]
    return slide.read(Box(0, 0, size.width, size.height), level)


def everything(slide: Slide) -> np.ndarray:
    return np.ones((slide.info.height // 64, slide.info.width // 64), bool)


class TestPyramid(SlideContract):
    """Whatever a slide does, its pyramid does."""

    @pytest.fixture
    def slide(self, tmp_path: Path, make_slide: Callable) -> Slide:
        source = open_slide(make_slide(size=(1500, 1100), brown=0.4, levels=3))
        write(source, everything(source), tmp_path / "p.zarr", 90)
        return Pyramid(tmp_path / "p.zarr")


def test_the_slides_own_tiles_are_kept_bit_by_bit(slide: Slide, tmp_path: Path) -> None:
    write(slide, everything(slide), tmp_path / "p.zarr", 90)
    pyramid = Pyramid(tmp_path / "p.zarr")
    for level in range(3):
        assert np.array_equal(whole(pyramid, level), whole(slide, level))
    box = Box(301, 77, 800, 600)
    assert np.array_equal(pyramid.region(box, 0.7), slide.region(box, 0.7))
    size = sum(path.stat().st_size for path in (tmp_path / "p.zarr").rglob("c/**/*") if path.is_file())
    assert size < 1.2 * slide.info.path.stat().st_size  # of a small slide; the shard index weighs 16 kB a level


def test_other_slides_are_encoded_once(real_data: Path, tmp_path: Path) -> None:
    source = open_slide(real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs")
    source.info = source.info.with_mpp(0.25)
    write(source, everything(source), tmp_path / "p.zarr", 90)
    pyramid = Pyramid(tmp_path / "p.zarr")
    box = Box(1000, 1000, 1500, 1200)
    difference = np.abs(pyramid.read(box).astype(int) - source.read(box))
    assert difference.mean() < 3
    assert pyramid.info.mpp_source == "override"


def test_glass_is_not_stored_and_reads_as_white(slide: Slide, tmp_path: Path) -> None:
    tissue = np.zeros((11, 15), bool)
    tissue[5:8, 6:9] = True
    write(slide, tissue, tmp_path / "p.zarr", 90)
    pyramid = Pyramid(tmp_path / "p.zarr")
    assert (pyramid.read(Box(0, 0, 200, 200)) == 255).all()
    inside = Box(600, 500, 300, 300)  # px under the tissue of the mask: 100 px a cell
    assert np.array_equal(pyramid.read(inside), slide.read(inside))


def test_zarr_dask_and_ome_zarr_open_it_unmodified(slide: Slide, tmp_path: Path) -> None:
    write(slide, everything(slide), tmp_path / "p.zarr", 90)
    expected = np.moveaxis(whole(slide, 1), -1, 0)
    assert np.array_equal(zarr.open_group(tmp_path / "p.zarr", mode="r")["1"][:], expected)
    assert np.array_equal(dask.array.from_zarr(tmp_path / "p.zarr", component="1").compute(), expected)
    location = parse_url(tmp_path / "p.zarr", mode="r")
    assert location is not None
    node = next(iter(Reader(location)()))
    assert [level.shape for level in node.data] == [(3, one.height, one.width) for one in slide.info.levels]
    assert np.array_equal(np.asarray(node.data[1]), expected)
    scales = [one[0]["scale"] for one in node.metadata["coordinateTransformations"]]
    np.testing.assert_allclose([scale[-1] for scale in scales], [0.25, 0.5, 1.0], rtol=0.01)


def test_a_damaged_shard_index_is_noticed(slide: Slide, tmp_path: Path) -> None:
    write(slide, everything(slide), tmp_path / "p.zarr", 90)
    shard = tmp_path / "p.zarr" / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SlideError, match="index is damaged"):
        whole(Pyramid(tmp_path / "p.zarr"))


def test_what_is_no_pyramid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no pyramid"):
        Pyramid(tmp_path)
