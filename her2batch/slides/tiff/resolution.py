"""The resolution of a TIFF slide, settled once from everything that its file states about it.

A file may state µm/px in its resolution tags, in OME-XML, in the description of its maker, and in what a converter
copied from an earlier file; an objective suggests one. These are collected as statements, and `choose_resolution`
decides between them.

Source: TIFF 6.0 (resolution tags); OME schema 2016-06; ImageJ's `TiffEncoder`, which writes px per `unit` into the
resolution tags; descriptions of Aperio, Akoya QPTIFF and Ventana; the properties that libvips writes as XML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from string import ascii_letters, digits
from typing import Any, NamedTuple

from her2batch.slides.slide import DISAGREE, MPP_RANGE
from her2batch.slides.tiff.ome_xml import OmeImage
from her2batch.slides.tiff.quantities import parse_number, um_per_unit

AXES_TOLERANCE, SOURCES_TOLERANCE = 1.1, 1.1
"""Ratio up to which the resolutions along x and y, and those of two statements, count as equal."""

MPP_TIMES_OBJECTIVE, USUAL_MPP_TIMES_OBJECTIVE = (3.3, 16.0), (6.0, 15.0)
"""Products of µm/px and objective that do not contradict each other, and those that support each other. The product is
10 on most scanners; cameras with small pixels reach 4.4."""

DESCRIPTION_BYTES = 200_000
"""Part of a description that is searched for resolutions."""

UM_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}
"""ResolutionUnit → µm. 2 and 3 are those of TIFF 6.0; some writers use 4 for mm and 5 for µm."""

_VALUE = r"""["']?\s*(?:[=:]|</name>\s*<value[^<>]{0,60}>)\s*["']?\s*(\d{0,9}[.,]?\d{1,20}(?:[eE][+-]?\d{1,3})?)"""
_MPP = re.compile(rf"(?<![A-Za-z])(?:mpp|MPP|Mpp)(?:[-_. ]?([xyXY]))?{_VALUE}")
_SUBJECT = re.compile(
    r"(?i)(?<![a-z])(label|macro|thumbnail|overview|preview|barcode|scan|slide|wsi|level\W{0,3}\d+)(?![a-z])"
)
_OTHER_SUBJECT = re.compile(r"(?i)label|macro|thumb|overview|preview|barcode|level\W*[1-9]")
"""Word before a resolution that says which image has it, and those that mean another one than the slide."""

_WORD = f"{ascii_letters}{digits}_."
"""Characters of the word that stands before a resolution, as in `openslide.mpp-x`."""

_FIELD_END = re.compile(r"[|;]|\n(?!\s)")
"""End of a field. Indented lines, as of JSON, are parts of one."""

SUBJECT_BYTES = 80
"""Part of a description before a resolution that is searched for the image that has it."""

_PIXEL_SIZE = re.compile(
    r"(?i)(?:PixelSizeMicrons|pixel[ _-]?size[ _-]?(?:um|µm|microns?)|(?:microns?|um|µm)[ _-]?per[ _-]?(?:px|pixel))"
    r"""["']?\s*[>=:]\s*["']?\s*([\d.,]{1,40})"""
)
_OBJECTIVE = re.compile(rf"(?:AppMag|[Oo]bjective[-_ ][Pp]ower){_VALUE}")
_QPI_OBJECTIVE = re.compile(r"<Objective>\s*([\d.,]{1,10})\s*[xX]")
_ISCAN = re.compile(r"<iScan\b[^<>]{0,5000}>")
_ATTRIBUTE = r"""\b{}\s*=\s*["']([^"']{{1,40}})["']"""


class Statement(NamedTuple):
    """A resolution that a file states. x, y: µm/px along each axis, None where it is not stated."""

    source: str
    x: float | None
    y: float | None

    @property
    def axes(self) -> tuple[float, float] | None:
        """Return both axes, one for the other where only one is stated; None if they are missing or implausible."""
        x, y = self.x if self.x is not None else self.y, self.y if self.y is not None else self.x
        low, high = MPP_RANGE
        return (x, y) if x is not None and y is not None and low <= min(x, y) and max(x, y) <= high else None

    @property
    def is_square(self) -> bool:
        """Return whether the axes are plausible and agree."""
        axes = self.axes
        return axes is not None and max(axes) <= AXES_TOLERANCE * min(axes)

    @property
    def mpp(self) -> float:
        """Return the mean of the axes. Only for plausible ones."""
        assert self.axes is not None
        return sum(self.axes) / 2

    def agrees(self, other: Statement) -> bool:
        """Return whether two plausible statements are equal within the tolerance."""
        return max(self.mpp, other.mpp) <= SOURCES_TOLERANCE * min(self.mpp, other.mpp)


class Resolution(NamedTuple):
    """What was chosen. x, y: µm/px.  notes: quality flags.  problem: why there is no usable resolution, or None."""

    x: float | None
    y: float | None
    objective: float | None
    notes: tuple[str, ...] = ()
    problem: str | None = None


def choose_resolution(statements: Sequence[Statement], objective: float | None) -> Resolution:
    """Choose between statements, which are ordered from the most to the least specific.

    A statement counts if both axes are plausible and agree. Of those that differ, the one with most support wins:
    other statements that agree with it, and the objective; then the more specific one. Where anything plausible
    disagrees, the result has the flag `mpp-sources-disagree`. If only unequal axes are stated, there is no resolution,
    and the objective does not replace it: no single number is right for such an image.
    """
    square = [item for item in statements if item.is_square]
    skewed = [item for item in statements if item.axes is not None and not item.is_square]
    if square:
        best = max(square, key=lambda item: _support(item, square, objective))  # the first of equals
        doubtful = bool(skewed) or not all(item.agrees(best) for item in square) or _contradicts(best, objective)
        return Resolution(best.x, best.y, objective, (DISAGREE,) if doubtful else ())
    if skewed:
        item = skewed[0]
        problem = f"{item.source} {item.x:.4g} µm/px along x and {item.y:.4g} µm/px along y, which differ"
        return Resolution(item.x, item.y, None, (), problem)
    stated = next((item for item in statements if item.x or item.y), None)
    if stated is None:
        return Resolution(None, None, objective)
    value = stated.x or stated.y or 0.0
    return Resolution(stated.x, stated.y, objective, (), f"{stated.source} {value:.4g} µm/px, which is implausible")


def _support(item: Statement, others: Iterable[Statement], objective: float | None) -> int:
    low, high = USUAL_MPP_TIMES_OBJECTIVE
    fits = objective is not None and low <= item.mpp * objective <= high
    return sum(item.agrees(other) for other in others) + fits


def _contradicts(item: Statement, objective: float | None) -> bool:
    low, high = MPP_TIMES_OBJECTIVE
    return objective is not None and objective > 0 and not low <= item.mpp * objective <= high


def ome_statements(image: OmeImage | None) -> list[Statement]:
    """Return what the OME-XML states of an image."""
    if image is None or (image.pixel_width is None and image.pixel_height is None):
        return []
    return [Statement("its OME-XML states", image.pixel_width, image.pixel_height)]


def description_statements(description: str) -> list[Statement]:
    """Return what a description states as `MPP = …`, in the manner of Aperio, which other makers use too.

    Each different value is a statement of its own. Those of a label, a macro image or a lower level are left out.
    """
    text = description[:DESCRIPTION_BYTES]
    source = "properties copied from another file state" if "</name>" in text else "its description states"
    pairs = _mpp_pairs(text)
    if not pairs and (size := _PIXEL_SIZE.search(text)):
        number = parse_number(size[1])
        pairs = [(number, number)]
    found = list[Statement]()
    for item in (Statement(source, x, y) for x, y in pairs if x is not None or y is not None):
        if not any(item == other or (item.is_square and other.is_square and item.agrees(other)) for other in found):
            found.append(item)  # one text does not support itself
    return found


def _mpp_pairs(text: str) -> list[tuple[float | None, float | None]]:
    """Return the resolutions along x and y that a text states of the slide, in their order.

    One along x and one along y belong together where the same word stands before both, as in `openslide.mpp-x`.
    """
    pairs: list[tuple[float | None, float | None]] = []
    open_axes: dict[str, tuple[int, str]] = {}  # word before the resolution → its pair, and the axis that it has
    end = 0
    for match in _MPP.finditer(text):
        before = _FIELD_END.split(text[max(end, match.start() - SUBJECT_BYTES) : match.start()])[-1]
        subjects, end = _SUBJECT.findall(before), match.end()
        if subjects and _OTHER_SUBJECT.match(subjects[-1]):
            continue
        number, axis = parse_number(match[2]), (match[1] or "").lower()
        word = before[len(before.rstrip(_WORD)) :]
        if axis and word in open_axes and open_axes[word][1] != axis:
            at, _ = open_axes.pop(word)
            x, y = pairs[at]
            pairs[at] = (number, y) if axis == "x" else (x, number)
            continue
        if axis:
            open_axes[word] = len(pairs), axis
        pairs.append((None if axis == "y" else number, None if axis == "x" else number))
    return pairs


def iscan_statements(xmp: str) -> list[Statement]:
    """Return what the XMP of a Ventana scanner states, which converters keep."""
    found = _ISCAN.search(xmp[:DESCRIPTION_BYTES])
    size = re.search(_ATTRIBUTE.format("ScanRes"), found[0]) if found else None
    number = parse_number(size[1]) if size else None
    return [] if number is None else [Statement("its XMP states", number, number)]


def tag_statements(page: Any, description: str) -> list[Statement]:
    """Return what the resolution tags of a page state: in ImageJ's unit if its description has one, and in their own.

    Both are returned where the units differ, because then at most one is plausible.
    """
    found = []
    if description.startswith("ImageJ="):
        lines = description[:DESCRIPTION_BYTES].splitlines()
        units = {key: value for key, _, value in (line.partition("=") for line in lines)}
        scales = [um_per_unit(units.get(key, units.get("unit", ""))) for key in ("unit", "yunit")]
        found.append(Statement("ImageJ's description and tags state", *_per_px(page, *scales)))
    unit = UM_PER_RESOLUTION_UNIT.get(tag_number(page, 296, 2))
    found.append(Statement("its resolution tags state", *_per_px(page, unit, unit)))
    return [item for item in found if item.x is not None or item.y is not None]


def tag_resolution(page: Any) -> tuple[float | None, float | None]:
    """Return the resolution along x and y (µm/px) from the standard TIFF tags of a page."""
    stated = tag_statements(page, "")
    return (stated[0].x, stated[0].y) if stated else (None, None)


def _per_px(page: Any, *um: float | None) -> tuple[float | None, float | None]:
    """Return the size of a px along x and y, µm. um: of the unit of each axis."""
    sizes: list[float | None] = []
    for code, scale in zip((282, 283), um, strict=True):
        value = page.tags.valueof(code)
        try:
            top, bottom = value if isinstance(value, tuple) else (value, 1)
            sizes.append(scale * bottom / top if scale is not None and top and bottom else None)
        except (TypeError, ValueError):
            sizes.append(None)
    return sizes[0], sizes[1]


def tag_number(page: Any, code: int, default: int) -> int:
    """Return the value of a tag that has one number, or the default."""
    value = page.tags.valueof(code, default)
    try:
        return int(value)
    except (TypeError, ValueError):
        return default


def description_objective(*texts: str) -> float | None:
    """Return the objective that one of several texts states: descriptions, XMP."""
    for text in texts:
        part = text[:DESCRIPTION_BYTES]
        scan = _ISCAN.search(part)
        found = _OBJECTIVE.search(part) or _QPI_OBJECTIVE.search(part)
        found = found or (re.search(_ATTRIBUTE.format("Magnification"), scan[0]) if scan else None)
        number = parse_number(found[1]) if found else None
        if number is not None and number > 0:
            return number
    return None
