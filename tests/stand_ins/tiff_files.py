"""Stand-ins in TIFF containers, and the cores as plain images."""

import csv
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from tests.stand_ins.tissue import CORES, paint_core, paint_he_slide, paint_ihc_field

Image = NDArray[np.uint8]

APERIO = "Aperio Image Library v11.2.1 \r\n"
SCAN_FACTS = "|AppMag = 20|StripeWidth = 2040|ScanScope ID = STANDIN|Filename = stand-in|MPP = 0.4990"
START, END, SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""Markers of a JPEG stream: start and end of image, start of scan, and Adobe's, which Aperio leaves out."""

JPEG_2000_RGB = 33005
"""Aperio's number for JPEG 2000 of RGB."""

UNKNOWN_COMPRESSION = 52479
COMPRESSION_TAG = 259
DPI_72 = (14861707, 524288)
"""72 dpi in px/cm, as a program writes it that knows no resolution: 352.8 µm/px."""


def write_tiff_slides(folder: Path) -> None:
    """Write the seven TIFF slides."""
    region = np.roll(paint_he_slide((2220, 2967), 0.42, 0.499, seed=1), -444, axis=1)  # tissue reaches its left edge
    write_aperio_jpeg(folder / "CMU-1-Small-Region.svs", region)
    write_aperio_jpeg_2000(folder / "tcga-cr-7395-01a-01-ts1.svs", paint_he_slide((4443, 3567), 0.68, 0.25, seed=2))
    whole = paint_he_slide((1380, 1484), 0.74, 0.5, seed=3)
    write_ome_tiff(folder / "HE_example.tif", whole)
    write_generic_pyramid(folder / "CMU-1-small.tiff", _shrunk(whole[:1285, :], 718, 514))
    write_boxes(folder / "boxes.tiff")
    tiny = np.full((16, 16, 3), (240, 238, 242), np.uint8)
    tiny[4:12, 4:12] = (236, 233, 240)
    write_tiny_aperio(folder / "small.svs", tiny)
    (folder / "😐.svs").write_bytes((folder / "small.svs").read_bytes())


def write_bad_slides(folder: Path, sound: Path) -> None:
    """Write the four files that no reader accepts. sound: a small SVS, damaged here for one of them."""
    (folder / "broken.svs").write_bytes(b"IJrE" + np.random.default_rng(0).bytes(997))
    _write_damaged_tile(folder / "unreadable.svs", sound)
    _write_unknown_compression(folder / "unopenable.tiff")
    mask = np.zeros((500, 225), np.uint8)
    cv2.ellipse(mask, (110, 250), (80, 190), 0, 0, 360, 255, -1)
    with tifffile.TiffWriter(folder / "mask_test.tif", bigtiff=False) as tiff:
        for k in range(3):
            level = mask[:: 2**k, :: 2**k].copy()
            tiff.write(level, tile=(128, 128), photometric="minisblack", compression="jpeg", metadata=None,
                       subfiletype=int(k > 0), resolution=(DPI_72, DPI_72), resolutionunit="CENTIMETER")  # fmt: skip


def write_cores(folder: Path) -> None:
    """Write the five cores as JPEG files, and their scores as train.csv."""
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["ihc-score", "her2-status", "filename", "weighted_sampler_label"])
        for number, core in reversed(list(enumerate(CORES))):
            rows.writerow([core.filename[0], int(number >= 3), f"./data/example_images/{core.filename}", number])
    for core in CORES:
        (folder / core.filename).write_bytes(simplejpeg.encode_jpeg(paint_core(core), 85, "RGB", "420"))


def write_ihc_image(path: Path) -> None:
    """Write a field of DAB-stained tissue as PNG."""
    cv2.imwrite(str(path), paint_ihc_field(seed=4)[..., ::-1])


# -- containers ----------------------------------------------------------------------------------------------------


