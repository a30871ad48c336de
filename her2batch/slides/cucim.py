"""TIFF slides through cuCIM: for GPUs, and selectable everywhere.

On a CPU cuCIM hands out memory it never wrote when a tile can't be decoded, and says nothing (46 of 60 holed slides).
So the tile table is parsed and checked by our own reader first, and cuCIM only delivers the pixels.
"""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import InputError, SlideError
from her2batch.slides.slide import Box, BoxArray, Slide
from her2batch.slides.tiff_slide import TiledTiffSlide


class CucimSlide(TiledTiffSlide):
    """A TIFF slide whose pixels cuCIM decodes; levels that it doesn't see as we do are decoded by ourselves."""

    name = "cucim"

    def __init__(self, path: Path) -> None:
        """Open a slide. Raises SlideError as TiffSlide does, InputError when cuCIM isn't installed."""
        image_class = load_cucim()
        super().__init__(path)
        try:
            self._image = image_class(str(path))
        except (RuntimeError, ValueError) as error:
            super().close()
            raise SlideError("unreadable", path, f"cuCIM can't open it ({error})") from error
        self._scales = self._image.resolutions["level_downsamples"]
        self._level_of = self._shared_levels()

    def close(self) -> None:
        """Free the file."""
        self._image.close()
        super().close()

    def _shared_levels(self) -> dict[int, int]:
        """Our level → cuCIM's. None where it would show other pixels: a wrong colour tag, tiles left out."""
        if self.info.notes:
            return {}
        theirs = [tuple(size) for size in self._image.resolutions["level_dimensions"]]
        ours = [(level.width, level.height) for level in self.info.levels]
        whole = [bool(self.table(k).byte_counts.all()) for k in range(len(ours))]
        return {k: theirs.index(size) for k, size in enumerate(ours) if size in theirs and whole[k]}

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        number = self._level_of.get(level)
        if number is None:
            return super()._pixels(box, level)
        corner = _level0_corner(box, self._scales[number])
        try:
            region = self._image.read_region(corner, (box.width, box.height), number)
        except (RuntimeError, ValueError) as error:
            raise SlideError("unreadable", self.info.path, f"cuCIM can't read it ({error})") from error
        return np.ascontiguousarray(np.asarray(region)[..., :3])

    def _read_shrunk(self, box: Box, level: int, shrink: int, parts: BoxArray | None) -> NDArray[np.uint8]:
        return Slide._read_shrunk(self, box, level, shrink, parts)  # of the pixels that cuCIM decodes


def _level0_corner(box: Box, downsample: float) -> tuple[int, int]:
    """The level-0 px that cuCIM maps onto a box's corner: the first that isn't left of it or above it."""
    return math.ceil(box.x * downsample - 1e-6), math.ceil(box.y * downsample - 1e-6)


def load_cucim() -> Any:
    """cuCIM's image class; importing it takes about 500 MB on every GPU in sight, so only where it is used.

    Call it before torch is imported: after torch 2.15, cuCIM 26.10 never returns from its import, nor from the first
    image it opens, when it loads its plugins; so it is made to open one that isn't there.  Raises InputError when it
    isn't installed, or comes too late.
    """
    if "torch" in sys.modules and "cucim" not in sys.modules:
        raise InputError("cuCIM can't be loaded after torch: it hangs", None, "import cucim first, or --reader auto")
    try:
        from cucim.clara import CuImage
    except ImportError as error:
        raise InputError(
            "the reader cucim isn't installed", None, "pip install cucim-cu13, or --reader auto"
        ) from error
    with contextlib.suppress(ValueError, RuntimeError):
        CuImage("no such image")
    return CuImage
