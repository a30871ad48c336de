"""Decodes batches of a JPEG slide's tiles with cuCIM: `read_region` to memory of a GPU, or on the CPU.

Where cuCIM cannot decode a tile it returns what was in the memory before, without an error, which is mostly another
tile's picture and has no square of one colour. Therefore the streams of all tiles are looked at as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from her2batch.slides.cucim.slide import CucimSlide
from her2batch.slides.jpeg import is_sound
from her2batch.slides.nvimgcodec.chunk_decoder import ChunkDecoder, DeviceDecodeRefused, is_plain_level
from her2batch.slides.slide import Box, Slide


@dataclass(frozen=True)
class CucimChunkDecoder(ChunkDecoder):
    """Decodes the tiles of one level of a slide, one region a tile, all in one call."""

    slide: CucimSlide

    name: ClassVar[str] = "cuCIM"
    has_padding: ClassVar[bool] = False

    def decode(self, numbers: Sequence[int], stream: int = 0) -> list[Any]:
        """See ChunkDecoder.decode: one batch, of which each tile is defined inside the image only."""
        table, boxes = self.table, []
        for number in numbers:
            row, column = divmod(number, table.across)
            corner = column * table.tile_width, row * table.tile_height
            boxes.append(Box(*corner, table.tile_width, table.tile_height))
        try:
            batch = self.slide.read_squares(boxes, self.level, "cpu" if self.device is None else f"cuda:{self.device}")
        except (RuntimeError, ValueError) as error:
            raise DeviceDecodeRefused(f"cuCIM: {' '.join(str(error).split())[:200]}") from error
        return [batch]

    def suspects(self, numbers: Sequence[int]) -> set[int]:
        """Return the tiles whose streams are not whole JPEG streams of a tile's size."""
        size = self.table.tile_height, self.table.tile_width
        return {number for number in numbers if not is_sound(self.slide.raw_tile(self.level, number), size)}

    def _read_strictly(self, box: Box) -> NDArray[np.uint8]:
        return self.slide.read_strictly(box, self.level)


def cucim_chunk_decoder(slide: Slide, level: int, device: int | None) -> CucimChunkDecoder | None:
    """Return the decoder of a level; None where cuCIM lacks the level, or its tiles are not whole 8-bit JPEG tiles.

    On a GPU cuCIM must run in this process.
    """
    if not isinstance(slide, CucimSlide) or slide.cucim_level(level) is None:
        return None
    if slide.table(level).compression != "jpeg" or not is_plain_level(slide, level):
        return None
    return CucimChunkDecoder(slide, level, device) if device is None or slide.in_process else None
