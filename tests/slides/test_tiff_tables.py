"""Parsing and checking of the tile tables of TIFF slides."""

import contextlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile

from her2batch.errors import SlideError
from her2batch.slides.tiff_tables import detect_tiff_format, parse_tiff
from tests.slides.ndpi import write_ndpi

RGB = np.random.default_rng(0).integers(180, 255, (300, 500, 3), np.uint8)
PIXELS = {"tile": (128, 128), "photometric": "rgb", "metadata": None}


def write_tiff(path: Path, *images: np.ndarray, **more: object) -> Path:
    with tifffile.TiffWriter(path) as file:
        for k, image in enumerate(images):
            file.write(image, **{**PIXELS, **(more if k == 0 else {})})
    return path


@pytest.mark.parametrize(
    ("name", "kind", "sizes", "mpp", "objective", "stored", "others"),
    [
        ("CMU-1-Small-Region.svs", "aperio", [(2220, 2967)], 0.499, 20, ("jpeg", "RGB"), 3),
        ("tcga-cr-7395-01a-01-ts1.svs", "aperio", [(4443, 3567), (2221, 1783)], None, None, ("jpeg2000", "RGB"), 1),
        ("CMU-1-small.tiff", "generic-tiff", [(718, 514), (359, 257), (179, 128)], 3.195, None, None, 0),
        ("HE_example.tif", "ome-tiff", [(1380, 1484)], 0.5, None, None, 0),
        ("boxes.tiff", "generic-tiff", [(300, 250), (150, 125), (75, 62), (37, 31)], 352.8, None, None, 0),
        ("😐.svs", "aperio", [(16, 16)], 0.499, 20, None, 1),
    ],
)  # fmt: skip
def test_structure_of_real_slides(real_data: Path, name, kind, sizes, mpp, objective, stored, others) -> None:
    found = parse_tiff(real_data / "slides" / name)
    assert (found.format, found.objective) == (kind, objective)
    assert [(level.width, level.height) for level in found.levels] == sizes
    assert found.mpp[0] == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
    assert len(found.others) == others
    assert stored in (None, (found.levels[0].compression, found.levels[0].colorspace))
    assert all(len(level.offsets) == level.across * level.down for level in found.levels)


def test_label_macro_and_thumbnail_are_no_levels(real_data: Path) -> None:
    found = parse_tiff(real_data / "slides/CMU-1-Small-Region.svs")
    assert len(found.levels) == 1
    assert sorted((image.width, image.height) for image in found.others) == [(387, 463), (574, 768), (1280, 431)]


def test_levels_may_be_pages_or_subdirectories(tmp_path: Path) -> None:
    small = np.ascontiguousarray(RGB[::2, ::2])
    pages = write_tiff(tmp_path / "pages.tiff", RGB, small)
    with tifffile.TiffWriter(tmp_path / "sub.tiff") as file:
        file.write(RGB, subifds=1, **PIXELS)
        file.write(small, subfiletype=1, **PIXELS)
    for path in (pages, tmp_path / "sub.tiff"):
        assert [level.width for level in parse_tiff(path).levels] == [500, 250]


def test_tiled_image_of_another_shape_is_no_level(tmp_path: Path) -> None:
    found = parse_tiff(write_tiff(tmp_path / "a.tiff", RGB, RGB[:128, :128].copy(), RGB[::4, ::4].copy()))
    assert [level.width for level in found.levels] == [500, 125]
    assert [image.width for image in found.others] == [128]


