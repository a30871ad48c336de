"""The choice of the pages that are the slide, in every order and shape in which writers put them."""

import struct
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import tifffile

from her2batch.errors import SlideError
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import DISAGREE
from her2batch.slides.tiff.pages import OTHER_IMAGES
from her2batch.slides.tiff_tables import TiffStructure, parse_tiff
from tests.slides.tiff.pyramids import OME, halved, levels, ome_xml, picture, read_levels, write_pages, write_subifds

IMAGE = picture(900, 700)
MACRO = picture(320, 640, seed=2)
APERIO = "Aperio Image Library v12\r\n700x900 [0,0 700x900] (128x128) JPEG|AppMag = 40|MPP = 0.25"


def sizes(found: TiffStructure) -> list[tuple[int, int]]:
    return [(table.width, table.height) for table in found.levels]


THREE = [(700, 900), (350, 450), (175, 225)]


@pytest.mark.parametrize("writer", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"bigtiff": True, "byteorder": ">"}])
@pytest.mark.parametrize("more", [{}, {"compression": "lzw", "predictor": True}, {"tile": (256, 64)}, {"tile": None}])
def test_chained_subifds_are_levels(tmp_path: Path, writer: dict, more: dict) -> None:
    images = levels(IMAGE)
    path = write_subifds(tmp_path / "a.ome.tif", images, writer, metadata=OME, **more)
    found = parse_tiff(path)
    assert (sizes(found), found.mpp, found.notes) == (THREE, (0.25, 0.25), ())
    for pixels, image in zip(read_levels(path), images, strict=True):
        assert np.array_equal(pixels, image)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("tagged", [True, False])
def test_levels_may_stand_in_any_order(tmp_path: Path, order: tuple[int, ...], tagged: bool) -> None:
    images = levels(IMAGE)
    pages = [(images[k], {"subfiletype": int(tagged and k > 0)}) for k in order]
    found = parse_tiff(write_pages(tmp_path / "a.tif", pages))
    assert sizes(found)[0] == THREE[0]
    # untagged, a small image between the finest level and the next is taken for a thumbnail
    assert sizes(found) == THREE or order == (0, 2, 1)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("xml_in_order", [True, False])
def test_image_of_the_pages_gives_the_resolution(
    tmp_path: Path, first: bool, numbered: bool, xml_in_order: bool
) -> None:
    macro_page, slide_page = (0, 1) if first else (1, 0)
    images = [
        ("macro", (640, 320), 8.0, macro_page if numbered else None),
        ("scan", (700, 900), 0.25, slide_page if numbered else None),
    ]
    xml = ome_xml(*(images if xml_in_order else images[::-1])).encode()
    pages = [(MACRO, {}), (IMAGE, {})] if first else [(IMAGE, {}), (MACRO, {})]
    pages[0][1]["description"] = xml
    found = parse_tiff(write_pages(tmp_path / "a.ome.tif", pages))
    assert (sizes(found), found.mpp, found.notes) == ([(700, 900)], (0.25, 0.25), ())


def test_largest_of_several_series_is_the_slide(tmp_path: Path) -> None:
    series = [("region 1", (350, 450), 0.25, 0), ("region 2", (700, 900), 0.25, 1)]
    other = picture(450, 350, seed=3)
    pages = [(other, {"description": ome_xml(*series).encode()}), (IMAGE, {})]
    found = parse_tiff(write_pages(tmp_path / "a.ome.tif", pages, bigtiff=True))
    # the other region has the shape of a level, and the resolution of the slide
    assert (sizes(found), found.mpp, found.notes) == ([(700, 900)], (0.25, 0.25), (OTHER_IMAGES,))


def test_levels_may_be_series_of_the_ome_xml(tmp_path: Path) -> None:
    series = [("scan", (700, 900), 0.25, 0), ("scan #2", (350, 450), 0.5, 1), ("scan #3", (175, 225), None, 2)]
    pages = [(image, {}) for image in levels(IMAGE)]
    pages[0][1]["description"] = ome_xml(*series).encode()
    assert sizes(parse_tiff(write_pages(tmp_path / "a.ome.tif", pages))) == THREE


def test_fluorescence_beside_a_brightfield_image_is_not_the_slide(tmp_path: Path) -> None:
    grey = np.zeros((1200, 1000), np.uint16)
    path = write_pages(tmp_path / "a.tif", [(grey, {"photometric": "minisblack"}), (IMAGE, {})])
    assert sizes(parse_tiff(path)) == [(700, 900)]


def test_small_colour_image_beside_fluorescence_is_not_the_slide(tmp_path: Path) -> None:
    grey = np.zeros((1200, 1000), np.uint16)
    path = write_pages(tmp_path / "a.tif", [(grey, {"photometric": "minisblack"}), (halved(IMAGE, 3), {})])
    with pytest.raises(SlideError, match="not a brightfield slide"):
        parse_tiff(path)


