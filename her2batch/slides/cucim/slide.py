"""TIFF slides decoded by cuCIM (`--reader cucim`).

On a CPU, cuCIM returns uninitialised memory as pixels when it cannot decode a tile, without an error (46 of 60 slides
with holes). Therefore TiledTiffSlide first reads and checks the tile table, and cuCIM only decodes the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import SlideError
from her2batch.slides.cucim.loading import load_cucim
from her2batch.slides.cucim.reader_process import ImageInProcess
from her2batch.slides.slide import Box, BoxArray, Slide
from her2batch.slides.tiff_slide import TiledTiffSlide


class CucimSlide(TiledTiffSlide):
    """A TIFF slide decoded by cuCIM. Levels that cuCIM lacks or shows differently are decoded by TiledTiffSlide."""

    name = "cucim"
    _image: Any = None  # None: cuCIM cannot open the file

    def __init__(self, path: Path) -> None:
        """Open a slide. Raises SlideError as TiledTiffSlide does, InputError when cuCIM is not installed."""
        image_class = load_cucim()
        super().__init__(path)
        try:
            self._image = image_class(str(path))
        except (RuntimeError, ValueError):  # the file was checked above: it is sound, but of a kind that cuCIM lacks
            self._cucim_levels: dict[int, int] = {}
            return
        self._downsamples = self._image.resolutions["level_downsamples"]
        self._cucim_levels = self._matching_levels()

    def close(self) -> None:
        """Close the file."""
        if self._image is not None:
            self._image.close()
        super().close()

    def _matching_levels(self) -> dict[int, int]:
        """Return the levels that cuCIM decodes to the same pixels: level of this slide → level of cuCIM.

        Not among them are levels with missing tiles, and all levels of a slide with a wrong colour tag.
        """
        if "colour-tag-mended" in self.info.notes:
            return {}
        cucim_sizes = [tuple(size) for size in self._image.resolutions["level_dimensions"]]
        sizes = [(level.width, level.height) for level in self.info.levels]
        tables = [self.table(k) for k in range(len(sizes))]
        complete = [bool(table.byte_counts.all()) and table.planes == 1 for table in tables]
        return {k: cucim_sizes.index(size) for k, size in enumerate(sizes) if size in cucim_sizes and complete[k]}

    def cucim_level(self, level: int) -> int | None:
        """Return cuCIM's number of a level; None where cuCIM lacks it or shows it differently."""
        return self._cucim_levels.get(level)

    def read_strictly(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Return the pixels of a box as TiledTiffSlide decodes them. Raises SlideError."""
        return super()._pixels(box, level)

    def read_squares(self, boxes: Sequence[Box], level: int, device: str) -> Any:
        """Decode boxes of one size by one call of cuCIM: (n, height, width, 3) uint8, on a device.

        boxes: of a level that cuCIM has; beyond the edge of the image their pixels are undefined.  device: "cpu", or
        "cuda:N", for which the result has the CUDA array interface. Raises RuntimeError and ValueError of cuCIM.
        """
        at = self._cucim_levels[level]
        corners = [_level0_corner(box, self._downsamples[at]) for box in boxes]
        size = boxes[0].width, boxes[0].height
        if isinstance(self._image, ImageInProcess):
            return np.stack([self._image.read_region(corner, size, at)[..., :3] for corner in corners])
        (batch,) = self._image.read_region(corners, size, at, num_workers=1, batch_size=len(corners), device=device)
        return batch

    @property
    def in_process(self) -> bool:
        """Whether cuCIM runs in this process, so that it can decode to memory of a GPU that this process uses."""
        return self._image is not None and not isinstance(self._image, ImageInProcess)

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        cucim_level = self._cucim_levels.get(level)
        if cucim_level is None:
            return super()._pixels(box, level)
        corner = _level0_corner(box, self._downsamples[cucim_level])
        try:
            region = self._image.read_region(corner, (box.width, box.height), cucim_level)
        except (RuntimeError, ValueError) as error:
            raise SlideError("unreadable", self.info.path, f"cuCIM cannot read the file ({error})") from error
        return np.ascontiguousarray(np.asarray(region)[..., :3])

    def _read_shrunk(self, box: Box, level: int, shrink: int, needed: BoxArray | None) -> NDArray[np.uint8]:
        return Slide._read_shrunk(self, box, level, shrink, needed)  # resamples the pixels that cuCIM decodes


def _level0_corner(box: Box, downsample: float) -> tuple[int, int]:
    """Return the level-0 px that cuCIM maps to the corner of a box: the first one not left of or above it."""
    return math.ceil(box.x * downsample - 1e-6), math.ceil(box.y * downsample - 1e-6)
