"""TIFF slides whose tiles are decoded by nvImageCodec (`--reader nvimgcodec`), on a GPU or on the CPU."""

from __future__ import annotations

from pathlib import Path

from her2batch.slides.nvimgcodec.loading import load_nvimgcodec
from her2batch.slides.tiff_slide import TiledTiffSlide


class NvImageCodecSlide(TiledTiffSlide):
    """A TIFF slide whose tiles are decoded in batches by a ChunkDecoder; all else is read as by TiledTiffSlide."""

    name = "nvimgcodec"

    def __init__(self, path: Path) -> None:
        """Open a slide. Raises SlideError as TiledTiffSlide does, InputError when nvImageCodec is not installed."""
        load_nvimgcodec()
        super().__init__(path)
