"""The maker of a TIFF by its structure, and the resolution of its slide from the maker's own metadata.

Converters keep words of the scanner's file: its software, XMP or comments. A file is taken for a maker's only if it has
the maker's structure, because that maker's reader would look for it and miss the facts that every TIFF can have.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

from her2batch.slides.slide import DISAGREE
from her2batch.slides.tiff.pages import Page, SlidePages
from her2batch.slides.tiff.quantities import parse_number
from her2batch.slides.tiff.resolution import (
    Resolution,
    Statement,
    choose_resolution,
    description_objective,
    description_statements,
    iscan_statements,
    ome_statements,
    tag_statements,
)

DETECTED_PAGES = 40
"""Number of pages at the start of a file in which the structures of the makers are searched."""

TRESTLE_WORDS = ("OverlapsXY", "Background Color")
_LEICA_ROOT = re.compile(r"<scn\b[^<>]{0,1000}leica-microsystems")
_VENTANA_LEVEL = re.compile(r"level=\d+ mag=")

MAX_LEVELS = 100
"""Largest number of levels that is read from a Philips description."""


def pages_format(pages: Iterable[Any]) -> str:
    """Return the format of a file from its first pages. The maker's structure counts, not the maker's name.

    Converters keep software, XMP and comments of the scanner's file in files of another structure.
    """
    kinds = [_page_format(page) for page in pages]
    tiled = [kind for kind in kinds if kind not in ("ventana-xmp", "ventana-level", "generic-tiff")]
    if {"ventana-xmp", "ventana-level"} <= set(kinds):
        return "ventana"
    return tiled[0] if tiled else "generic-tiff"


def _page_format(page: Any) -> str:
    description, software = str(page.description or ""), str(page.software or "")
    if 65420 in page.tags and not page.is_tiled:  # NDPI stores each level as one JPEG
        return "hamamatsu"
    if description.startswith("Aperio"):
        return "aperio"
    if "DPUfsImport" in description[:2000]:
        return "philips"
    if _LEICA_ROOT.search(description[:2000]):
        return "leica"
    if _VENTANA_LEVEL.match(description[:200]):
        return "ventana-level"
    if b"<iScan" in _tag_bytes(page, 700)[:20_000]:
        return "ventana-xmp"
    if software.startswith("MedScan") and any(word in description[:5000] for word in TRESTLE_WORDS):
        return "trestle"
    return "ome-tiff" if "<OME" in description[:5000] else "generic-tiff"


def _tag_bytes(page: Any, code: int) -> bytes:
    value = page.tags.valueof(code)
    return value if isinstance(value, bytes) else str(value or "").encode("utf-8", "replace")


def slide_resolution(kind: str, start: Page, chosen: SlidePages) -> Resolution:
    """Settle the resolution of a slide from everything that its file states.

    start: the first page of the file, which often has the description of the slide, wherever its finest level is.
    """
    base = chosen.base
    page, descriptions = base.page, [base.description]
    if start is not base and any(start is level[0] for level in chosen.levels):
        descriptions.append(start.description)
    statements = _philips_statements(descriptions) if kind == "philips" else []
    ome = ome_statements(chosen.ome)
    statements += ome if chosen.ome_agrees else []
    texts = next((found for text in descriptions[:2] if (found := description_statements(text))), [])
    tags = tag_statements(page, base.description)
    xmp = _tag_bytes(page, 700)[:200_000].decode("utf-8", "replace")
    copied = [item for item in texts if item.source.startswith("properties")]
    statements += [item for item in texts if item not in copied] + tags + iscan_statements(xmp) + copied
    statements += [] if chosen.ome_agrees else ome
    magnification = chosen.ome.magnification if chosen.ome is not None else None
    objective = magnification or description_objective(*descriptions, xmp)
    resolution = choose_resolution(statements, objective)
    if ome and not chosen.ome_agrees and DISAGREE not in resolution.notes:
        resolution = resolution._replace(notes=(*resolution.notes, DISAGREE))
    return resolution


def _philips_statements(descriptions: list[str]) -> list[Statement]:
    spacings = [spacing for text in descriptions for spacing in philips_spacings(text)]
    x, y = min(spacings, default=(None, None))
    return [] if x is None or y is None else [Statement("its Philips XML states", x * 1000, y * 1000)]


def philips_spacings(description: str) -> list[tuple[float, float]]:
    """Return the pixel spacings (x, y) of all levels in mm. A Philips description lists the row spacing first."""
    spacings = []
    parts = description.split('ObjectType="PixelDataRepresentation"', MAX_LEVELS)[1:] or [description]
    for part in parts:
        spacing = re.search(r'DICOM_PIXEL_SPACING"[^>]*>\W*([\d.eE-]+)\W+([\d.eE-]+)', html.unescape(part[:20_000]))
        x, y = (parse_number(spacing[2]), parse_number(spacing[1])) if spacing else (None, None)
        if x and y and min(x, y) > 0:
            spacings.append((x, y))
    return spacings
