"""Every picture of a page that is printed without a screen is in the PDF: its pixels show the slide."""

import re
from pathlib import Path

import numpy as np
import pytest

from her2batch.reports.cohort_page import write_report
from her2batch.reports.theme import jpeg_data_uri
from her2batch.store.cohort import Cohort
from tests.reports.pdf_pictures import is_blank, print_page, shown_pictures
from tests.reports.test_browser import CHROMIUM

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def pages(reported: Cohort, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The cohort report, and the page of a slide with example tiles."""
    report = write_report(reported, tmp_path_factory.mktemp("printed") / "report.html", pages=4).path
    of_slides = sorted(report.parent.glob("report_slides/*.html"))
    return [report, max(of_slides, key=lambda path: path.read_text("utf-8").count("<img "))]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["cohort report", "slide page"])
def test_every_picture_is_printed(pages: list[Path], tmp_path: Path, number: int) -> None:
    path = pages[number]
    found = shown_pictures(print_page(CHROMIUM, path.as_uri(), tmp_path / "page.pdf"))
    assert len(found) >= len(re.findall(r"<img ", path.read_text("utf-8")))
    assert len(found) > 5
    assert [picture.shape for picture in found if is_blank(picture)] == []


@pytest.mark.slow
def test_an_empty_frame_is_found(tmp_path: Path) -> None:
    """The test sees what it is for: of two pictures, one shows nothing."""
    noise = np.random.default_rng(1).integers(0, 256, (60, 60, 3)).astype(np.uint8)
    images = (f'<img src="{jpeg_data_uri(pixels, 90)}" width="60">' for pixels in (noise, np.full_like(noise, 250)))
    path = tmp_path / "page.html"
    path.write_text("".join(images), encoding="utf-8")
    found = shown_pictures(print_page(CHROMIUM, path.as_uri(), tmp_path / "page.pdf"))
    assert [is_blank(picture) for picture in found] == [False, True]