@pytest.mark.parametrize(
    "more",
    [
        {"description": "Aperio Image Library v12\r\nmacro 1800x1600", "subfiletype": 9},
        {"description": "Aperio Image Library v12\r\nlabel 1800x1600", "subfiletype": 1},
        {"subfiletype": 9},
        {"description": "Macro"},
        {"description": "Label_Image"},
        {"description": "<ImageType>Overview</ImageType>"},
        {"extratags": [(285, 2, 0, "thumbnail", True)]},
    ],
)
@pytest.mark.parametrize("tiled", [True, False])
def test_marked_image_is_no_slide_even_if_it_is_larger(tmp_path: Path, more: dict, tiled: bool) -> None:
    big = (picture(1600, 1800, seed=5), {"tile": (128, 128) if tiled else None, **more})
    found = parse_tiff(write_pages(tmp_path / "a.svs", [big, (IMAGE, {}), (halved(IMAGE), {})]))
    assert (sizes(found), len(found.others), found.notes) == (THREE[:2], 1, ())


def test_finest_level_in_strips_with_tiled_levels(tmp_path: Path) -> None:
    for tagged in (True, False):
        pages = [(image, {"tile": (128, 128), "subfiletype": int(tagged)}) for image in levels(IMAGE)]
        pages[0][1].update(tile=None, subfiletype=0)
        assert sizes(parse_tiff(write_pages(tmp_path / "a.tif", pages))) == THREE


def test_tiled_thumbnail_after_the_finest_level_hides_no_level(tmp_path: Path) -> None:
    images = [IMAGE, halved(IMAGE, 4), halved(IMAGE), halved(IMAGE, 2)]
    arrow = "Aperio Image Library v12\r\n700x900 -> 43x56"
    for name, texts in (("plain.tif", [None] * 4), ("aperio.svs", [APERIO, arrow, APERIO, APERIO])):
        pages = [(image, {"description": text}) for image, text in zip(images, texts, strict=True)]
        found = parse_tiff(write_pages(tmp_path / name, pages))
        assert (sizes(found), len(found.others)) == (THREE, 1)


def test_second_large_image_is_flagged_and_focal_planes_are(tmp_path: Path) -> None:
    for other in (picture(700, 650, seed=4), IMAGE[:, ::-1].copy()):
        found = parse_tiff(write_pages(tmp_path / "a.tif", [(IMAGE, {}), (other, {})]))
        assert (sizes(found), found.notes) == ([(700, 900)], (OTHER_IMAGES,))


def test_image_with_another_resolution_is_no_level(tmp_path: Path) -> None:
    def per_cm(mpp: float) -> dict:
        return {"resolution": (10_000 / mpp, 10_000 / mpp), "resolutionunit": "CENTIMETER"}

    for mpp, is_level in ((0.25, True), (1.0, True), (8.0, False), (0.01, True)):  # the last one is implausible
        pages = [(IMAGE, per_cm(0.25)), (halved(IMAGE, 2), per_cm(mpp))]
        assert len(parse_tiff(write_pages(tmp_path / "a.tif", pages)).levels) == 1 + is_level


@pytest.mark.parametrize("names", [("Red", "Green", "Blue"), ("blue", "green", "red")])
@pytest.mark.parametrize("more", [{}, {"compression": "lzw"}, {"tile": None}, {"compression": "jpeg"}])
def test_three_pages_named_red_green_and_blue_are_one_image(tmp_path: Path, names: tuple, more: dict) -> None:
    order = [name.lower() for name in names]
    planes = np.stack([IMAGE[..., ("red", "green", "blue").index(name)] for name in order])
    metadata = {**OME, "axes": "CYX", "Channel": {"Name": list(names)}}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, planes, photometric="minisblack", metadata=metadata, **{"tile": (128, 128), **more}
    )  # fmt: skip
    found = parse_tiff(path)
    assert (sizes(found), found.mpp, found.levels[0].planes) == ([(700, 900)], (0.25, 0.25), 3)
    gap = np.abs(read_levels(path)[0].astype(int) - IMAGE)
    assert gap.max() == 0 or (more.get("compression") == "jpeg" and gap.mean() < 3)


