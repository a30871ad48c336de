"""Decodes batches of a TIFF slide's tiles with nvImageCodec: on a GPU to its memory, or on the CPU.

nvImageCodec's decoders conceal damage: its libjpeg-turbo returns a stream without its second half, or with a hole, as
an image with grey in the gap and reports no error. Therefore the tile table and the holes of the file are checked
before, and `check` decodes some tiles strictly: those that the caller finds suspicious.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides.jpeg import complete_jpeg
from her2batch.slides.nvimgcodec.loading import borrow_decoder, is_installed, load_nvimgcodec
from her2batch.slides.nvimgcodec.slide import NvImageCodecSlide
from her2batch.slides.slide import Box, Slide
from her2batch.slides.tiff.segments import Samples
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.slides.tiff_tables import TileTable

MAX_MEAN_DIFFERENCE = 2.0
"""Largest mean difference of a tile from its strict decode, grey values. Decoders round the inverse transform and the
interpolation of colour differently, by one or two grey values; a wrong colour space or a gap differs by tens."""


class DeviceDecodeRefused(Exception):
    """A device's decoder cannot decode tiles, or not rightly: its text says why. Then the strict decoder takes over."""


@dataclass(frozen=True)
class ChunkDecoder:
    """Decodes the tiles of one level of a slide.  device: number of the GPU, None for the CPU."""

    slide: TiledTiffSlide
    level: int
    device: int | None

    name: ClassVar[str] = "nvImageCodec"
    has_padding: ClassVar[bool] = True
    """Whether decoded tiles show what the file has beyond the edge of the image, where a tile reaches over it."""

    @property
    def table(self) -> TileTable:
        """The tile table of the level."""
        return self.slide.table(self.level)

    def decode(self, numbers: Sequence[int], stream: int = 0) -> list[Any]:
        """Decode tiles by their numbers: images, or batches of them, (…, tile_height, tile_width, 3) uint8 RGB.

        They lie on the device, with DLPack or the CUDA array interface.  stream: handle of the CUDA stream on which
        they are used.  Raises DeviceDecodeRefused, and SlideError for a file that cannot be read.
        """
        codec, table = load_nvimgcodec(), self.table
        streams = [self.slide.raw_tile(self.level, number) for number in numbers]
        if table.compression == "jpeg":
            streams = [complete_jpeg(one, table.jpeg_tables, table.colorspace) for one in streams]
        try:
            with borrow_decoder(self.device) as decoder:
                images = decoder.decode([codec.CodeStream(one) for one in streams], cuda_stream=stream)
        except RuntimeError as error:
            raise DeviceDecodeRefused(f"nvImageCodec: {' '.join(str(error).split())[:200]}") from error
        shape = (table.tile_height, table.tile_width, 3)
        for number, image in zip(numbers, images, strict=True):
            if image is None:
                raise DeviceDecodeRefused(f"nvImageCodec cannot decode its tile {number}")
            if tuple(image.shape) != shape:
                raise DeviceDecodeRefused(
                    f"nvImageCodec decodes its tile {number} to another size, {tuple(image.shape)}"
                )
        return list(images)

    def suspects(self, numbers: Sequence[int]) -> set[int]:
        """Return tiles to check because of their streams, whose damage the pictures would not show: none here."""
        return set()

    def check(self, number: int, pixels: NDArray[np.uint8]) -> None:
        """Compare a tile to its strict decode. Raises DeviceDecodeRefused for another picture or a damaged stream."""
        table, size = self.table, self.slide.info.levels[self.level]
        row, column = divmod(number, table.across)
        left, top = column * table.tile_width, row * table.tile_height
        width, height = min(table.tile_width, size.width - left), min(table.tile_height, size.height - top)
        try:
            strict = self._read_strictly(Box(left, top, width, height))
        except SlideError as error:
            raise DeviceDecodeRefused(f"its tile {number} is damaged ({error.message})") from error
        difference = float(np.abs(strict.astype(np.int16) - pixels[:height, :width]).mean())
        if difference > MAX_MEAN_DIFFERENCE:
            what = f"{self.name}'s pixels of its tile {number} differ by {difference:.1f} grey values on average"
            raise DeviceDecodeRefused(what)

    def _read_strictly(self, box: Box) -> NDArray[np.uint8]:
        return self.slide.read(box, self.level)


def chunk_decoder(slide: Slide, level: int, device: int | None) -> ChunkDecoder | None:
    """Return the decoder of a level; None where its tiles are not of a kind that nvImageCodec decodes to RGB.

    These are whole tiles of 8-bit JPEG, or JPEG 2000 in RGB, with all colours in one stream; none is left out.
    """
    if type(slide) not in (TiledTiffSlide, NvImageCodecSlide) or not is_installed():
        return None
    assert isinstance(slide, TiledTiffSlide)
    table = slide.table(level)
    is_known = table.compression == "jpeg" or (table.compression == "jpeg2000" and table.colorspace == "RGB")
    return ChunkDecoder(slide, level, device) if is_known and is_plain_level(slide, level) else None


def is_plain_level(slide: TiledTiffSlide, level: int) -> bool:
    """Return whether a level consists of whole tiles of 8 bits, with all colours in one stream; none is left out."""
    table = slide.table(level)
    is_plain = table.planes == 1 and table.full_tiles and table.samples == Samples()
    return is_plain and bool(table.stored.all())
