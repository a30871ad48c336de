"""The choice of the pages of a TIFF that are the slide: its finest level, the further ones, and all other images.

A file may begin with a macro image, a label or its smallest level, may hold levels as pages or as SubIFDs, several
slides, fluorescence images, and colours in three pages. The finest level is the largest brightfield image that nothing
marks as a label, macro image or thumbnail; its levels are the smaller images that show the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile

from her2batch.slides.fingerprint import Directory
from her2batch.slides.slide import MPP_RANGE
from her2batch.slides.tiff.ome_xml import OmeImage, find_image, parse_ome_xml
from her2batch.slides.tiff.padding import padded_factors
from her2batch.slides.tiff.resolution import tag_resolution

RGB, YCBCR, GREY = 2, 6, 1
MACRO_TYPE = 9
"""Subfile type that Aperio gives to the macro image: reduced, and a bit that TIFF does not define."""

OTHER_IMAGES = "other-images"
"""Flag of a slide beside which the file has another image of comparable size that is not read."""

ASPECT_TOLERANCE = 0.02
"""Relative difference between the aspect ratios of two levels of one slide."""

STRIPS_LEAD = 8
"""An image in strips is the slide only if it has more than this many times the px of the largest tiled one."""

SMALL_SHARE = 1 / 16
"""Share of the largest image's px below which a brightfield image beside it is no slide, but an accessory of it."""

OTHER_SHARE = 1 / 4
"""Share of the slide's px from which another image is worth a flag."""

RESOLUTION_LEAD = 2.0
"""Ratio between the resolution that a level's tags state and the one that it should have, from which it is no level."""

SERIES_LEAD = 1.3
"""The same for a page that has an image of its own in the OME-XML: another region has the resolution of the slide."""

