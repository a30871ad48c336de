"""Slides as NumPy and dask arrays, from their files or from a cohort's pyramids."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import dask.array
    import numpy as np
    from numpy.typing import NDArray

    from her2batch.slides.slide import Slide, SlideInfo

BLOCK_PX = 2048
"""Edge of a dask block of a slide, px of its level: 12 MB."""

THUMBNAIL_PX = 2048
"""Longest edge of a thumbnail."""

Point = tuple[int, int]


class SlideReader:
    """One slide, from its file or from a cohort's pyramid. Usable as a context manager."""

    def __init__(self, path: Path, mpp: float | None = None, reader: str = "auto") -> None:
        """Open lazily: the file is read when it is first needed, in each thread on its own."""
        self._open = partial(open_with_mpp, path, mpp, reader)
        self._local = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _slide(self) -> Slide:
        """The slide as this thread has opened it; readers are not shared between threads."""
        if not hasattr(self._local, "slide"):
            self._local.slide = self._open()
        slide: Slide = self._local.slide
        return slide

    @property
    def info(self) -> SlideInfo:
        """Format, levels, resolution (µm/px) and objective of the slide."""
        return self._slide.info

    def region(self, xy: Point, size: Point, mpp: float | None = None) -> NDArray[np.uint8]:
        """Read a rectangle: (height, width, 3) uint8 RGB; white outside the slide.

        xy: top left corner, level-0 px.  size: width and height, level-0 px.  mpp: resolution of the result, µm/px;
        None for level 0.
        """
        from her2batch.slides.slide import Box

        target = mpp if mpp is not None else self.info.mpp
        assert target is not None  # open_with_mpp has set it
        return self._slide.region(Box(*xy, *size), target)

    def dask(self, level: int = 0) -> dask.array.Array:
        """Return one level as a lazy dask array (height, width, 3) uint8. level: 0 is the finest."""
        return _dask_array(self._open, self.info, level)

    @property
    def thumbnail(self) -> NDArray[np.uint8]:
        """The whole slide, longest edge at most 2048 px: (height, width, 3) uint8 RGB."""
        return self._slide.whole_slide(max(1.0, max(self.info.width, self.info.height) / THUMBNAIL_PX))

    def close(self) -> None:
        """Close the file that this thread has open."""
        if hasattr(self._local, "slide"):
            self._local.slide.close()
            del self._local.slide


def open_with_mpp(path: Path, mpp: float | None, reader: str) -> Slide:
    """Open a slide file or a pyramid of a cohort. mpp: resolution of a file that states none, µm/px."""
    if reader == "pyramid":
        from her2batch.slides.pyramid import Pyramid

        return Pyramid(path)
    from her2batch.slides.readers import open_slide as open_file

    slide = open_file(path, reader)
    slide.info = slide.info.with_mpp(mpp)
    return slide


def _dask_array(open_slide: partial[Slide], info: SlideInfo, level: int) -> dask.array.Array:
    """A level of a slide in blocks; each block opens the slide for itself, so any dask scheduler can read it."""
    import dask.array as da
    import numpy as np

    size = info.levels[level]
    chunks = (_blocks(size.height), _blocks(size.width), (3,))
    read = partial(_read_block, open_slide, level)
    empty = np.empty((0, 0, 0), np.uint8)
    array: dask.array.Array = da.map_blocks(read, chunks=chunks, dtype=np.uint8, meta=empty)  # type: ignore[no-untyped-call]
    return array


def _blocks(length: int) -> tuple[int, ...]:
    full, rest = divmod(length, BLOCK_PX)
    return (BLOCK_PX,) * full + ((rest,) if rest else ())


def _read_block(open_slide: partial[Slide], level: int, block_info: Mapping[Any, Any]) -> NDArray[np.uint8]:
    from her2batch.slides.slide import Box

    (top, bottom), (left, right), _ = block_info[None]["array-location"]
    with open_slide() as slide:
        return slide.read(Box(left, top, right - left, bottom - top), level)
