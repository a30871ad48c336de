"""Tiles decoded by nvImageCodec on the CPU are those of the strict decoder, in every colour space of real slides."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from her2batch.slides.jpeg import complete_jpeg
from her2batch.slides.nvimgcodec import chunk_decoder as module
from her2batch.slides.nvimgcodec.chunk_decoder import ChunkDecoder, DeviceDecodeRefused, chunk_decoder
from her2batch.slides.openslide import OpenSlideSlide
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box
from her2batch.slides.tiff_slide import TiledTiffSlide

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec isn't installed on this platform")

REAL = ["CMU-1-Small-Region.svs", "CMU-1-small.tiff", "HE_example.tif", "tcga-cr-7395-01a-01-ts1.svs", "small.svs"]
"""JPEG in RGB with and without Adobe's marker and with tables apart, JPEG in YCbCr, JPEG 2000."""


def decoder_of(path: Path, level: int = 0) -> ChunkDecoder:
    decoder = chunk_decoder(open_slide(path, "tiff"), level, None)
    assert decoder is not None
    return decoder


def strict(decoder: ChunkDecoder, number: int) -> NDArray[np.uint8]:
    """Return the part of a tile inside the image."""
    table = decoder.table
    row, column = divmod(number, table.across)
    x, y = column * table.tile_width, row * table.tile_height
    size = min(table.tile_width, table.width - x), min(table.tile_height, table.height - y)
    return decoder.slide.read(Box(x, y, *size), decoder.level)


@pytest.mark.parametrize("name", REAL)
def test_pixels_of_real_slides_are_those_of_the_strict_decoder(real_data: Path, name: str) -> None:
    with open_slide(real_data / "slides" / name, "tiff") as slide:
        for level in range(len(slide.info.levels)):
            decoder = chunk_decoder(slide, level, None)
            assert decoder is not None
            count = decoder.table.across * decoder.table.down
            numbers = np.unique(np.linspace(0, count - 1, 5).astype(int)).tolist()
            for number, image in zip(numbers, decoder.decode(numbers), strict=True):
                expected, found = strict(decoder, number), np.asarray(image)
                gap = np.abs(found[: expected.shape[0], : expected.shape[1]].astype(int) - expected)
                assert gap.max() <= 1
                decoder.check(number, found)


def test_wrong_colours_are_refused(make_slide: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of(make_slide())
    monkeypatch.setattr(module, "complete_jpeg", lambda data, tables, _: complete_jpeg(data, tables, "RGB"))
    (image,) = decoder.decode([5])
    with pytest.raises(DeviceDecodeRefused, match="its tile 5 differ by"):
        decoder.check(5, np.asarray(image))


def test_damage_that_the_decoder_conceals_is_refused(make_slide: Callable) -> None:
    path = make_slide()
    decoder = decoder_of(path)
    start, count = int(decoder.table.offsets[5]), int(decoder.table.byte_counts[5])
    with path.open("r+b") as file:
        file.seek(start + count // 2)
        file.write(b"\xff\xd9" * (count // 4))
    (image,) = decoder.decode([5])
    with pytest.raises(DeviceDecodeRefused, match="its tile 5 is damaged"):
        decoder.check(5, np.asarray(image))


def test_a_stream_that_is_no_image_is_refused(make_slide: Callable) -> None:
    path = make_slide()
    decoder = decoder_of(path)
    with path.open("r+b") as file:
        file.seek(int(decoder.table.offsets[3]))
        file.write(bytes(int(decoder.table.byte_counts[3])))
    with pytest.raises(DeviceDecodeRefused, match="tile 3"):
        decoder.decode([2, 3])


def test_other_kinds_of_tiles_have_no_decoder(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = real_data / "slides" / "boxes.tiff"  # deflate
    assert chunk_decoder(TiledTiffSlide(boxes), 0, None) is None
    svs = real_data / "slides" / "CMU-1-Small-Region.svs"
    assert chunk_decoder(OpenSlideSlide(svs), 0, None) is None
    assert chunk_decoder(TiledTiffSlide(svs), 0, None) is not None
    monkeypatch.setattr(module, "is_installed", lambda: False)
    assert chunk_decoder(TiledTiffSlide(svs), 0, None) is None
