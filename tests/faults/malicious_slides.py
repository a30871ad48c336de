"""Malicious slides, each made in a few lines."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence

import imagecodecs
import numpy as np
import simplejpeg
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from her2batch.slides.dicom.instances import WHOLE_SLIDE_SOP_CLASS

Entry = tuple[int, int, list[int] | bytes]
"""Tag, type, values (type 2 and 7: bytes)."""

SHORT, LONG, ASCII, RAW, LONG8 = 3, 4, 2, 7, 16
CODES = {SHORT: "H", LONG: "I", LONG8: "Q", 13: "I", 18: "Q"}


def big_tiff(pages: Sequence[Sequence[Entry]], body: bytes = b"", loop: int | None = None) -> bytes:
    """Return a BigTIFF of the given directories, however absurd. body: bytes from offset 16 on, where tiles may be.

    loop: the last directory is followed by the one of this number, and so on for ever.
    """
    out = bytearray(b"II+\0\x08\0\0\0" + bytes(8) + body)
    pointer, starts = 8, []
    for entries in pages:
        packed = []
        for tag, kind, values in sorted(entries, key=lambda one: one[0]):
            data = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{CODES[kind]}", *values)
            if len(data) > 8:
                where = len(out)
                out += data
                data = struct.pack("<Q", where)
            packed.append(struct.pack("<HHQ", tag, kind, len(values)) + data.ljust(8, b"\0"))
        starts.append(len(out))
        struct.pack_into("<Q", out, pointer, starts[-1])
        out += struct.pack("<Q", len(packed)) + b"".join(packed)
        pointer = len(out)
        out += bytes(8)
    if loop is not None:
        struct.pack_into("<Q", out, pointer, starts[loop])
    return bytes(out)


def image_entries(
    width: int, height: int, tile: int, offsets: list[int], counts: list[int], compression: int = 7, **more: Entry
) -> list[Entry]:
    """Return the directory of an RGB image. more: further entries, or replacements of the same tag."""
    usual: list[Entry] = [
        (256, LONG8, [width]), (257, LONG8, [height]), (258, SHORT, [8, 8, 8]), (259, SHORT, [compression]),
        (262, SHORT, [2]), (277, SHORT, [3]), (284, SHORT, [1]), (322, LONG, [tile]), (323, LONG, [tile]),
        (324, LONG8, offsets), (325, LONG8, counts),
    ]  # fmt: skip
    own = {one[0] for one in more.values()}
    return [one for one in usual if one[0] not in own] + list(more.values())


TILE = simplejpeg.encode_jpeg(np.full((256, 256, 3), 200, np.uint8), 80, "RGB", "420")
FIRST = 16
"""Offset of the body of a BigTIFF."""

BOMB = b"".join(
    [
        b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a0 "lol">',
        *(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">'.encode() for k in range(1, 12)),
        b"]><",
    ]
)
"""A document type in which the entity &a11; expands to a hundred billion times 'lol'."""


def one_tile(**more: tuple) -> list:
    return image_entries(256, 256, 256, [FIRST], [len(TILE)], **more)


def share_value(data: bytes, tag: int, kind: int, mark: bytes, value: bytes) -> bytes:
    """Let all entries with the 8 bytes `mark` as their value point to one value of any size, behind the file."""
    entry = struct.pack("<HHQ", tag, kind, 8) + mark
    count = len(value) // {ASCII: 1, LONG8: 8}[kind]
    return data.replace(entry, struct.pack("<HHQQ", tag, kind, count, len(data))) + value


def web_of_subifds(count: int) -> bytes:
    """Return a BigTIFF each of whose directories lists all the others as its SubIFDs."""
    mark = struct.pack("<Q", 2**63 + 7)
    data = big_tiff([one_tile(s=(330, LONG8, [2**63 + 7]))] * count, TILE)
    first = struct.unpack_from("<Q", data, 8)[0]
    entries = struct.unpack_from("<Q", data, first)[0]
    second = struct.unpack_from("<Q", data, first + 8 + 20 * entries)[0]
    starts = [first + (second - first) * k for k in range(1, count)]
    data = data.replace(struct.pack("<HHQ", 330, LONG8, 1) + mark, struct.pack("<HHQ", 330, LONG8, 8) + mark)
    return share_value(data, 330, LONG8, mark, struct.pack(f"<{len(starts)}Q", *starts))


def tiny_tiles(**more: tuple) -> list:
    """Return the directory of an image with a million tiles of one byte each."""
    return image_entries(16_000, 16_000, 16, [FIRST] * 10**6, [1] * 10**6, **more)


def with_description(text: bytes, **more: tuple) -> bytes:
    return big_tiff([one_tile(d=(270, ASCII, text + b"\0"), **more)], TILE)


def with_compressed_tile(data: bytes, compression: int, edge: int = 256) -> bytes:
    return big_tiff([image_entries(edge, edge, edge, [FIRST], [len(data)], compression)], data)


def deflate_zeros(zeros: int) -> bytes:
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(zeros >> 20)]
    return b"".join([*parts, packer.flush()])


def jpeg_claiming_size(width: int, height: int) -> bytes:
    """Return a JPEG whose header claims another size."""
    at = TILE.index(b"\xff\xc0")
    return TILE[: at + 5] + struct.pack(">HH", height, width) + TILE[at + 9 :]


def jpeg_2000_claiming_size(width: int, height: int) -> bytes:
    data = bytearray(imagecodecs.jpeg2k_encode(np.full((256, 256, 3), 200, np.uint8), codecformat="j2k"))
    at = data.index(b"\xff\x51")
    struct.pack_into(">II", data, at + 6, width, height)
    struct.pack_into(">II", data, at + 22, width, height)  # one tile of that size
    return bytes(data)


def dicom_dataset(syntax: str = ExplicitVRLittleEndian, **more: object) -> Dataset:
    facts = FileMetaDataset()
    facts.TransferSyntaxUID = syntax
    facts.MediaStorageSOPClassUID, facts.MediaStorageSOPInstanceUID = WHOLE_SLIDE_SOP_CLASS, "1.2.3"
    dataset = Dataset()
    dataset.file_meta, dataset.SOPClassUID, dataset.SeriesInstanceUID = facts, WHOLE_SLIDE_SOP_CLASS, "1.2"
    for name, value in more.items():
        setattr(dataset, name, value)
    return dataset


def dicom_bytes(dataset: Dataset) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def nested_dicom(depth: int) -> bytes:
    """Return a DICOM file of sequences nested `depth` times."""
    whole = dicom_bytes(dicom_dataset())
    open_one = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    return whole[: whole.index(b"\x08\0\x16\0UI")] + open_one * depth


def many_elements(count: int) -> bytes:
    """Return a DICOM file whose series comes after `count` small elements."""
    whole = dicom_bytes(dicom_dataset())
    at = whole.index(b"\x20\0\x0e\0UI")
    small = struct.pack("<HH2sH", 0x0009, 0x1001, b"LO", 2) + b"ab"
    return whole[:at] + small * count + whole[at:]


def deflated_dicom(size: int) -> bytes:
    whole = dicom_bytes(dicom_dataset(DeflatedExplicitVRLittleEndian))
    head = whole[: 132 + 12 + int.from_bytes(whole[140:144], "little")]
    packer = zlib.compressobj(9, wbits=-15)
    element = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, size)
    parts = [packer.compress(element), *(packer.compress(bytes(1 << 20)) for _ in range(size >> 20))]
    return b"".join([head, *parts, packer.flush()])


HUGE = 2**32
MALICIOUS_SLIDES: dict[str, Callable[[], bytes]] = {
    "zero-byte.svs": lambda: b"",
    "header-only.tiff": lambda: b"II*\0\x08\0\0\0",
    "one-tile-of-a-huge-image.tiff": lambda: big_tiff([image_entries(HUGE, HUGE, 256, [FIRST], [len(TILE)])], TILE),
    "huge-tile.tiff": lambda: big_tiff([image_entries(HUGE, HUGE, HUGE - 16, [FIRST] * 4, [len(TILE)] * 4)], TILE),
    "huge-strip.tiff": lambda: big_tiff([_stripped(HUGE, HUGE)], TILE),
    "wide-strip.tiff": lambda: big_tiff([_stripped(2**31, 1)], TILE),
    "zero-tile.tiff": lambda: big_tiff([image_entries(256, 256, 0, [FIRST], [len(TILE)])], TILE),
    "zero-size.tiff": lambda: big_tiff([image_entries(0, 0, 256, [FIRST], [len(TILE)])], TILE),
    "loop-of-one.tiff": lambda: big_tiff([one_tile()], TILE, loop=0),
    "loop-of-three.svs": lambda: big_tiff([one_tile()] * 3, TILE, loop=0),
    "loop-below.tiff": lambda: big_tiff([one_tile(s=(330, LONG8, [FIRST + len(TILE)]))], TILE),
    "many-directories.tiff": lambda: big_tiff([one_tile()] * 20_000, TILE),
    "shared-description.tiff": lambda: share_value(
        big_tiff([one_tile(d=(270, ASCII, b"shared!\0"))] * 5_000, TILE), 270, ASCII, b"shared!\0", b"<OME>" * 6_000_000
    ),
    "web-of-subdirectories.tiff": lambda: web_of_subifds(4_000),
    "million-of-one-byte.tiff": lambda: big_tiff([tiny_tiles()], TILE),
    "million-of-one-byte.svs": lambda: big_tiff(
        [tiny_tiles(d=(270, ASCII, b"Aperio |MPP = 0.5\0"))], TILE
    ),
    "negative-offset.tiff": lambda: big_tiff([image_entries(256, 256, 256, [2**64 - 8], [len(TILE)])], TILE),
    "offset-behind-all.tiff": lambda: big_tiff([image_entries(256, 256, 256, [2**62], [len(TILE)])], TILE),
    "offset-and-count-wrap.tiff": lambda: big_tiff([image_entries(256, 256, 256, [2**63 - 10], [2**63 - 1])], TILE),
    "huge-count.tiff": lambda: big_tiff([image_entries(256, 256, 256, [FIRST], [2**40])], TILE),
    "subdirectory-nowhere.tiff": lambda: big_tiff([one_tile(s=(330, LONG8, [2**64 - 1]))], TILE),
    "xml-bomb.ome.tiff": lambda: with_description(BOMB + b"OME>&a11;</OME>"),
    "xml-bomb-philips.tiff": lambda: with_description(
        BOMB + b"DPUfsImport>&a11;</DPUfsImport>", s=(305, ASCII, b"Philips\0")
    ),
    "xml-bomb-leica.scn": lambda: with_description(
        BOMB + b'scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">&a11;</scn>'
    ),
    "xml-bomb.bif": lambda: big_tiff([one_tile(x=(700, RAW, BOMB + b"iScan>&a11;</iScan>"))], TILE),
    "description-of-40-MB.svs": lambda: with_description(b"Aperio " + b"|MPP = " * 6_000_000),
    "jpeg-tables-of-1-MB.tiff": lambda: big_tiff([one_tile(t=(347, RAW, TILE + bytes(1 << 20) + TILE))], TILE),
    "philips-without-end.tiff": lambda: with_description(
        b"<DPUfsImport " + b'ObjectType="PixelDataRepresentation" DICOM_PIXEL_SPACING">' * 300_000,
        s=(305, ASCII, b"Philips\0"),
    ),
    "philips-of-spaces.tiff": lambda: with_description(
        b"<DPUfsImport " + (b'ObjectType="PixelDataRepresentation" DICOM_PIXEL_SPACING">' + b" " * 19_000) * 500,
        s=(305, ASCII, b"Philips\0"),
    ),
    "deflate-bomb.tiff": lambda: with_compressed_tile(deflate_zeros(200 << 20), 8),
    "lzw-bomb.tiff": lambda: with_compressed_tile(bytes(imagecodecs.lzw_encode(bytes(1 << 26))), 5),
    "lzma-bomb.tiff": lambda: with_compressed_tile(bytes(imagecodecs.lzma_encode(bytes(1 << 26), level=0)), 34925),
    "zstd-bomb.tiff": lambda: with_compressed_tile(bytes(imagecodecs.zstd_encode(bytes(1 << 28))), 50000),
    "jpeg-claims-more.tiff": lambda: with_compressed_tile(jpeg_claiming_size(65_500, 65_500), 7),
    "jpeg-huge-frame.tiff": lambda: with_compressed_tile(jpeg_claiming_size(9_984, 9_984), 7, 9_984),
    "jpeg-2000-claims-more.tiff": lambda: with_compressed_tile(jpeg_2000_claiming_size(60_000, 60_000), 34712),
    "jpeg-2000-huge-tile.tiff": lambda: with_compressed_tile(jpeg_2000_claiming_size(9_984, 9_984), 34712, 9_984),
    "nested.dcm": lambda: nested_dicom(100_000),
    "many-elements.dcm": lambda: many_elements(1_000_000),
    "deflate-bomb.dcm": lambda: deflated_dicom(1 << 28),
    "huge-frames.dcm": lambda: dicom_bytes(
        dicom_dataset(NumberOfFrames=2**31 - 1, Rows=65535, Columns=65535, TotalPixelMatrixColumns=2**32 - 1,
              TotalPixelMatrixRows=2**32 - 1)
    ),
    "huge.mrxs": lambda: b"",
    "endless.vms": lambda: b"[Virtual Microscope Specimen]\nNoJpegColumns=99999999\nNoJpegRows=99999999\n",
}  # fmt: skip
"""File name → function that returns its bytes."""


def _stripped(width: int, height: int) -> list:
    entries = image_entries(width, height, 256, [FIRST], [len(TILE)], r=(278, LONG, [2**32 - 1]))
    offsets = [(273, LONG8, [FIRST]), (279, LONG8, [len(TILE)])]
    return [one for one in entries if one[0] not in (322, 323, 324, 325)] + offsets