def test_three_pages_may_have_subifds(tmp_path: Path) -> None:
    images = levels(IMAGE)
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        usual = {"tile": (128, 128), "photometric": "minisblack"}
        metadata = {**OME, "axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
        file.write(np.moveaxis(images[0], -1, 0), subifds=2, metadata=metadata, **usual)
        for image in images[1:]:
            file.write(np.moveaxis(image, -1, 0), subfiletype=1, metadata=None, **usual)
    assert all(np.array_equal(*pair) for pair in zip(read_levels(path), images, strict=True))


def test_three_pages_without_colour_names_are_no_slide(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    metadata = {**OME, "axes": "CYX", "Channel": {"Name": ["DAPI", "FITC", "Cy5"]}}
    tifffile.imwrite(path, np.moveaxis(IMAGE, -1, 0), tile=(128, 128), photometric="minisblack", metadata=metadata)
    with pytest.raises(SlideError, match="not a brightfield slide"):
        parse_tiff(path)


@pytest.mark.parametrize(
    "more",
    [{"compression": "deflate"}, {"compression": "lzw", "predictor": True}, {"tile": None}, {"compression": "jpeg"},
     {"byteorder": ">"}, {"bigtiff": True}],
)  # fmt: skip
def test_planes_of_colour_are_read(tmp_path: Path, more: dict) -> None:
    path = tmp_path / "a.ome.tif"
    writer = {"tile": (128, 256), "photometric": "rgb", "planarconfig": "separate", **more}
    tifffile.imwrite(path, np.moveaxis(IMAGE, -1, 0), metadata={**OME, "axes": "SYX"}, **writer)
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.mpp) == ("tiff", 0.25)
    gap = np.abs(read_levels(path)[0].astype(int) - IMAGE)
    assert gap.max() == 0 or (more.get("compression") == "jpeg" and gap.mean() < 3)


def test_size_that_no_image_has_is_flagged(tmp_path: Path) -> None:
    xml = ome_xml(("scan", (1400, 1800), 0.25, 0)).encode()
    more = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", "description": xml}
    found = parse_tiff(write_pages(tmp_path / "a.ome.tif", [(IMAGE, more)]))
    assert (found.mpp[0], found.notes) == (pytest.approx(0.5), (DISAGREE,))


@pytest.mark.parametrize("first", [True, False])
def test_series_with_subifds_of_their_own(tmp_path: Path, first: bool) -> None:
    """A slide, and a macro image with SubIFDs too, as QuPath and raw2ometiff write them."""
    path = tmp_path / "a.ome.tif"
    slide, macro = ("scan", (700, 900), 0.25, int(first)), ("macro", (640, 320), None, int(not first))
    series = [(levels(MACRO, 2), macro), (levels(IMAGE), slide)]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for images, _ in series if first else series[::-1]:
            xml = ome_xml(slide, macro).encode() if file.filehandle.tell() < 100 else None
            usual = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
            file.write(images[0], subifds=len(images) - 1, description=xml, **usual)
            for image in images[1:]:
                file.write(image, subfiletype=1, **usual)
    found = parse_tiff(path)
    assert (sizes(found), found.mpp, found.notes) == (THREE, (0.25, 0.25), ())


def test_chain_of_subifds_of_which_only_the_first_is_listed(tmp_path: Path) -> None:
    path = write_subifds(tmp_path / "a.tif", levels(IMAGE), {})
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[330]
        at, first = tag.offset, tag.value[0]
    data = bytearray(path.read_bytes())
    struct.pack_into("<II", data, at + 4, 1, first)
    path.write_bytes(data)
    assert sizes(parse_tiff(path)) == THREE


def test_each_level_may_be_a_subifd_of_the_next_finer_one(tmp_path: Path) -> None:
    """tifffile writes no nested SubIFDs: pages get a pointer to the page behind them, and their chain is cut."""
    images = levels(IMAGE)
    pages = [
        (image, {"subfiletype": int(k > 0), "extratags": [(331, 4, 1, 0, True)]}) for k, image in enumerate(images)
    ]
    path = write_pages(tmp_path / "a.tif", pages)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for page, following in pairwise(file.pages):
            tag = page.tags[331]
            struct.pack_into("<HHII", data, tag.offset, 330, 4, 1, following.offset)
            struct.pack_into("<I", data, page.offset + 2 + 12 * len(page.tags), 0)
    path.write_bytes(data)
    assert [level.shape for level in read_levels(path)] == [image.shape for image in images]


def test_planes_of_colour_may_have_subifds(tmp_path: Path) -> None:
    images = levels(IMAGE)
    planes = [np.ascontiguousarray(np.moveaxis(image, -1, 0)) for image in images]
    path = write_subifds(tmp_path / "a.tif", planes, {}, planarconfig="separate", compression="deflate")
    assert all(np.array_equal(*pair) for pair in zip(read_levels(path), images, strict=True))


@pytest.mark.parametrize(
    "more",
    [
        {"photometric": "rgb", "planarconfig": "separate", "metadata": {**OME, "axes": "SYX"}},
        {
            "photometric": "minisblack",
            "metadata": {**OME, "axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}},
        },
    ],
)
def test_planes_and_pages_of_colour_may_have_16_bits(tmp_path: Path, more: dict) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.moveaxis(IMAGE.astype(np.uint16) * 257, -1, 0), tile=(128, 128), **more)
    assert np.array_equal(read_levels(path)[0], IMAGE)
