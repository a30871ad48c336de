"""Instances of DICOM whole-slide images: identifiers in their headers, and the instances that make up one slide.

An archive may export every instance into a folder of its own, and some converters give every resolution a series of its
own. Instances belong to one slide when they are in one series, or when they share the frame of reference, the container
and the specimens, and show the same area (DICOM PS3.3, C.7.4.1, C.7.6.22, C.8.12.4).
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

WHOLE_SLIDE_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class VL Whole Slide Microscopy Image Storage (DICOM PS3.4, B.5)."""

LAST_TAG: Final = 0x00480008
"""Tag of TotalPixelMatrixOriginSequence, the last that is read. The elements of a DICOM file are sorted by tag."""

READ_TAGS: Final = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ContainerIdentifier",
    "SpecimenDescriptionSequence", "SpecimenIdentifier", "ImageType", "ImagedVolumeWidth", "ImagedVolumeHeight",
    "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixOriginSequence",
)  # fmt: skip
"""Elements that are kept. All others are skipped, so that a hostile header takes no memory."""

DICOM_META, DICOM_HEAD = 4096, 4 << 20
"""Bytes from the start of a file that hold its meta information, and that must hold its identifiers."""

PYDICOM_ERRORS = (InvalidDicomError, OSError, ValueError, EOFError, NotImplementedError, AttributeError, KeyError,
                  TypeError, IndexError, OverflowError, RecursionError, struct.error)  # fmt: skip
"""Exceptions that pydicom raises for damaged files."""

UNUSED_FLAVORS: Final = frozenset({"LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER"})
"""Third value of ImageType of images that are not a level of the slide. An absent value counts as VOLUME."""

SAME_AREA: Final = 0.05
"""Largest difference of two instances' width, height and origin, as a share of the width, that counts as one area."""


class DicomInstance(NamedTuple):
    """Identifiers of one file of a whole-slide image; empty where the header states none.

    specimens: identifiers, joined.  flavor: third value of ImageType.  area: width, height, and x and y of the origin,
    mm; 0 where it is not stated.  columns, rows: px of the whole level.
    """

    series: str
    frame: str
    container: str
    specimens: str
    instance: str
    flavor: str
    columns: int
    rows: int
    area: tuple[float, float, float, float]

    def to_strings(self, name: Callable[[str], str]) -> tuple[str, ...]:
        """Return the fields as texts that can be stored. name: function from an identifier to its stored form."""
        identifiers = (name(value) if value else "" for value in self[:5])
        return (*identifiers, self.flavor, str(self.columns), str(self.rows), *map(repr, self.area))

    @staticmethod
    def from_strings(texts: tuple[str, ...]) -> DicomInstance:
        """Return the instance that `to_strings` has written."""
        series, frame, container, specimens, instance, flavor, columns, rows, *area = texts
        width, height, x, y = map(float, area)
        numbers = int(columns), int(rows), (width, height, x, y)
        return DicomInstance(series, frame, container, specimens, instance, flavor, *numbers)


def read_instance(path: Path) -> DicomInstance | None:
    """Read the identifiers of a DICOM file; None when the file is no whole-slide image.  Raises OSError.

    This runs in the driver process, so only the first bytes of a file are parsed: a malicious file may have a million
    elements before its series, nested sequences, or a data set that decompresses to any size. A damaged file counts as
    a series of its own.
    """
    with path.open("rb") as file:
        head = file.read(DICOM_HEAD)
    try:
        if DeflatedExplicitVRLittleEndian.encode() in head[:DICOM_META]:
            raise ValueError("the data set is compressed, which it never is in whole-slide images")
        with silence_pydicom():
            tags: list[Any] = [Tag(name) for name in READ_TAGS]
            dataset = read_partial(io.BytesIO(head), stop_when=lambda tag, *_: tag > LAST_TAG, specific_tags=tags)
            if _text(dataset, "SOPClassUID") != WHOLE_SLIDE_SOP_CLASS:
                return None
            return _to_instance(dataset, path)
    except PYDICOM_ERRORS:
        return DicomInstance(f"damaged {path}", "", "", "", "", "", 0, 0, (0.0, 0.0, 0.0, 0.0))


def _to_instance(dataset: Dataset, path: Path) -> DicomInstance:
    flavor = _parts(dataset, "ImageType")[2:3]
    specimens = sorted(_text(item, "SpecimenIdentifier") for item in _items(dataset, "SpecimenDescriptionSequence"))
    origin = next(iter(_items(dataset, "TotalPixelMatrixOriginSequence")), Dataset())
    return DicomInstance(
        _text(dataset, "SeriesInstanceUID") or f"no series {path}",
        _text(dataset, "FrameOfReferenceUID"),
        _text(dataset, "ContainerIdentifier"),
        "\\".join(specimens),
        _text(dataset, "SOPInstanceUID"),
        flavor[0].upper() if flavor else "",
        int(_number(dataset, "TotalPixelMatrixColumns")),
        int(_number(dataset, "TotalPixelMatrixRows")),
        (
            _number(dataset, "ImagedVolumeWidth"),
            _number(dataset, "ImagedVolumeHeight"),
            _number(origin, "XOffsetInSlideCoordinateSystem"),
            _number(origin, "YOffsetInSlideCoordinateSystem"),
        ),
    )


