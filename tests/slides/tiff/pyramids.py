"""Small TIFF pyramids in all the shapes that writers give them."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from her2batch.slides.slide import Box
from her2batch.slides.tiff_slide import TiledTiffSlide

OME = {
    "axes": "YXS",
    "PhysicalSizeX": 0.25,
    "PhysicalSizeXUnit": "µm",
    "PhysicalSizeY": 0.25,
    "PhysicalSizeYUnit": "µm",
}


@lru_cache(maxsize=40)
def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a picture with detail at every scale that repeats nowhere, pale at its rim: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    whole = np.zeros((height, width, 3), np.float32)
    for cells in (5, 17, 67):
        coarse = rng.random((cells, cells, 3), np.float32)
        whole += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    whole = np.clip(250 - 55 * whole, 20, 250)
    whole[: height // 20] = whole[:, : width // 20] = 243
    pixels = whole.astype(np.uint8)
    pixels.setflags(write=False)  # it is kept for the next test
    return pixels


def halved(image: np.ndarray, times: int = 1) -> np.ndarray:
    """Return an image of half the size, `times` times; an odd last row or column is dropped."""
    for _ in range(times):
        height, width = image.shape[0] // 2, image.shape[1] // 2
        image = cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    return image


def levels(image: np.ndarray, count: int = 3) -> list[np.ndarray]:
    """Return an image and its halved versions, finest first."""
    return [halved(image, k) for k in range(count)]


def padded(image: np.ndarray, tile: int, value: int = 255) -> np.ndarray:
    """Return an image filled up to whole tiles."""
    height, width = (-(-size // tile) * tile for size in image.shape[:2])
    out = np.full((height, width, 3), value, np.uint8)
    out[: image.shape[0], : image.shape[1]] = image
    return out


def write_pages(path: Path, pages: Sequence[tuple[np.ndarray, dict[str, Any]]], **writer: Any) -> Path:
    """Write pages one after the other: pairs of an image and what tifffile's `write` is told besides the usual."""
    with tifffile.TiffWriter(path, **writer) as file:
        for image, more in pages:
            file.write(image, **{"tile": (128, 128), "photometric": "rgb", "metadata": None, **more})
    return path


def write_subifds(path: Path, images: Sequence[np.ndarray], writer: dict[str, Any], **more: Any) -> Path:
    """Write a pyramid whose coarser levels are SubIFDs of the finest, each chained to the next."""
    with tifffile.TiffWriter(path, **writer) as file:
        usual = {"tile": (128, 128), "photometric": "rgb", **more}
        metadata = usual.pop("metadata", None)
        file.write(images[0], subifds=len(images) - 1, metadata=metadata, **usual)
        for image in images[1:]:
            file.write(image, subfiletype=1, **usual)
    return path


def read_levels(path: Path) -> list[np.ndarray]:
    """Return the pixels of every level of a slide, after its validation."""
    with TiledTiffSlide(path) as slide:
        slide.validate()
        return [slide.read(Box(0, 0, size.width, size.height), k) for k, size in enumerate(slide.info.levels)]


def ome_xml(*images: tuple[str, tuple[int, int], float | None, int | None], unit: str = "µm") -> str:
    """Return an OME-XML of images: (name, (width, height), µm/px or None, number of its page or None)."""
    parts = []
    for k, (name, (width, height), mpp, page) in enumerate(images):
        sizes = "" if mpp is None else f'PhysicalSizeX="{mpp}" PhysicalSizeXUnit="{unit}" PhysicalSizeY="{mpp}" '
        sizes += "" if mpp is None else f'PhysicalSizeYUnit="{unit}" '
        data = "<TiffData/>" if page is None else f'<TiffData IFD="{page}" PlaneCount="1"/>'
        parts.append(
            f'<Image ID="Image:{k}" Name="{name}"><Pixels ID="Pixels:{k}" DimensionOrder="XYCZT" Type="uint8" '
            f'SizeX="{width}" SizeY="{height}" SizeC="3" SizeZ="1" SizeT="1" {sizes}>'
            f'<Channel ID="Channel:{k}:0" SamplesPerPixel="3"/>{data}</Pixels></Image>'
        )
    head = '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    return f"{head}{''.join(parts)}</OME>"