def write_aperio_jpeg(path: Path, image: Image, tile: int = 240, quality: int = 30) -> None:
    """Write an SVS of one level with thumbnail, label and macro; RGB inside the JPEG streams, their tables apart."""
    height, width = image.shape[:2]
    size, whole = f"{width}x{height}", f"46000x32914 [42673,5576 {width}x{height}]"
    thumbnail = _shrunk(image, 574, 768)
    label = np.full((463, 387, 3), (250, 247, 235), np.uint8)
    macro = np.full((431, 1280, 3), 232, np.uint8)
    macro[60:371, 700:932] = _shrunk(image, 232, 311)
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        words = f"{APERIO}{whole} ({tile}x{tile}) JPEG/RGB Q={quality}{SCAN_FACTS}"
        _write_rgb_jpeg(tiff, image, (tile, tile), quality, description=words)
        words = f"{APERIO}{size} -> 574x768 - {SCAN_FACTS}"
        _write_rgb_jpeg(tiff, thumbnail, (16, 574), quality, description=words)
        tiff.write(label, photometric="rgb", compression="lzw", rowsperstrip=7, metadata=None, software=False,
                   subfiletype=1, description=f"{APERIO}label 387x463")  # fmt: skip
        words = f"{APERIO}macro 1280x431"
        _write_rgb_jpeg(tiff, macro, (16, 1280), quality, description=words, subfiletype=9)


def write_tiny_aperio(path: Path, image: Image) -> None:
    """Write an SVS of one tile that is larger than the slide, and a thumbnail."""
    height, width = image.shape[:2]
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        words = f"{APERIO}46000x32914 [19881,10805 {width}x{height}] (64x64) JPEG/RGB Q=30{SCAN_FACTS}"
        _write_rgb_jpeg(tiff, image, (64, 64), 30, description=words)
        words = f"{APERIO}{width}x{height} -> {width}x{height} - {SCAN_FACTS}"
        _write_rgb_jpeg(tiff, image, image.shape[:2], 30, description=words)


def write_aperio_jpeg_2000(path: Path, image: Image, tile: int = 256) -> None:
    """Write an SVS of two levels in JPEG 2000 with a thumbnail between them, and neither mpp nor objective."""
    height, width = image.shape[:2]
    half = _shrunk(image, width // 2, height // 2)
    words = f"{APERIO}{width}x{height} ({tile}x{tile})"
    facts = {"tile": (tile, tile), "photometric": "rgb", "compression": JPEG_2000_RGB, "metadata": None,
             "software": False}  # fmt: skip
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        streams = _jpeg_2000(image, tile)
        tiff.write(streams, shape=image.shape, dtype=np.uint8, description=f"{words} J2K/KDU Q=70", **facts)
        thumbnail = _shrunk(image, 956, 768)
        _write_rgb_jpeg(tiff, thumbnail, (16, 956), 30, description=f"{APERIO}{width}x{height} -> 956x768 - ")
        words = f"{words} -> {width // 2}x{height // 2} J2K/KDU Q=70"
        tiff.write(_jpeg_2000(half, tile), shape=half.shape, dtype=np.uint8, description=words, **facts)


def write_ome_tiff(path: Path, image: Image) -> None:
    """Write an OME-TIFF of one level as Bio-Formats does: big-endian, whole JPEG streams, description at the end."""
    height, width = image.shape[:2]
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:ed515913-7744-4e3f-87bf-93f4dc6aebdd"><Image ID="Image:0"><Pixels BigEndian="true" '
        'DimensionOrder="XYCZT" ID="Pixels:0" Interleaved="true" PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" '
        f'PhysicalSizeY="0.5" PhysicalSizeYUnit="µm" SizeC="3" SizeT="1" SizeX="{width}" SizeY="{height}" SizeZ="1" '
        'Type="uint8"><Channel ID="Channel:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels>'
        "</Image></OME>"
    )
    with tifffile.TiffWriter(path, bigtiff=False, byteorder=">") as tiff:
        streams = (simplejpeg.encode_jpeg(tile, 85, "RGB", "420") for tile in _tiles(image, (256, 256)))
        tiff.write(
            streams, shape=image.shape, dtype=np.uint8, tile=(256, 256), photometric="ycbcr", compression="jpeg",
            subsampling=(2, 2), metadata=None, software="OME Bio-Formats 7.3.1", description="",
            resolution=(19996.803, 19996.803), resolutionunit="CENTIMETER",
        )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["ImageDescription"].overwrite(xml.encode())


def write_generic_pyramid(path: Path, image: Image) -> None:
    """Write a generic pyramidal BigTIFF of three levels at 3.195 µm/px."""
    height, width = image.shape[:2]
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for k in range(3):
            level = _shrunk(image, width >> k, height >> k) if k else image
            _write_rgb_jpeg(tiff, level, (256, 256), 75, subfiletype=int(k > 0), resolution=(3130, 3130),
                            resolutionunit="CENTIMETER")  # fmt: skip


