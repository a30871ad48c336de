"""Pictures of a printed page: the pixels of its PDF."""

import subprocess
from pathlib import Path

import numpy as np
import pypdfium2
from numpy.typing import NDArray
from pypdfium2 import raw

SCALE = 1.0
"""Rendered px per point."""


def print_page(chromium: str, address: str, out: Path) -> Path:
    """Print a page as a laboratory's scheduler does: without a screen, and without waiting for anything."""
    command = [chromium, "--headless", "--no-sandbox", "--no-pdf-header-footer", f"--print-to-pdf={out}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return out


def shown_pictures(pdf: Path) -> list[NDArray[np.uint8]]:
    """Return the rendered pixels of every picture of a PDF, (h, w, 3) uint8 each, as a reader sees them."""
    pictures = []
    with pypdfium2.PdfDocument(pdf) as document:
        for page in document:
            image = page.render(scale=SCALE).to_numpy()[..., :3]
            height = page.get_height()
            for item in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]):
                left, bottom, right, top = (value * SCALE for value in item.get_bounds())
                part = image[round(height * SCALE - top) : round(height * SCALE - bottom), round(left) : round(right)]
                if part.size:
                    pictures.append(part)
    return pictures


def is_blank(pixels: NDArray[np.uint8]) -> bool:
    """Return whether a picture shows nothing: tissue spans more than a few grey values."""
    return int(pixels.max()) - int(pixels.min()) < 12
