"""Tiles that are decoded, shrunk and cut on a device are those of the strict path; damage is noticed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import SlideError
from her2batch.pipeline.cells.block_image import BlockFrames
from her2batch.pipeline.tile_batches.device_reader import read_tiles_on_device
from her2batch.pipeline.tile_reader import Batch, ReadPlan, plan_reads, read_tiles
from her2batch.slides.cucim.chunk_decoder import cucim_chunk_decoder
from her2batch.slides.cucim.slide import CucimSlide
from her2batch.slides.nvimgcodec.chunk_decoder import ChunkDecoder, DeviceDecodeRefused, chunk_decoder
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Slide
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.vision.tile_grid import TileGrid

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec isn't installed on this platform")


def plan(slide: Slide, mpp: float, edge: int = 224, most: int = 900) -> tuple[TileGrid, ReadPlan]:
    """Return all tiles of a slide that begin in its upper left px, and how they are read: in several batches."""
    size = round(edge * mpp / (slide.info.mpp or 0))
    width, height = min(most, slide.info.width), min(most, slide.info.height)
    corners = [(x, y, size) for y in range(0, height, size) for x in range(0, width, size)]
    grid = TileGrid(mpp, edge, np.array(corners, np.int32))
    reads = plan_reads(slide, grid)
    return grid, reads


def both(
    slide: Slide, reads: ReadPlan, threads: int = 0, frames: BlockFrames | None = None
) -> tuple[list[Batch], list[Batch]]:
    """Return the batches of the strict path and of the device."""
    decoder = chunk_decoder(slide, reads.source[0], None)
    assert decoder is not None
    found = [
        Batch(rows, tensor.numpy(), None, seen)
        for rows, tensor, seen in read_tiles_on_device(decoder, reads, "cpu", threads, frames)
    ]
    return list(read_tiles(slide, reads, 0, "tiff", None, frames)), found


SLIDES = {
    "CMU-1-Small-Region.svs": ((0.5, 0), (0.6, 1), (1.0, 30)),
    "HE_example.tif": ((0.5, 0), (1.0, 30)),
    "tcga-cr-7395-01a-01-ts1.svs": ((0.5, 1), (0.6, 1)),
}
"""Slide → µm/px, with the largest difference of a px: 0 or 1 of tiles as they are stored and of JPEG 2000. JPEG that is
shrunk while it is decoded differs more, on average by less than 1.5 grey values."""


@pytest.mark.parametrize(("name", "mpp", "most"), [(name, *case) for name, cases in SLIDES.items() for case in cases])
def test_tiles_of_real_slides_equal_the_strict_path(real_data: Path, name: str, mpp: float, most: int) -> None:
    with open_slide(real_data / "slides" / name, "tiff") as slide:
        slide.info = slide.info.with_mpp({"HE_example.tif": 0.5}.get(name, 0.25))
        expected, found = both(slide, plan(slide, mpp)[1])
    for batch, other in zip(expected, found, strict=True):
        gap = np.abs(batch.pixels.astype(int) - other.pixels)
        assert np.array_equal(batch.rows, other.rows)
        assert gap.max() <= most
        assert gap.mean() < 1.5


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.6])
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "HE_example.tif", "synthetic"])
def test_cucim_gives_the_tiles_of_nvimagecodec(real_data: Path, make_slide: Callable, name: str, mpp: float) -> None:
    """Shrunk as well: the device shrinks both, where the strict path shrinks while it decodes."""
    pytest.importorskip("cucim.clara", reason="cuCIM isn't installed on this platform")
    path = make_slide(size=(1536, 1280), brown=0.3) if name == "synthetic" else real_data / "slides" / name
    with open_slide(path, "tiff") as slide, CucimSlide(path) as other:
        slide.info = slide.info.with_mpp(0.25)
        reads = plan(slide, mpp)[1]
        decoders = chunk_decoder(slide, reads.source[0], None), cucim_chunk_decoder(other, reads.source[0], None)
        found = [list(read_tiles_on_device(each, reads, "cpu", 0, None)) for each in decoders if each is not None]
    for first, second in zip(*found, strict=True):
        assert np.array_equal(first.rows, second.rows)
        assert np.array_equal(first.tensor, second.tensor)


def test_threads_change_no_pixel_and_frames_get_the_same_blocks(make_slide: Callable) -> None:
    with open_slide(make_slide(size=(1800, 1500), brown=0.3), "tiff") as slide:
        grid, reads = plan(slide, 0.25, 64, 2000)
        frames = BlockFrames.plan(grid, 0.25, reads.scale, reads.size, 8.0, 2, lambda image: image)
        expected, found = both(slide, reads, 0, frames)
        _, threaded = both(slide, reads, 2, frames)
    assert len(found) == len(expected) > 1
    for batch, *others in zip(expected, found, threaded, strict=True):
        for other in others:
            assert np.array_equal(batch.pixels, other.pixels)
            for image, same in zip(batch.found, other.found, strict=True):
                assert np.array_equal(image.pixels, same.pixels)
                assert (image.left, image.top, image.edge) == (same.left, same.top, same.edge)


def test_the_first_tile_and_tiles_with_a_flat_square_are_checked(
    make_slide: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_slide()
    with open_slide(path, "tiff") as slide:
        _, reads = plan(slide, 0.25)
        decoder = chunk_decoder(slide, 0, None)
        assert decoder is not None
        checked: list[int] = []
        monkeypatch.setattr(type(decoder), "check", lambda _, number, pixels: checked.append(number))
        list(read_tiles_on_device(decoder, reads, "cpu", 0, None))
        assert checked[0] == 0
        assert 13 not in checked  # the others are filled up with white at the edge of the slide
        start, count = int(decoder.table.offsets[13]), int(decoder.table.byte_counts[13])
        with path.open("r+b") as file:
            file.seek(start + count // 3)
            file.write(b"\xff\xd9" * (count // 3))
        checked.clear()
        list(read_tiles_on_device(decoder, reads, "cpu", 0, None))
        assert 13 in checked
    monkeypatch.undo()
    with open_slide(path, "tiff") as slide, pytest.raises(DeviceDecodeRefused, match="its tile 13 is damaged"):
        both(slide, plan(slide, 0.25)[1])


def test_an_error_of_the_decoding_thread_reaches_the_caller(
    make_slide: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(make_slide(), "tiff") as slide:
        monkeypatch.setattr(TiledTiffSlide, "raw_tile", lambda *_: b"")
        with pytest.raises(DeviceDecodeRefused, match="nvImageCodec"):
            both(slide, plan(slide, 0.25)[1], threads=2)


@pytest.mark.parametrize(("error", "expected"), [
    (TypeError("no such stream"), DeviceDecodeRefused), (SlideError("truncated", "a.svs", "ends early"), SlideError),
])  # fmt: skip
def test_an_unexpected_error_of_the_device_is_no_error_of_the_slide(
    make_slide: Callable, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ChunkDecoder, "decode", fail)
    with open_slide(make_slide(), "tiff") as slide, pytest.raises(expected, match=str(error)):
        both(slide, plan(slide, 0.25)[1])