def write_boxes(path: Path) -> None:
    """Write coloured boxes as a pyramid of four levels whose resolution is a program's default of 72 dpi."""
    image = np.full((250, 300, 3), 255, np.uint8)
    colours = itertools.cycle([(200, 40, 40), (40, 160, 60), (50, 70, 200), (240, 200, 40)])
    for (y, x), colour in zip(itertools.product(range(10, 230, 60), range(10, 280, 60)), colours, strict=False):
        image[y : y + 40, x : x + 40] = colour
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        for k in range(4):
            level = _shrunk(image, 300 >> k, 250 >> k) if k else image
            tiff.write(level, tile=(64, 64), photometric="rgb", compression="zlib", metadata=None, software=False,
                       subfiletype=int(k > 0), resolution=(DPI_72, DPI_72), resolutionunit="CENTIMETER")  # fmt: skip


def _write_damaged_tile(path: Path, sound: Path) -> None:
    """Turn the start-of-scan marker of the first tile into a quantization table: the slide opens, its pixels fail."""
    with tifffile.TiffFile(sound) as tiff:
        start = tiff.pages[0].dataoffsets[0]
    data = bytearray(sound.read_bytes())
    data[data.index(b"\xff\xda", start) + 1] = 0xDB
    path.write_bytes(data)


def _write_unknown_compression(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((1, 1, 3), np.uint8), tile=(512, 512), photometric="rgb", metadata=None,
                     compression="zlib", software=False)  # fmt: skip
    with tifffile.TiffFile(path) as tiff:
        where = tiff.pages[0].tags[COMPRESSION_TAG].valueoffset
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, where, UNKNOWN_COMPRESSION)
    path.write_bytes(data)


# -- pieces of them ------------------------------------------------------------------------------------------------


def _write_rgb_jpeg(
    tiff: tifffile.TiffWriter, image: Image, edges: tuple[int, int], quality: int, **tags: object
) -> None:
    """Write a page whose JPEG streams hold RGB and share their tables. edges: height and width of a tile or strip."""
    tiled = edges[1] != image.shape[1]
    parts = [_split(_rgb_jpeg(part, quality)) for part in _tiles(image, edges, fill=tiled)]
    cut = {"tile": edges} if tiled else {"rowsperstrip": edges[0]}
    tiff.write(iter([stream for _, stream in parts]), shape=image.shape, dtype=np.uint8, photometric="rgb",
               compression="jpeg", compressionargs={"outcolorspace": "rgb"}, jpegtables=parts[0][0], metadata=None,
               software=False, **cut, **tags)  # fmt: skip


def _rgb_jpeg(image: Image, quality: int) -> bytes:
    """A stream of RGB that says so neither by Adobe's marker nor by the names of its components, as Aperio's."""
    stream = bytearray(imagecodecs.jpeg8_encode(image, quality, colorspace="RGB", outcolorspace="RGB"))
    frame, scan = stream.index(b"\xff\xc0"), stream.index(SCAN)
    for k in range(3):
        stream[frame + 10 + 3 * k] = stream[scan + 5 + 2 * k] = k
    return bytes(stream).replace(ADOBE_RGB, b"")


def _split(stream: bytes) -> tuple[bytes, bytes]:
    """The tables of a JPEG stream (DQT, DHT) and the stream without them."""
    tables, rest, at = [], [], 2
    while stream[at : at + 2] != SCAN:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4])
        (tables if stream[at + 1] in (0xDB, 0xC4) else rest).append(stream[at:end])
        at = end
    return START + b"".join(tables) + END, START + b"".join(rest) + stream[at:]


def _jpeg_2000(image: Image, tile: int) -> Iterator[bytes]:
    known: dict[bytes, bytes] = {}  # many tiles are alike: glass, and tissue that repeats
    for part in _tiles(image, (tile, tile)):
        pixels = part.tobytes()
        if pixels not in known:
            known[pixels] = imagecodecs.jpeg2k_encode(part, level=34, codecformat="j2k", mct=True, reversible=False)
        yield known[pixels]


def _tiles(image: Image, edges: tuple[int, int], fill: bool = True) -> Iterator[Image]:
    """Tiles row by row; those at the border are filled up with their outermost pixels."""
    height, width = image.shape[:2]
    for y in range(0, height, edges[0]):
        for x in range(0, width, edges[1]):
            part = image[y : y + edges[0], x : x + edges[1]]
            if fill and part.shape[:2] != edges:
                missing = edges[0] - part.shape[0], edges[1] - part.shape[1]
                part = np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
            yield np.ascontiguousarray(part)


def _shrunk(image: Image, width: int, height: int) -> Image:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
