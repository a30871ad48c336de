"""Write synthetic slides as Aperio's scanners do: a JPEG pyramid with thumbnail, label and macro in one TIFF."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from her2batch.synthetic.laboratory import Subsampling
from her2batch.synthetic.specimen import SlideTruth

Image = NDArray[np.uint8]

TILE = 256

MIN_LEVEL_PX = 512
"""Least width and height of the pyramid's levels, except the first."""


def write_svs(path: Path, image: Image, truth: SlideTruth, quality: int = 85, subsampling: Subsampling = "420") -> None:
    """Write a pyramid in Aperio's layout: level 0, thumbnail, other levels (each half the previous), label, macro.

    quality, subsampling: of the JPEG of all levels.
    """
    levels = [image]
    while min(levels[-1].shape[:2]) >= 2 * MIN_LEVEL_PX:
        levels.append(_halve(levels[-1]))
    thumbnail = _resize_longest_side(levels[-1], 768)
    label = draw_label(truth)
    software = "Aperio Image Library v12.0.0 \r\n"
    size = f"{truth.width}x{truth.height}"
    facts = {"AppMag": f"{10 / truth.mpp:g}", "MPP": f"{truth.mpp:.4f}", "Date": "03/14/23", "Time": "09:26:53",
             "ScanScope ID": "SYNTHETIC", "Filename": truth.slide_id, "Title": truth.patient_name}  # fmt: skip
    tail = "|".join(["", *(f"{key} = {value}" for key, value in facts.items())])
    words = f"{software}{size} [0,0 {size}] ({TILE}x{TILE}) JPEG/YCC Q={quality}{tail}"
    with tifffile.TiffWriter(path, bigtiff=False) as tiff:
        _write_jpeg(tiff, image, TILE, quality, subsampling, description=words)
        _write_jpeg(
            tiff, thumbnail, None, 85, "420", description=f"{software}{size} -> {_size_text(thumbnail)} - {tail}"
        )
        for level in levels[1:]:
            _write_jpeg(tiff, level, TILE, quality, subsampling, description=f"{words} -> {_size_text(level)}")
        plain = {"photometric": "rgb", "compression": "lzw", "rowsperstrip": label.shape[0], "metadata": None}
        words = f"{software}label {_size_text(label)}"
        tiff.write(label, subfiletype=1, description=words, software=False, **plain)
        macro = draw_macro(thumbnail, label)
        _write_jpeg(tiff, macro, None, 85, "420", subfiletype=9, description=f"{software}macro {_size_text(macro)}")


SAMPLING_TAGS: dict[Subsampling, tuple[int, int]] = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}
"""TIFF's YCbCrSubSampling of each subsampling."""


def _write_jpeg(
    tiff: tifffile.TiffWriter, image: Image, tile: int | None, quality: int, subsampling: Subsampling, **tags: Any
) -> None:
    """Write a page of JPEG: a level in tiles, another image in one strip, by which readers distinguish them."""
    edges = (tile, tile) if tile else image.shape[:2]
    cut = {"tile": edges} if tile else {"rowsperstrip": edges[0]}
    tiff.write(
        encode_jpeg_tiles(image, edges, quality, subsampling), shape=image.shape, dtype=np.uint8, photometric="ycbcr",
        compression="jpeg", subsampling=SAMPLING_TAGS[subsampling], metadata=None, software=False, **cut, **tags,
    )  # fmt: skip


def encode_jpeg_tiles(
    image: Image, edges: tuple[int, int], quality: int, subsampling: Subsampling = "420"
) -> Iterator[bytes]:
    """Yield tiles of edges (height, width) as JPEG, row by row; incomplete tiles are padded with their outermost px."""
    height, width = image.shape[:2]
    for y in range(0, height, edges[0]):
        for x in range(0, width, edges[1]):
            tile = image[y : y + edges[0], x : x + edges[1]]
            if tile.shape[:2] != edges:
                tile = np.pad(tile, ((0, edges[0] - tile.shape[0]), (0, edges[1] - tile.shape[1]), (0, 0)), mode="edge")
            yield simplejpeg.encode_jpeg(np.ascontiguousarray(tile), quality, "RGB", subsampling)


def _halve(image: Image) -> Image:
    """Return the image at half its size, without an odd last row or column."""
    h, w = image.shape[0] // 2, image.shape[1] // 2
    return np.asarray(cv2.resize(image[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA), np.uint8)


def _resize_longest_side(image: Image, longest: int) -> Image:
    """Return the image with its longer side scaled to `longest` px."""
    scale = longest / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _size_text(image: Image) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def draw_label(truth: SlideTruth) -> Image:
    """Draw the paper label of the slide, with the patient's invented name: (320, 360, 3) uint8."""
    image = np.full((320, 360, 3), (250, 247, 235), np.uint8)
    lines = (
        truth.patient_name,
        f"ID {truth.patient_id}",
        truth.slide_id,
        truth.stain.upper(),
        "14.03.2023",
        "SYNTHETIC",
    )
    for k, line in enumerate(lines):
        cv2.putText(image, line, (14, 50 + 48 * k), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (20, 20, 30), 2, cv2.LINE_AA)
    return image


def draw_macro(thumbnail: Image, label: Image) -> Image:
    """Draw the whole slide with its label, as a scanner's overview camera records it: (400, 1200, 3) uint8."""
    image = np.full((400, 1200, 3), 232, np.uint8)
    image[40 : 40 + label.shape[0], 20 : 20 + label.shape[1]] = label
    small = _resize_longest_side(thumbnail, 300)
    y, x = (400 - small.shape[0]) // 2, 600
    image[y : y + small.shape[0], x : x + small.shape[1]] = small
    return image