@pytest.mark.parametrize(
    ("unit", "size", "mpp"),
    [
        ("µm", "0.25", 0.25),
        ("nm", "250", 0.25),
        ("mm", "0.00025", 0.25),
        ("&#181;m", "0.25", 0.25),
        ("pixel", "1", None),
    ],
)
def test_ome_units_are_converted(tmp_path: Path, unit: str, size: str, mpp: float | None) -> None:
    sizes = f'PhysicalSize{{0}}="{size}" PhysicalSize{{0}}Unit="{unit}"'
    xml = f'<?xml version="1.0"?><OME><Image><Pixels {sizes.format("X")} {sizes.format("Y")}/></Image></OME>'
    found = parse_tiff(write_tiff(tmp_path / "a.ome.tif", RGB, description=xml.encode()))
    assert found.format == "ome-tiff"
    assert found.mpp == ((None, None) if mpp is None else pytest.approx((mpp, mpp)))


def test_resolution_tags_in_cm_inches_or_without_unit(tmp_path: Path) -> None:
    for unit, per, mpp in (("CENTIMETER", 40_000, 0.25), ("INCH", 101_600, 0.25), ("NONE", 40_000, None)):
        found = parse_tiff(write_tiff(tmp_path / f"{unit}.tiff", RGB, resolution=(per, per), resolutionunit=unit))
        assert found.mpp[0] == (None if mpp is None else pytest.approx(mpp))


def philips_description(*spacings: str) -> str:
    parts = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" '
        f'PMSVR="IDoubleArray">&quot;{spacing}&quot; &quot;{spacing}&quot;</Attribute></DataObject>'
        for spacing in spacings
    )
    return (
        '<?xml version="1.0"?><DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>'
        '<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        f'<Attribute Name="DICOM_PIXEL_SPACING">&quot;{spacings[0]}&quot; &quot;{spacings[0]}&quot;</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{parts}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )


def write_philips(path: Path, *images: np.ndarray) -> Path:
    description = philips_description(*(str(0.00025 * 2**k) for k in range(len(images))))
    with tifffile.TiffWriter(path) as file:
        for k, image in enumerate(images):
            file.write(
                image, tile=(128, 128), photometric="rgb", compression="jpeg", subfiletype=int(k > 0), metadata=None,
                software="Philips DP v1.0", description=description.encode() if k == 0 else None,
            )  # fmt: skip
    return path


def test_philips_padding_is_removed_and_mpp_is_the_pixel_spacing(tmp_path: Path) -> None:
    base = np.full((384, 640, 3), 230, np.uint8)  # padded to whole tiles, like all levels
    half, quarter = np.full((256, 384, 3), 230, np.uint8), np.full((128, 256, 3), 230, np.uint8)
    found = parse_tiff(write_philips(tmp_path / "a.tiff", base, half, quarter))
    assert found.format == "philips"
    assert found.mpp == (pytest.approx(0.25), pytest.approx(0.25))
    assert [(level.width, level.height) for level in found.levels] == [(640, 384), (320, 192), (160, 96)]
    assert [len(level.offsets) for level in found.levels] == [15, 6, 2]


def test_philips_levels_are_those_of_openslide(tmp_path: Path) -> None:
    import openslide

    images = [np.full((h, w, 3), 230, np.uint8) for h, w in ((384, 640), (256, 384))]
    path = write_philips(tmp_path / "a.tiff", *images)
    with openslide.OpenSlide(path) as theirs:
        ours = parse_tiff(path)
        assert theirs.properties["openslide.vendor"] == "philips"
        assert theirs.level_dimensions == tuple((level.width, level.height) for level in ours.levels)
        assert float(theirs.properties["openslide.mpp-x"]) == pytest.approx(ours.mpp[0])