_ASSOCIATED = re.compile(r"(?i)\s*(label|macro|thumbnail|overview|barcode)(?![a-z0-9])")
_APERIO_ASSOCIATED = re.compile(r"(?i)Aperio[^\n]{0,200}\n\s*(label|macro)\b")
_APERIO_THUMBNAIL = re.compile(r"Aperio[^\n]{0,200}\n\s*\d+x\d+ *-> *\d+x\d+")
_QPI_TYPE = re.compile(r"<ImageType>\s*(Thumbnail|Overview|Label|Macro)", re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    """A page of a TIFF. number: in the main chain, None for a SubIFD.  directory: where it is in the file."""

    page: Any  # tifffile.TiffPage
    number: int | None
    directory: Directory

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px. Raises TypeError for a tag with several values."""
        return int(self.page.imagewidth), int(self.page.imagelength)

    @property
    def tile(self) -> tuple[int, int]:
        """Width and height of its tiles, px; of the page if it is stored in strips."""
        return (int(self.page.tilewidth), int(self.page.tilelength)) if self.page.is_tiled else self.size

    @property
    def pixels(self) -> int:
        """Number of px."""
        return self.size[0] * self.size[1]

    @property
    def description(self) -> str:
        """The description, an empty string if there is none."""
        return str(self.page.description or "")

    @property
    def is_reduced(self) -> bool:
        """Return whether the page is tagged as a smaller version of another one."""
        return bool(int(self.page.subfiletype) & 1)

    @property
    def is_stated_level(self) -> bool:
        """Return whether the page is tagged as a level of another one, or stored as a part of it."""
        return self.is_reduced or self.number is None

    @property
    def is_colour(self) -> bool:
        """Return whether the page has red, green and blue, as a brightfield image does."""
        page = self.page
        return page.samplesperpixel in (3, 4) and int(page.photometric) in (RGB, YCBCR) and page.dtype in COLOUR_TYPES

    @property
    def kind(self) -> tuple[Any, ...]:
        """What all levels of a slide have in common."""
        return self.page.dtype, self.page.samplesperpixel, self.page.planarconfig

    @property
    def is_marked(self) -> bool:
        """Return whether the file says that the page is a label, macro image, overview or thumbnail."""
        if int(self.page.subfiletype) == MACRO_TYPE or _ASSOCIATED.match(str(self.page.tags.valueof(285) or "")):
            return True
        text = self.description[:5000]
        patterns = (_ASSOCIATED, _APERIO_ASSOCIATED, _APERIO_THUMBNAIL)
        return any(pattern.match(text) for pattern in patterns) or _QPI_TYPE.search(text) is not None


COLOUR_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))

Image = tuple[Page, ...]
"""One image: one page, or the pages of its red, green and blue."""


@dataclass(frozen=True)
class SlidePages:
    """The pages of a slide.

    levels: finest first.  others: all other pages.  ome: what the OME-XML says of the finest level.  ome_agrees: the
    evidence that it belongs to it agrees.  notes: quality flags.
    """

    levels: tuple[Image, ...]
    others: tuple[Page, ...]
    ome: OmeImage | None
    ome_agrees: bool
    notes: tuple[str, ...]

    @property
    def base(self) -> Page:
        """The finest level, or its first page."""
        return self.levels[0][0]


def load_pages(file: tifffile.TiffFile, directories: Iterable[Directory]) -> list[Page]:
    """Return the page of every directory, in the order of the directories: the main chain, then SubIFDs."""
    pages, number = list[Page](), 0
    for directory in directories:
        file.filehandle.seek(directory.at)
        index = number if directory.parent is None else len(pages)
        page = tifffile.TiffPage(file, index)
        pages.append(Page(page, number if directory.parent is None else None, directory))
        number += directory.parent is None
    return pages


def choose_pages(pages: Sequence[Page], ignores_shape: bool = False) -> SlidePages:
    """Choose the pages that are the slide.

    pages: of `load_pages`, at least one.  ignores_shape: levels may have another shape, because they are padded in a
    way that their description states (Philips).  If nothing looks like brightfield, the finest level is the largest
    image, and the caller refuses it.
    """
    images = next((found for page in pages if (found := parse_ome_xml(page.description))), [])
    base = _finest_image(pages, images)
    first = base[0]
    ome, agrees = find_image(images, first.number, *first.size, first.tile if first.page.is_tiled else (1, 1))
    levels = [base, *_find_levels(pages, base, _OmeImages(images, ome), ignores_shape)]
    used = {id(page) for image in levels for page in image}
    others = tuple(page for page in pages if id(page) not in used)
    large = [page for page in others if page.is_colour and page.pixels >= OTHER_SHARE * first.pixels]
    shown = [page for page in large if not (page.is_marked or page.is_reduced or _is_associated(page, images))]
    return SlidePages(tuple(levels), others, ome, agrees, (OTHER_IMAGES,) if shown else ())


def _is_associated(page: Page, images: Sequence[OmeImage]) -> bool:
    """Return whether the OME-XML names the image of a page like a label or macro image."""
    image, _ = find_image(images, page.number, *page.size) if page.number is not None else (None, True)
    return image is not None and image.is_associated and image.has_size(*page.size)


def _finest_image(pages: Sequence[Page], images: Sequence[OmeImage]) -> Image:
    """Return the finest level: by marks, by colour, by subfile type and by size."""
    colour: list[Image] = [(page,) for page in pages if page.is_colour]
    colour += _colour_triples(pages, images)
    plain = [image for image in colour if not (image[0].is_marked or _is_associated(image[0], images))]
    pool = plain or colour or [(page,) for page in pages]
    best = _largest([image for image in pool if not image[0].is_reduced] or pool)
    same = [image for image in pool if image[0].page.is_tiled and has_same_aspect(image[0].size, best[0].size)]
    best = max((best, *same), key=lambda image: image[0].pixels)  # no reduced version is larger than its original
    largest = max(pages, key=lambda page: page.pixels)
    return (largest,) if best[0].pixels < SMALL_SHARE * largest.pixels else best


def _largest(images: Sequence[Image]) -> Image:
    """Return the largest tiled image, or one in strips if it is much larger, or larger and of the same shape."""
    best = max(images, key=lambda image: image[0].pixels)
    tiled = [image for image in images if image[0].page.is_tiled]
    best_tiled = max(tiled, key=lambda image: image[0].pixels, default=best)
    is_same = has_same_aspect(best_tiled[0].size, best[0].size)
    return best if is_same or best[0].pixels > STRIPS_LEAD * best_tiled[0].pixels else best_tiled


def _colour_triples(pages: Sequence[Page], images: Sequence[OmeImage]) -> Iterator[Image]:
    """Yield images whose red, green and blue are pages of one 8-bit sample, as the OME-XML names them."""
    by_number = {page.number: page for page in pages if page.number is not None}
    for image in images:
        numbers = image.rgb_pages() or ()
        found = tuple(by_number[number] for number in numbers if number in by_number)
        if len(found) == 3 and len({(page.size, page.page.tile) for page in found}) == 1:
            kinds = {(*page.kind, int(page.page.photometric), int(page.page.compression)) for page in found}
            dtype, samples, _, photometric, _ = next(iter(kinds))
            if len(kinds) == 1 and dtype in COLOUR_TYPES and (samples, photometric) == (1, GREY):
                yield found


class _OmeImages:
    """The images of the OME-XML beside that of the slide."""

    def __init__(self, images: Sequence[OmeImage], slide: OmeImage | None) -> None:
        self._images, self._slide = images, slide

    def allow(self, page: Page, downsample: float) -> bool:
        """Return whether a page may be a level of the slide: no image claims it, or one with the level's resolution."""
        owners = [image for image in self._images if image.has_page(page.number)]
        if self._slide is None or not owners or self._slide in owners:
            return True
        owner = owners[0]
        if owner.is_associated:
            return False
        if owner.pixel_width is None or not self._slide.pixel_width:
            return True
        ratio = owner.pixel_width / self._slide.pixel_width
        return downsample / SERIES_LEAD <= ratio <= downsample * SERIES_LEAD


def _find_levels(pages: Sequence[Page], base: Image, ome: _OmeImages, ignores_shape: bool) -> list[Image]:
    """Return the coarser levels of a slide, finest first. They are SubIFDs of its finest level, or pages beside it."""
    first = base[0]
    if len(base) > 1:
        subs = [sorted(_subifds(pages, page), key=lambda sub: -sub.pixels) for page in base]
        groups: list[Image] = [group for group in zip(*subs, strict=False) if len({sub.size for sub in group}) == 1]
    else:
        groups = [(page,) for page in _subifds(pages, first)]
    if not groups and len(base) == 1:
        beside = [page for page in pages if page is not first and page.page.is_tiled and page.number is not None]
        if first.number is None:
            beside += [page for page in _siblings(pages, first) if page is not first]
        fitting = [page for page in beside if _is_level(page, first, ignores_shape)]
        fitting = [page for page in fitting if ome.allow(page, first.size[0] / page.size[0])]
        groups = [(page,) for page in _without_thumbnail(fitting, first)]
    groups = [group for group in groups if _is_level(group[0], first, ignores_shape)]
    levels = [base]
    for group in sorted(groups, key=lambda group: -group[0].pixels):
        if all(small < large for small, large in zip(group[0].size, levels[-1][0].size, strict=True)):
            levels.append(group)
    return levels[1:]


def _subifds(pages: Sequence[Page], parent: Page) -> list[Page]:
    """Return the SubIFDs of a page, and theirs: some writers store each level as a SubIFD of the next finer one."""
    own = [page for page in pages if page.directory.parent == parent.directory.at]
    return own + [page for sub in own for page in _subifds(pages, sub)]


def _siblings(pages: Sequence[Page], page: Page) -> list[Page]:
    return [other for other in pages if other.directory.parent == page.directory.parent]


def _without_thumbnail(pages: list[Page], first: Page) -> list[Page]:
    """Return pages without a thumbnail: one that follows the finest level, is smaller than the next one, and behind
    which the levels descend.
    """
    later = [page for page in pages if first.number is not None and (page.number or 0) > first.number]
    sizes = [page.pixels for page in later]
    is_early = len(later) > 1 and sizes[0] < sizes[1] and sizes[1:] == sorted(sizes[1:], reverse=True)
    return [page for page in pages if not (is_early and page is later[0])]


def _is_level(page: Page, first: Page, ignores_shape: bool) -> bool:
    """Return whether a page can be a level: it is smaller and of the same kind and shape, and its tags agree."""
    (width, height), (base_width, base_height) = page.size, first.size
    if page.is_marked or page.kind != first.kind or not (0 < width < base_width and 0 < height < base_height):
        return False
    has_shape = ignores_shape or has_same_aspect(page.size, first.size)
    is_padded = min(page.tile) > 0 and page.size != page.tile and padded_factors(first.size, page.size, page.tile)
    if not has_shape and not is_padded:
        return False  # a single tile has any shape
    own, base = tag_resolution(page.page)[0], tag_resolution(first.page)[0]
    low, high = MPP_RANGE
    if own is None or base is None or not (low <= own <= high and low <= base <= high):
        return True
    expected = (base, base * base_width / width)  # writers copy the tag, or scale it
    return any(value / RESOLUTION_LEAD <= own <= value * RESOLUTION_LEAD for value in expected)


def has_same_aspect(size: tuple[int, int], base: tuple[int, int]) -> bool:
    """Return whether a level, width and height, has the aspect ratio of the finest level. Small ones are rounded."""
    if min(*size, *base) < 1:
        return False
    aspect = size[0] * base[1] / (size[1] * base[0])
    return abs(aspect - 1) < ASPECT_TOLERANCE + 2 / min(size)
