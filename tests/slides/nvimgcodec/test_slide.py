"""The reader nvimgcodec is a reader like the others."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from her2batch.slides.nvimgcodec.slide import NvImageCodecSlide
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Slide
from tests.contract.reader_contract import SlideContract

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec isn't installed on this platform")


class TestNvImageCodec(SlideContract):
    @pytest.fixture
    def slide(self, real_data: Path) -> Iterator[Slide]:
        with open_slide(real_data / "slides" / "CMU-1-small.tiff", "nvimgcodec") as slide:
            assert isinstance(slide, NvImageCodecSlide)
            assert slide.info.reader == "nvimgcodec"
            yield slide