def _value(dataset: Dataset, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except PYDICOM_ERRORS:
        return None


def _text(dataset: Dataset, keyword: str) -> str:
    value = _value(dataset, keyword)
    return "" if value is None else str(value).strip()


def _number(dataset: Dataset, keyword: str) -> float:
    try:
        value = float(_value(dataset, keyword) or 0)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return value if abs(value) < 2**31 else 0.0


def _parts(dataset: Dataset, keyword: str) -> list[str]:
    value = _value(dataset, keyword)
    return [value] if isinstance(value, str) else [str(part) for part in value or ()]


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = _value(dataset, keyword)
    try:
        return [item for item in value or () if isinstance(item, Dataset)]
    except PYDICOM_ERRORS:
        return []


def group_instances(found: Mapping[Path, DicomInstance]) -> tuple[list[list[Path]], dict[Path, str]]:
    """Return the files of each slide, sorted by path, and the reason why each other file belongs to none."""
    series: dict[tuple[str, Path], list[Path]] = defaultdict(list)
    for path in sorted(found, key=str):
        series[found[path].series, path.parent].append(path)
    unused = {
        path: "DICOM label, overview or thumbnail, which is not used"
        for paths in series.values()
        for path in paths
        if all(found[each].flavor in UNUSED_FLAVORS for each in paths)
    }
    parts = [paths for paths in series.values() if paths[0] not in unused]
    slides = []
    for joined in _join_parts(parts, found):
        first, copies = _without_copies(joined, found)
        slides.append(first)
        if copies and {_identity(found[path]) for path in copies} == {_identity(found[path]) for path in first}:
            slides.append(copies)  # a copy of the whole slide, which its content will show
        else:
            unused |= {path: f"DICOM copy of an instance of the slide: {first[0]}" for path in copies}
    return slides, unused


def _join_parts(parts: list[list[Path]], found: Mapping[Path, DicomInstance]) -> Iterator[list[list[Path]]]:
    """Join series (each in one folder) that show one slide."""
    groups: dict[tuple[str, ...], list[list[Path]]] = defaultdict(list)
    for paths in parts:
        finest = _finest(paths, found)
        groups[("frame", finest.frame) if finest.frame else ("series", finest.series)].append(paths)
    for group in groups.values():
        for same_container in _split(group, lambda paths: _finest(paths, found).container):
            for same_specimens in _split(same_container, lambda paths: _finest(paths, found).specimens):
                yield from _split_areas(same_specimens, found)


def _finest(paths: Iterable[Path], found: Mapping[Path, DicomInstance]) -> DicomInstance:
    """Return the level with the most px among the instances."""
    instances = [found[path] for path in paths]
    return max((each for each in instances if each.flavor not in UNUSED_FLAVORS), key=lambda each: each.columns)


def _split(parts: list[list[Path]], key: Callable[[list[Path]], str]) -> list[list[list[Path]]]:
    """Split by an identifier. Parts that state none join the others when these agree, and else stay alone."""
    groups: dict[str, list[list[Path]]] = defaultdict(list)
    for paths in parts:
        groups[key(paths)].append(paths)
    if len(groups) <= 2 and "" in groups:
        return [parts]
    alone = [[paths] for paths in groups.pop("", [])]
    return [*groups.values(), *alone]


def _split_areas(parts: list[list[Path]], found: Mapping[Path, DicomInstance]) -> list[list[list[Path]]]:
    """Split into the areas of one glass, of which each may have been scanned into a pyramid of its own."""
    areas: list[tuple[DicomInstance, list[list[Path]]]] = []
    for paths in sorted(parts, key=lambda paths: -_finest(paths, found).columns):
        finest = _finest(paths, found)
        for first, members in areas:
            if _same_area(first, finest):
                members.append(paths)
                break
        else:
            areas.append((finest, [paths]))
    return [sorted(members) for _, members in areas]


def _same_area(one: DicomInstance, other: DicomInstance) -> bool:
    if not (one.columns and one.rows and other.columns and other.rows):
        return True
    aspect = other.rows * one.columns / (other.columns * one.rows)
    if abs(aspect - 1) > SAME_AREA + 1 / min(other.columns, other.rows):
        return False
    width, other_width = one.area[0], other.area[0]
    if not width or not other_width:
        return True
    tolerance = SAME_AREA + 1 / other.columns
    return all(abs(a - b) <= tolerance * width for a, b in zip(one.area, other.area, strict=True))


def _identity(instance: DicomInstance) -> tuple[str, int]:
    return instance.instance, instance.columns


def _without_copies(parts: list[list[Path]], found: Mapping[Path, DicomInstance]) -> tuple[list[Path], list[Path]]:
    """Split the files of a slide into those of the first folder that has each instance, and further copies."""
    folders: dict[tuple[str, int], Path] = {}
    first: list[Path] = []
    copies: list[Path] = []
    for path in sorted((path for paths in parts for path in paths), key=str):
        identity = _identity(found[path])
        own = not identity[0] or folders.setdefault(identity, path.parent) == path.parent
        (first if own else copies).append(path)
    return first, copies


@contextmanager
def silence_pydicom() -> Iterator[None]:
    """Suppress warnings and logs of pydicom and highdicom, because they quote values such as a patient's name."""
    log = logging.getLogger("pydicom")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before
