"""OME-XML of a TIFF: its images, and the one that describes given pages of the file.

An OME-XML may list label and macro images beside the slide, in any order. Only the image whose TiffData and size are
those of the pages that are read says something about them.

Source: OME schema 2016-06 (Image, Pixels, TiffData, Channel, Instrument) and its OME-TIFF specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.parsers import expat

from her2batch.slides.tiff.quantities import length_in_um, parse_number

MAX_IMAGES, MAX_PLANES = 1_000, 2_000
"""Largest numbers of images in an OME-XML, and of planes of one image, that are read."""

COLOUR_NAMES = (("red", "r"), ("green", "g"), ("blue", "b"))
"""Names of the channels red, green and blue. Their display colours say nothing: fluorescence is shown in the same."""

ASSOCIATED_NAME = re.compile(r"(?i)\b(label|macro|thumbnail|overview|barcode|map)\b")
"""Words in the name of an image that is not the slide."""


@dataclass
class OmeImage:
    """An image of an OME-XML. Sizes in px; pixel sizes in µm, None where they are not stated in a unit of length."""

    name: str = ""
    width: int | None = None
    height: int | None = None
    pixel_width: float | None = None
    pixel_height: float | None = None
    planes: list[tuple[int, int]] = field(default_factory=list)  # (first channel, number of the TIFF page)
    lists_pages: bool = False  # its TiffData name pages of this file
    channel_names: list[str] = field(default_factory=list)
    objective: str | None = None  # identifier of its objective
    magnification: float | None = None

    @property
    def is_associated(self) -> bool:
        """Return whether the image is named like a label, macro image or thumbnail."""
        return ASSOCIATED_NAME.search(self.name) is not None

    def has_size(self, width: int, height: int, slack: tuple[int, int] = (1, 1)) -> bool:
        """Return whether the image has this size, px, or is smaller by less than `slack` along each axis."""
        pairs = zip((width, height), (self.width, self.height), slack, strict=True)
        return all(own is not None and 0 <= size - own < less for size, own, less in pairs)

    def has_page(self, number: int | None) -> bool:
        """Return whether the image's TiffData name the page with this number in the file."""
        return number is not None and any(page == number for _, page in self.planes)

    def rgb_pages(self) -> tuple[int, int, int] | None:
        """Return the pages of the channels red, green and blue; None if it has no such channels of one sample each."""
        pages = dict(self.planes)
        found = []
        for names in COLOUR_NAMES:
            channels = [k for k, name in enumerate(self.channel_names) if name.strip().lower() in names]
            if len(channels) != 1 or channels[0] not in pages:
                return None
            found.append(pages[channels[0]])
        return (found[0], found[1], found[2]) if len(set(found)) == 3 else None


def parse_ome_xml(text: str) -> list[OmeImage]:
    """Return the images of an OME-XML; an empty list for other text, damaged XML, or XML with a document type."""
    start = text.find("<")
    if start < 0 or ("<OME" not in text[:5000] and ":OME" not in text[:5000]):
        return []
    reader = _OmeReader()
    parser = expat.ParserCreate("utf-8")  # whatever the declaration says: the text was decoded before
    parser.StartElementHandler = reader.start
    parser.StartDoctypeDeclHandler = _refuse_document_type
    try:
        parser.Parse(text[start:].rstrip("\0").encode("utf-8", "replace"), True)
    except (expat.ExpatError, ValueError):
        if not reader.images:
            return []
    return reader.finish()


def _refuse_document_type(*_: object) -> None:
    raise ValueError("OME-XML has no document type; its entities would be expanded")


class _OmeReader:
    """Collects the images of an OME-XML while it is parsed, so that no tree of a large document is built."""

    def __init__(self) -> None:
        self.images: list[OmeImage] = []
        self._magnifications: dict[str, float | None] = {}
        self._unnumbered: list[OmeImage] = []  # images with a TiffData that states no page

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = tag.rpartition(":")[2]
        if name == "Image" and len(self.images) < MAX_IMAGES:
            self.images.append(OmeImage(attributes.get("Name", "")))
        elif name == "Objective":
            nominal = attributes.get("NominalMagnification") or attributes.get("CalibratedMagnification")
            self._magnifications[attributes.get("ID", "")] = parse_number(nominal)
        elif self.images and name in _READERS:
            _READERS[name](self.images[-1], attributes)

    def finish(self) -> list[OmeImage]:
        """Return the images with their objectives. An objective that is the only one belongs to all."""
        only = next(iter(self._magnifications.values())) if len(self._magnifications) == 1 else None
        for image in self.images:
            image.magnification = self._magnifications.get(image.objective or "", only)
            if not image.planes and len(self.images) == 1:  # TiffData without numbers: the pages from the first on
                image.planes = [(channel, channel) for channel in range(max(1, len(image.channel_names)))]
        return self.images


def _read_pixels(image: OmeImage, attributes: Mapping[str, str]) -> None:
    image.width, image.height = (_parse_int(attributes.get(f"Size{axis}")) for axis in "XY")
    image.pixel_width, image.pixel_height = (
        length_in_um(attributes.get(f"PhysicalSize{axis}"), attributes.get(f"PhysicalSize{axis}Unit", "µm"))
        for axis in "XY"
    )


def _read_tiff_data(image: OmeImage, attributes: Mapping[str, str]) -> None:
    page = _parse_int(attributes.get("IFD"))
    if page is None:
        return
    image.lists_pages = True
    channel = _parse_int(attributes.get("FirstC")) or 0
    count = _parse_int(attributes.get("PlaneCount"))
    for step in range(min(1 if count is None else count, MAX_PLANES - len(image.planes))):
        image.planes.append((channel + step, page + step))


def _read_channel(image: OmeImage, attributes: Mapping[str, str]) -> None:
    if len(image.channel_names) < MAX_PLANES:
        image.channel_names.append(attributes.get("Name", ""))


def _read_objective(image: OmeImage, attributes: Mapping[str, str]) -> None:
    image.objective = attributes.get("ID")


_READERS = {
    "Pixels": _read_pixels,
    "TiffData": _read_tiff_data,
    "Channel": _read_channel,
    "ObjectiveSettings": _read_objective,
    "ObjectiveRef": _read_objective,
}


def find_image(
    images: Sequence[OmeImage], page: int | None, width: int, height: int, tile: tuple[int, int] = (1, 1)
) -> tuple[OmeImage | None, bool]:
    """Return the image that describes a page, and whether the evidence for it agrees.

    page: number of the page in the file.  tile: px, to which the page may be padded.  An image with the page and its
    size is certain. Else the size decides, if one image has it: some writers number the pages of their XML before they
    write others in front of them. Else the page decides, and the size disagrees.
    """
    of_page = [image for image in images if image.has_page(page)]
    of_size = [image for image in images if image.has_size(width, height)]
    of_size = of_size or [image for image in of_page if image.has_size(width, height, tile)]
    both = [image for image in of_page if image in of_size]
    numbered = any(image.lists_pages for image in images)
    if both:
        return both[0], _one_pixel_size(both)
    if of_size:
        plain = [image for image in of_size if not image.is_associated] or of_size
        return plain[0], _one_pixel_size(plain) and not (numbered and of_page)
    if of_page:
        return of_page[0], False
    return (images[0], False) if len(images) == 1 else (None, not images)


def _one_pixel_size(images: Iterable[OmeImage]) -> bool:
    return len({(image.pixel_width, image.pixel_height) for image in images}) == 1


def _parse_int(text: str | None) -> int | None:
    try:
        return int(text) if text is not None and len(text) < 20 else None
    except ValueError:
        return None
