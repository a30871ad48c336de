"""Annotated regions from QuPath: GeoJSON in the dialects of its versions.

A file is a FeatureCollection, a list of Features, or one Feature. Geometries are polygons (with holes), multi-polygons
and collections of them. The class is in `classification`, as {"name": …} or as a string, or in `class`, `label` or
`name`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import shapely
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from her2batch.errors import InputError
from her2batch.exchange.slide_names import FileMatches, files_in, match_files

SUFFIXES: Final = (".geojson", ".json")

SCORE_PATTERN: Final = re.compile(r"^(?:her-?2|erbb2)?[\s:_-]*(?:ihc|score)?[\s:_-]*(0|[123])\+?$", re.IGNORECASE)
"""Unambiguous spellings of a HER2 score: `3+`, `HER2 3+`, `Her2-3`, `score 3`, `0`."""

REMEDY: Final = "export the annotations again from QuPath as GeoJSON, without compression"

AREA_TYPES: Final = ("Polygon", "MultiPolygon", "GeometryCollection")

ANNOTATION_TYPES: Final = ("annotation", "tmaCore")
"""Types of QuPath objects that a person draws."""


@dataclass(frozen=True)
class Region:
    """An annotated region. score: 0, 1+, 2+ or 3+.  shape: in level-0 px."""

    score: str
    shape: BaseGeometry


def find_annotations(folder: Path, slides: Mapping[str, str | None]) -> FileMatches:
    """Return the annotation file of each slide that has one in a folder, and the files that belong to no slide.

    slides: slide id → path of the slide file, None where it is not known.  See `slide_names` for the names of files.
    Raises InputError when the folder has no file for any of these slides.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", folder, "give the folder with SLIDE.geojson files")
    files = files_in(folder, SUFFIXES)
    matches = match_files(files, slides, SUFFIXES)
    if not matches.found:
        example = f"{next(iter(slides))}.geojson" if slides else "SLIDE.geojson"
        first = f": {matches.notes[0]}" if files else ""
        remedy = f"name the files by slide_id or by slide file, for example {example}"
        raise InputError(f"the folder has no annotations of these slides{first}", folder, remedy)
    return matches


@dataclass(frozen=True)
class AnnotatedArea:
    """An annotation with an area. label: what errors call it.  classes: its class, and the parts of a derived class.

    shape: valid polygons, level-0 px.
    """

    label: str
    classes: tuple[str, ...]
    shape: BaseGeometry


def read_areas(path: Path) -> Iterator[AnnotatedArea]:
    """Yield the annotations of a file that have a class and an area; detections, cells and tiles are left out.

    Raises InputError with the feature when the file is not GeoJSON, or a geometry cannot be read.
    """
    for number, feature in enumerate(_features(path), start=1):
        geometry, properties = (_mapping(feature.get(key)) for key in ("geometry", "properties"))
        classes = _class_names(properties)
        if not _is_annotation(feature, properties) or str(geometry.get("type")) not in AREA_TYPES or not classes:
            continue
        label = f"feature {number} ({classes[0]})"
        area = _valid_area(path, geometry, label)
        if not area.is_empty:
            yield AnnotatedArea(label, classes, area)


def _is_annotation(feature: dict[str, Any], properties: dict[str, Any]) -> bool:
    """Return whether a feature is an annotation: by its type, or before QuPath 0.4 by its id."""
    kind, old = properties.get("objectType", properties.get("object_type")), str(feature.get("id", ""))
    if kind is not None:
        return kind in ANNOTATION_TYPES
    return not old.startswith("Path") or old in ("PathAnnotationObject", "TMACoreObject")


def read_annotations(path: Path) -> tuple[list[Region], list[str]]:
    """Return the regions with a HER2 score, and messages about the skipped ones.

    Raises InputError with the feature when the file is not GeoJSON, or has coordinates that are not finite numbers.
    """
    regions: list[Region] = []
    skipped: Counter[str] = Counter()
    for number, feature in enumerate(_features(path), start=1):
        geometry, properties = (_mapping(feature.get(key)) for key in ("geometry", "properties"))
        if str(geometry.get("type")) not in AREA_TYPES:
            skipped["no area"] += 1
            continue
        name = _class_name(properties)
        score = SCORE_PATTERN.match(name.strip()) if name is not None else None
        if score is None:
            skipped["no class" if name is None else f"class {name!r}"] += 1
            continue
        area = _valid_area(path, geometry, f"feature {number} ({name})")
        if area.is_empty:
            skipped["zero area"] += 1
            continue
        regions.append(Region("0" if score[1] == "0" else f"{score[1]}+", area))
    return regions, [f"{path.name}: {count} × {why} skipped" for why, count in sorted(skipped.items())]


def _features(path: Path) -> Iterator[dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror})", path, REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the file is not valid JSON ({error})", path, REMEDY) from error
    if isinstance(data, dict):
        data = data.get("features") if data.get("type") == "FeatureCollection" else [data]
    if not isinstance(data, list) or not all(isinstance(item, dict) and "geometry" in item for item in data):
        what = "the file is not GeoJSON: it is no FeatureCollection, list of Features or Feature"
        raise InputError(what, path, REMEDY)
    yield from data


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _class_name(properties: dict[str, Any]) -> str | None:
    """Return the name of the class; for a derived class (`Tumor: 3+`) its last part."""
    names = _class_names(properties)
    return names[-1] if names else None


def _class_names(properties: dict[str, Any]) -> tuple[str, ...]:
    """Return the name of the class, and of a derived class (`Tumor: 3+`) its parts; empty without a class."""
    for key in ("classification", "class", "label", "name"):
        value = properties.get(key)
        if isinstance(value, dict):
            names = value.get("names")
            value = value.get("name") or ": ".join(str(name) for name in (names if isinstance(names, list) else []))
        if isinstance(value, str) and value.strip():
            return value, *(value.split(":") if ":" in value else ())
    return ()


def _valid_area(path: Path, geometry: dict[str, Any], label: str) -> BaseGeometry:
    """Return the geometry as valid polygons. Self-intersections are repaired; empty when nothing has an area."""
    try:
        parsed = shape(geometry)
        if not all(math.isfinite(value) for value in shapely.get_coordinates(parsed).ravel()):
            raise ValueError("a coordinate is not a finite number")
        valid = shapely.make_valid(parsed)
    except (ShapelyError, ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError) as error:
        raise InputError(f"{label} cannot be read ({error})", path, REMEDY) from error
    parts = [part for part in shapely.get_parts(valid, return_index=False) if part.area > 0]
    shapes = [item for part in parts for item in shapely.get_parts(part)]
    polygons = [item for item in shapes if item.geom_type == "Polygon" and item.area > 0]
    return shapely.unary_union(polygons) if polygons else shapely.Polygon()
