"""Regions of interest: QuPath regions of chosen classes, to which the tiles of a slide are restricted.

Tiles lie in regions of the classes to include, and outside regions of the classes to exclude. Without a region of a
class to include, a slide is used as a whole, less what is excluded. Coordinates are level-0 px, as QuPath exports them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

import shapely
from shapely.geometry.base import BaseGeometry

from her2batch.errors import InputError
from her2batch.exchange.annotations import SUFFIXES, AnnotatedArea, read_areas
from her2batch.exchange.slide_names import FileMatches, files_in, match_files
from her2batch.settings import REGION_SETTINGS, Plan
from her2batch.store.cohort import Cohort

INCLUDED_CLASSES: Final = ("Tumor", "Invasive")
"""Classes of regions that are used when none are chosen."""

EXCLUDED_CLASSES: Final = ("Exclude", "DCIS", "Control", "Ignore")
"""Classes of regions that are left out when none are chosen."""

OVERHANG: Final = 0.02
"""Largest share of the slide's width or height by which a region may leave the slide. More is of another image."""

UNITS_REMEDY: Final = "export the regions from this slide itself, in px of its level 0"


class SlideRegions(NamedTuple):
    """The regions of one slide, level-0 px. included, excluded: None where the file has none of these classes."""

    included: BaseGeometry | None
    excluded: BaseGeometry | None

    @property
    def is_empty(self) -> bool:
        """Whether the slide has no region of a chosen class."""
        return self.included is None and self.excluded is None


class RegionFolder:
    """The region files of a folder, and the slides that they belong to."""

    def __init__(self, folder: Path | None = None) -> None:
        """Without a folder, no slide has regions. Raises InputError when it does not exist or has no GeoJSON file."""
        self._files: list[Path] = []
        self._slides: dict[str, str] = {}
        self._digests: dict[Path, str | None] = {}
        self._matches: FileMatches | None = None
        if folder is None:
            return
        remedy = "give the folder with SLIDE.geojson files, as QuPath exports them"
        if not folder.is_dir():
            raise InputError("there is no such folder of regions", folder, remedy)
        self._files = files_in(folder.absolute(), SUFFIXES)
        if not self._files:
            raise InputError("the folder has no regions", folder, remedy)

    def add_slide(self, slide_id: str, path: Path) -> None:
        """Add a slide to those that the files may belong to. path: of the slide file."""
        if self._files:
            self._slides[slide_id] = str(path)
            self._matches = None

    @property
    def found(self) -> dict[str, Path]:
        """Files by the slide id that they belong to."""
        return self._match().found

    @property
    def unused(self) -> dict[Path, str]:
        """Files that belong to no slide, with the reason."""
        return self._match().unmatched

    @property
    def notes(self) -> list[str]:
        """The files that belong to no slide, as text."""
        return self._match().notes

    def _match(self) -> FileMatches:
        if self._matches is None:
            self._matches = match_files(self._files, self._slides, SUFFIXES)
        return self._matches

    def file_of(self, slide_id: str) -> tuple[Path | None, str | None]:
        """Return the region file of a slide and its SHA-256, which is None where the file cannot be read."""
        path = self.found.get(slide_id)
        if path is None:
            return None, None
        if path not in self._digests:
            self._digests[path] = file_digest(path)
        return path, self._digests[path]


def choose_region_classes(wanted: Plan, cohort: Cohort, folder: Path | None, needed: bool = True) -> Plan:
    """Return the plan with the usual classes of regions, where a folder of them is given and no classes are.

    wanted: a setting that is not among its `model_fields_set` is that of the cohort.  needed: slides will be processed,
    for which a plan with regions needs the folder: raises InputError without it.
    """
    stored = cohort.plan() if cohort.settings.is_file() else Plan()
    own = {name: getattr(wanted if name in wanted.model_fields_set else stored, name) for name in REGION_SETTINGS}
    if folder is None:
        if needed and any(own.values()):
            classes = ", ".join(own["include_regions"]) or f"all but {', '.join(own['exclude_regions'])}"
            raise InputError(
                f"the plan restricts tiles to regions ({classes})", cohort.root, "give their folder with --regions"
            )
        return wanted
    RegionFolder(folder)  # one that cannot be used stops the run before it writes anything
    if any(own.values()):
        return wanted
    return wanted.model_copy(update={"include_regions": INCLUDED_CLASSES, "exclude_regions": EXCLUDED_CLASSES})


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def read_regions(path: Path, include: Collection[str], exclude: Collection[str], size: tuple[int, int]) -> SlideRegions:
    """Read the regions of one slide. A region with a class of both kinds is excluded. size: of the slide, level-0 px.

    Only annotations count, not detections, cells and tiles.  Raises InputError with the file and the feature for what
    cannot be read, and for a region that lies outside the slide.
    """
    wanted, unwanted = ({normalized_class(name) for name in names} for names in (include, exclude))
    included: list[BaseGeometry] = []
    excluded: list[BaseGeometry] = []
    for area in read_areas(path):
        names = {normalized_class(name) for name in area.classes}
        chosen = excluded if names & unwanted else included if names & wanted else None
        if chosen is not None:
            check_inside(path, area, size)
            chosen.append(area.shape)
    return SlideRegions(*(shapely.unary_union(shapes) if shapes else None for shapes in (included, excluded)))


def normalized_class(name: str) -> str:
    """Return a class name without case, British spelling, and the asterisk of QuPath's `Ignore*`."""
    return name.strip().rstrip("*").casefold().replace("tumour", "tumor")


def check_inside(path: Path, area: AnnotatedArea, size: tuple[int, int]) -> None:
    """Raise InputError for a region that leaves the slide. size: of the slide, level-0 px."""
    left, top, right, bottom = area.shape.bounds
    over_x, over_y = OVERHANG * size[0], OVERHANG * size[1]
    if left < -over_x or top < -over_y or right > size[0] + over_x or bottom > size[1] + over_y:
        reach = f"reaches from x {left:.0f}, y {top:.0f} to x {right:.0f}, y {bottom:.0f}"
        what = f"{area.label} {reach}, but the slide is {size[0]} × {size[1]} px"
        raise InputError(what, path, UNITS_REMEDY)