def test_format_is_detected_by_tags(tmp_path: Path, real_data: Path) -> None:
    assert detect_tiff_format(write_ndpi(tmp_path / "a.ndpi", np.zeros((256, 1024, 3), np.uint8), 0.23)) == "hamamatsu"
    leica = '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"></scn>'
    for text, kind in ((leica, "leica"), ("Aperio Image", "aperio")):
        assert detect_tiff_format(write_tiff(tmp_path / f"{kind}.tiff", RGB, description=text)) == kind
    trestle = {"software": "MedScan", "description": "Background Color=E6E6E6;OverlapsXY=8 8"}
    assert detect_tiff_format(write_tiff(tmp_path / "trestle.tif", RGB, **trestle)) == "trestle"
    ventana = {"extratags": [(700, 7, 20, b"<x><iScan></iScan>  ", True)], "description": "Label Image"}
    with tifffile.TiffWriter(tmp_path / "ventana.tif") as file:
        file.write(RGB, **PIXELS, **ventana)
        file.write(RGB, **PIXELS, description="level=0 mag=40 quality=95")
    assert detect_tiff_format(tmp_path / "ventana.tif") == "ventana"
    assert detect_tiff_format(real_data / "slides/sm_image.dcm") is None
    assert detect_tiff_format(real_data / "bad_slides/broken.svs") is None


def parse_error(path: Path) -> SlideError:
    with pytest.raises(SlideError) as caught:
        parse_tiff(path)
    return caught.value


@pytest.mark.parametrize(
    ("image", "more"),
    [
        (RGB.astype(np.uint32), {}),
        (RGB[..., 0].copy(), {"photometric": "minisblack"}),
        (RGB.astype(np.float32), {}),
        (np.zeros((300, 500, 5), np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}),
    ],
)
def test_images_that_are_not_rgb_of_8_or_16_bits_are_no_slides(
    tmp_path: Path, image: np.ndarray, more: dict[str, object]
) -> None:
    error = parse_error(write_tiff(tmp_path / "a.tiff", image, **more))
    assert error.code == "not-a-slide"
    assert "not a brightfield slide" in str(error)


def test_bad_slides_are_refused_with_the_reason(real_data: Path) -> None:
    error = parse_error(real_data / "bad_slides/unopenable.tiff")
    assert (error.code, "compression 52479" in error.message) == ("unreadable", True)
    assert parse_error(real_data / "bad_slides/mask_test.tif").code == "not-a-slide"
    assert parse_error(real_data / "bad_slides/broken.svs").code == "unreadable"


def overwrite_tag(path: Path, tag: int, value: int) -> Path:
    """Overwrite the value of a tag in the first page of a little-endian TIFF."""
    data = bytearray(path.read_bytes())
    at = struct.unpack_from("<I", data, 4)[0]
    for k in range(struct.unpack_from("<H", data, at)[0]):
        entry = at + 2 + 12 * k
        if struct.unpack_from("<H", data, entry)[0] == tag:
            struct.pack_into("<HI", data, entry + 2, 4, 1)
            struct.pack_into("<I", data, entry + 8, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("tag", "value"), [(256, 2**32 - 1), (257, 2**32 - 1), (256, 0), (322, 16), (322, 0), (323, 2**31), (324, 8)]
)
def test_implausible_sizes_are_refused_with_little_memory(tmp_path: Path, tag: int, value: int) -> None:
    path = overwrite_tag(write_tiff(tmp_path / "a.tiff", RGB), tag, value)
    tracemalloc.start()
    try:
        assert parse_error(path).code in ("unreadable", "truncated")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_tile_beyond_the_end_of_the_file_is_truncated(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", RGB)
    with tifffile.TiffFile(path) as file:
        where = file.pages[0].tags[324].valueoffset
    data = bytearray(path.read_bytes())
    for offset in (len(data) - 10, 2**32 - 1):
        struct.pack_into("<I", data, where, offset)
        path.write_bytes(data)
        assert parse_error(path).code == "truncated"


def test_flipped_bits_raise_slide_error_or_leave_a_valid_table(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", RGB, RGB[::2, ::2].copy())
    data, rng = path.read_bytes(), np.random.default_rng(5)
    first = struct.unpack_from("<I", data, 4)[0]
    for at in rng.integers(first, first + 250, 150).tolist():
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with contextlib.suppress(SlideError):
            found = parse_tiff(path)
            for table in (*found.levels, *found.others):
                assert int((table.offsets + table.byte_counts).max()) <= len(data)
