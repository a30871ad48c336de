"""Which reader takes which file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from her2batch.errors import InputError, SlideError
from her2batch.slides.cucim import CucimSlide
from her2batch.slides.ndpi import FORMAT as NDPI
from her2batch.slides.ndpi import NdpiSlide
from her2batch.slides.openslide import OpenSlideSlide
from her2batch.slides.slide import Slide
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.slides.tiff_tables import NATIVE_FORMATS, UnsupportedTiff, detect_tiff_format


def _from_table(path: Path) -> TiledTiffSlide:
    return NdpiSlide(path) if detect_tiff_format(path) == NDPI else TiledTiffSlide(path)


READERS: dict[str, Callable[[Path], Slide]] = {
    "tiff": _from_table,
    "cucim": CucimSlide,
    "openslide": OpenSlideSlide,
}
"""Name → what opens a path with it."""


def open_slide(path: Path, reader: str = "auto") -> Slide:
    """Open a slide. `auto`: the TIFF family and NDPI from their own tile tables, everything else through OpenSlide.

    Its mpp may still be None: `slide.info.with_mpp(override)` settles that.  Raises SlideError truncated, unreadable,
    not-a-slide or gone; InputError for an unknown reader.
    """
    if not path.exists():
        raise SlideError("gone", path, "there is no such file")
    if reader != "auto":
        if reader not in READERS:
            raise InputError(f"there is no reader {reader}", None, f"known: auto, {', '.join(READERS)}")
        return READERS[reader](path)
    if detect_tiff_format(path) not in (*NATIVE_FORMATS, NDPI):
        return OpenSlideSlide(path)
    try:
        return _from_table(path)
    except UnsupportedTiff as ours:
        try:
            return OpenSlideSlide(path)
        except SlideError:
            raise ours from None  # it names what is unsupported
