"""The registry of slide readers, and the choice of the reader for a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from her2batch.errors import InputError, SlideError
from her2batch.slides.cucim.slide import CucimSlide
from her2batch.slides.dicom.joined import JoinedDicomSlide, series_files
from her2batch.slides.ndpi import FORMAT as NDPI
from her2batch.slides.ndpi import NdpiSlide
from her2batch.slides.nvimgcodec.slide import NvImageCodecSlide
from her2batch.slides.openslide import OpenSlideSlide
from her2batch.slides.slide import Box, Slide
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.slides.tiff_tables import NATIVE_FORMATS, UnsupportedTiff, detect_tiff_format


def _open_tiff(path: Path) -> TiledTiffSlide:
    return NdpiSlide(path) if detect_tiff_format(path) == NDPI else TiledTiffSlide(path)


READERS: dict[str, Callable[[Path], Slide]] = {
    "tiff": _open_tiff,
    "cucim": CucimSlide,
    "nvimgcodec": NvImageCodecSlide,
    "openslide": OpenSlideSlide,
}
"""Name of a reader → function or class that opens a path with it."""


def open_slide(path: Path, reader: str = "auto", members: Sequence[Path] = ()) -> Slide:
    """Open a slide. `auto` reads TIFF and NDPI from their own tile tables, and everything else through OpenSlide.

    members: all files of the slide (`SlideFiles.members`). Without them, of DICOM files only those of the same series
    and folder are found.  Its mpp may be None: set it with `slide.info = slide.info.with_mpp(override)`.  Raises
    SlideError truncated, unreadable, not-a-slide or gone; InputError for an unknown reader.
    """
    if not path.exists():
        raise SlideError("gone", path, "the file does not exist")
    if len(members) > 1 and reader in ("auto", "openslide") and _is_dicom(path):
        files = series_files(members)
        return OpenSlideSlide(path) if len(files) < 2 else JoinedDicomSlide(path, files, tuple(members))
    if reader != "auto":
        if reader not in READERS:
            raise InputError(f"there is no reader {reader!r}", None, f"choose one of auto, {', '.join(READERS)}")
        return READERS[reader](path)
    if detect_tiff_format(path) not in (*NATIVE_FORMATS, NDPI):
        return OpenSlideSlide(path)
    try:
        return _open_tiff(path)
    except UnsupportedTiff as unsupported:
        with suppress(SlideError):
            return _open_readable(path)
        raise unsupported from None  # this error names the unsupported feature, OpenSlide's does not


def _open_readable(path: Path) -> OpenSlideSlide:
    """Open a slide through OpenSlide and read a px: OpenSlide opens files whose compression it cannot decode."""
    slide = OpenSlideSlide(path)
    try:
        slide.read(Box(0, 0, 1, 1))
    except SlideError:
        slide.close()
        raise
    return slide


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
