"""Minimal NDPI files, with the structure that readers need.

Each level is a page with one strip: a JPEG with restart markers. Tag 65426 lists the offsets of the runs between them.
Source: documentation and source code of OpenSlide (hamamatsu); no file from a scanner was available.
"""

import struct
from pathlib import Path

import cv2
import numpy as np

RUN = 32
"""Number of MCUs between restart markers. MCUs are 8 px wide, so runs have 256 × 8 px."""

SHORT, LONG, ASCII, RATIONAL, FLOAT, SIGNED = 3, 4, 2, 5, 11, 9
FORMAT_FLAG, SOURCE_LENS, X_OFFSET, Y_OFFSET, FOCAL_PLANE, MCU_STARTS, REFERENCE = (
    65420, 65421, 65422, 65423, 65424, 65426, 65427,
)  # fmt: skip
STRIP, MCU_STARTS_HIGH = 273, 65432
MACRO = -1.0


def write_ndpi(
    path: Path, rgb: np.ndarray, mpp: float | None, levels: int = 2, objective: float = 40.0, sampling: str = "444",
    runs: int = 9, start: int = 0,
) -> Path:  # fmt: skip
    """Write an image (H, W, 3) uint8 as NDPI; each level is a quarter as wide as the one before.

    The width must be a multiple of the width of a run · 4^(levels - 1).  runs: number of levels with restart markers.
    start: offset of the first image in the file.
    """
    pages = []
    for k in range(levels):
        small = cv2.resize(rgb, None, fx=0.25**k, fy=0.25**k, interpolation=cv2.INTER_AREA) if k else rgb
        pages.append((small, objective, None if mpp is None else mpp * 4**k, k < runs))
    pages.append((rgb[:64, :256], MACRO, None, False))
    with path.open("wb") as file:
        file.write(b"II*\0" + bytes(8))  # NDPI: 64-bit offset of the first directory
        pointer = 4
        file.seek(max(start, 12))
        for image, lens, its_mpp, restarts in pages:
            pointer = _write_page(file, image, lens, its_mpp, pointer, (sampling, restarts))
    return path


def _write_page(file, image: np.ndarray, lens: float, mpp: float | None, pointer: int, how: tuple[str, bool]) -> int:
    """Append an image and its directory; return the position for the offset of the next directory."""
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{how[0]}")
    quality = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
    restart = [cv2.IMWRITE_JPEG_RST_INTERVAL, RUN] if how[1] else []
    stream = cv2.imencode(".jpg", image[..., ::-1], [*quality, *restart])[1].tobytes()
    start = file.tell()
    file.write(stream)
    entries = [
        (256, LONG, [image.shape[1]]), (257, LONG, [image.shape[0]]), (258, SHORT, [8, 8, 8]), (259, SHORT, [7]),
        (262, SHORT, [6]), (271, ASCII, b"Hamamatsu\0"), (272, ASCII, b"NanoZoomer\0"),
        (STRIP, LONG, [start & 0xFFFFFFFF]),
        (277, SHORT, [3]), (278, LONG, [image.shape[0]]), (279, LONG, [len(stream)]),
        (FORMAT_FLAG, LONG, [1]), (SOURCE_LENS, FLOAT, [lens]), (X_OFFSET, SIGNED, [0]), (Y_OFFSET, SIGNED, [0]),
        (FOCAL_PLANE, SIGNED, [0]), (REFERENCE, ASCII, b"Jane Doe\0"),
    ]  # fmt: skip
    if mpp is not None:
        per_cm = [round(1e4 / mpp * 1000), 1000]
        entries += [(282, RATIONAL, per_cm), (283, RATIONAL, per_cm), (296, SHORT, [3])]
    if restart:
        entries.append((MCU_STARTS, LONG, _run_offsets(stream)))
    if restart and start >> 32:
        entries.append((MCU_STARTS_HIGH, LONG, [0] * len(_run_offsets(stream))))
    values = [(tag, kind, *_pack_values(kind, value)) for tag, kind, value in sorted(entries)]
    wheres = []
    for _, _, _, data in values:
        wheres.append(file.tell())
        if len(data) > 4:
            file.write(data)
    directory = file.tell()
    file.write(struct.pack("<H", len(values)))
    for (tag, kind, count, data), where in zip(values, wheres, strict=True):
        inline = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", where & 0xFFFFFFFF)
        file.write(struct.pack("<HHI4s", tag, kind, count, inline))
    after = file.tell()
    file.write(bytes(8))  # offset of the next directory, 64 bits
    for (tag, _, _, data), where in zip(values, wheres, strict=True):  # the high words of the values
        file.write(struct.pack("<I", (start if tag == STRIP else where if len(data) > 4 else 0) >> 32))
    file.seek(pointer)
    file.write(struct.pack("<Q", directory))
    file.seek(0, 2)
    return after


def _pack_values(kind: int, value) -> tuple[int, bytes]:
    if kind == ASCII:
        return len(value), value
    if kind == RATIONAL:
        return len(value) // 2, struct.pack(f"<{len(value)}I", *value)
    return len(value), struct.pack(f"<{len(value)}{ {SHORT: 'H', LONG: 'I', FLOAT: 'f', SIGNED: 'i'}[kind] }", *value)


def _run_offsets(stream: bytes) -> list[int]:
    """Return the offsets of the entropy-coded runs: after the scan header, and after each restart marker."""
    scan = stream.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(stream[scan + 2 : scan + 4])
    data = np.frombuffer(stream, np.uint8)
    marks = np.flatnonzero((data[:-1] == 0xFF) & (data[1:] & 0xF8 == 0xD0))
    return [first, *(int(mark) + 2 for mark in marks[marks >= first])]
