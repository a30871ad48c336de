"""The maker of a file by its structure; a maker's word in another file hides nothing."""

from pathlib import Path

import pytest

from her2batch.slides.readers import open_slide
from tests.slides.tiff.pyramids import halved, ome_xml, picture, write_pages

CM = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
QPI = (
    '<?xml version="1.0" encoding="utf-16"?><PerkinElmer-QPI-ImageDescription><ImageType>FullResolution</ImageType>'
    "<Objective>20x</Objective></PerkinElmer-QPI-ImageDescription>"
)
ISCAN = b'<Metadata><iScan Magnification="40" ScanRes="0.25"/></Metadata>'
LEICA = ome_xml(("scan", (400, 600), 0.25, 0)).replace("<Image", "<!-- www.leica-microsystems.com/scn --><Image", 1)


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"software": "Philips Converter 1.0"}, "generic-tiff"),
        ({"software": "MedScan export"}, "generic-tiff"),
        ({"software": "MedScan export", "description": "exported by somebody"}, "generic-tiff"),
        ({"description": LEICA.encode()}, "ome-tiff"),
        ({"description": QPI}, "generic-tiff"),
        ({"description": "iScan Coreo"}, "generic-tiff"),
        ({"description": "level=0 mag=40 quality=90"}, "generic-tiff"),
        ({"extratags": [(65420, 4, 1, 1, True)]}, "generic-tiff"),
        ({"extratags": [(700, 7, len(ISCAN), ISCAN, True)]}, "generic-tiff"),
    ],
)
def test_words_of_a_maker_in_a_plain_pyramid(tmp_path: Path, more: dict, kind: str) -> None:
    image = picture(600, 400)
    path = write_pages(tmp_path / "a.tif", [(image, {**CM, **more}), (halved(image, 1), {"subfiletype": 1})])
    with open_slide(path) as slide:
        assert (slide.info.format, slide.info.reader) == (kind, "tiff")
        assert (slide.info.mpp, slide.info.mpp_source) == (pytest.approx(0.25), "file")
        assert slide.info.level_downsamples == (1.0, 2.0)


def test_description_of_the_first_page_counts_for_a_finest_level_behind_it(tmp_path: Path) -> None:
    image = picture(600, 400)
    about = {"description": "Aperio Image\r\n400x600 (128x128)|AppMag = 40|MPP = 0.25"}
    path = write_pages(tmp_path / "a.svs", [(halved(image), about), (image, {})])
    with open_slide(path) as slide:
        assert (slide.info.format, slide.info.mpp, slide.info.objective) == ("aperio", 0.25, 40)
        assert (slide.info.width, slide.info.height) == (400, 600)
