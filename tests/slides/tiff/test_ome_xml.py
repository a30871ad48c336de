"""Images of an OME-XML, and the one that describes a page."""

import time

import pytest

from her2batch.slides.tiff.ome_xml import find_image, parse_ome_xml
from tests.slides.tiff.pyramids import ome_xml

SLIDE, MACRO = ("scan", (4096, 3000), 0.25, 1), ("macro", (1280, 640), 8.0, 0)


@pytest.mark.parametrize(("first", "second"), [(SLIDE, MACRO), (MACRO, SLIDE)])
def test_page_and_size_find_the_image_in_any_order(first: tuple, second: tuple) -> None:
    image, agrees = find_image(parse_ome_xml(ome_xml(first, second)), 1, 4096, 3000)
    assert image is not None
    assert (image.name, image.pixel_width, image.pixel_height, agrees) == ("scan", 0.25, 0.25, True)


def test_size_decides_where_pages_are_not_numbered() -> None:
    images = parse_ome_xml(ome_xml((*MACRO[:3], None), (*SLIDE[:3], None)))
    image, agrees = find_image(images, 0, 4096, 3000)
    assert image is not None
    assert (image.name, agrees) == ("scan", True)


def test_disagreement_of_page_and_size_is_reported() -> None:
    image, agrees = find_image(parse_ome_xml(ome_xml(MACRO, SLIDE)), 0, 4096, 3000)
    assert image is not None
    assert (image.name, agrees) == ("scan", False)
    assert find_image(parse_ome_xml(ome_xml(MACRO, SLIDE)), 7, 100, 100) == (None, False)


def test_page_may_be_padded_to_whole_tiles() -> None:
    images = parse_ome_xml(ome_xml(SLIDE, MACRO))
    assert find_image(images, 1, 4096, 3072, (256, 256)) == (images[0], True)
    assert find_image(images, 1, 4096, 3072) == (images[0], False)


def test_images_of_one_size_and_two_resolutions_do_not_agree() -> None:
    one, two = ("a", (512, 512), 0.25, None), ("b", (512, 512), 0.5, None)
    assert find_image(parse_ome_xml(ome_xml(one, two)), None, 512, 512)[1] is False


@pytest.mark.parametrize(
    ("unit", "size", "mpp"),
    [("nm", 250, 0.25), ("mm", 0.00025, 0.25), ("cm", 0.000025, 0.25), ("inch", 0.00001, 0.254), ("pixel", 1, None)],
)
def test_physical_sizes_may_have_any_unit(unit: str, size: float, mpp: float | None) -> None:
    (image,) = parse_ome_xml(ome_xml(("scan", (512, 512), size, 0), unit=unit))
    assert image.pixel_width == (None if mpp is None else pytest.approx(mpp))


@pytest.mark.parametrize(
    ("channels", "pages"),
    [
        (("Red", "Green", "Blue"), (0, 1, 2)),
        (("blue", "green", "red"), (2, 1, 0)),
        (("R", "G", "B"), (0, 1, 2)),
        (("DAPI", "FITC", "Cy5"), None),
        (("red", "green", "green"), None),
    ],
)
def test_channels_red_green_blue_are_found_by_name(channels: tuple[str, ...], pages: tuple[int, ...] | None) -> None:
    parts = "".join(f'<Channel ID="Channel:0:{k}" Name="{name}"/>' for k, name in enumerate(channels))
    data = '<TiffData IFD="0" PlaneCount="3"/>'
    xml = f'<OME><Image ID="Image:0"><Pixels SizeX="9" SizeY="9">{parts}{data}</Pixels></Image></OME>'
    assert parse_ome_xml(xml)[0].rgb_pages() == pages


def test_display_colours_of_fluorescence_are_no_colours_of_the_image() -> None:
    channels = "".join(f'<Channel Color="{value}"/>' for value in (-16776961, 16711935, 65535))
    (image,) = parse_ome_xml(f"<OME><Image><Pixels>{channels}<TiffData/></Pixels></Image></OME>")
    assert image.rgb_pages() is None


def test_objective_is_that_of_the_image() -> None:
    lenses = '<Objective ID="O:1" NominalMagnification="1.25"/><Objective ID="O:2" NominalMagnification="40.0"/>'
    xml = f'<OME><Instrument>{lenses}</Instrument><Image><ObjectiveSettings ID="O:2"/><Pixels/></Image><Image/></OME>'
    assert [image.magnification for image in parse_ome_xml(xml)] == [40.0, None]


@pytest.mark.parametrize("prefix", ["", "ome:", "OME:"])
def test_prefixes_of_names_are_ignored(prefix: str) -> None:
    xml = ome_xml(SLIDE).replace("</", f"</{prefix}").replace("<I", f"<{prefix}I").replace("<P", f"<{prefix}P")
    xml = xml.replace("<C", f"<{prefix}C").replace("<T", f"<{prefix}T").replace("<OME", f"<{prefix}OME")
    assert [image.name for image in parse_ome_xml(xml)] == ["scan"]


def test_text_that_is_no_ome_xml_gives_no_image() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><OME><Image Name="&b;"/></OME>'
    for text in ("", "Aperio Image", "<OME", "<OME><Image Na", "<OME>\0", bomb, "<svg/>"):
        assert parse_ome_xml(text) == []


def test_a_large_document_takes_little_time() -> None:
    text = "<OME>" + "<Image><Pixels><TiffData IFD='1' PlaneCount='9999'/></Pixels></Image>" * 3_000 + "</OME>"
    started = time.process_time()
    assert len(parse_ome_xml(text)) == 1000
    assert time.process_time() - started < 5
