"""Regions that a pathologist drew in QuPath: GeoJSON in its dialects.

A FeatureCollection, a bare list of Features, or one Feature; polygons with holes, several polygons, collections of
them. The class stands in `classification`, as {"name": …} or as a plain word, or in `class`, `label` or `name`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import shapely
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from her2batch.errors import InputError

SUFFIXES: Final = (".geojson", ".json")

SCORE_PATTERN: Final = re.compile(r"^(?:her-?2|erbb2)?[\s:_-]*(?:ihc|score)?[\s:_-]*(0|[123])\+?$", re.IGNORECASE)
"""`3+`, `HER2 3+`, `Her2-3`, `score 3`, `0`: nothing that could mean something else."""

REMEDY: Final = "export the annotations again from QuPath as GeoJSON, without compression"

AREA_TYPES: Final = ("Polygon", "MultiPolygon", "GeometryCollection")


@dataclass(frozen=True)
class Region:
    """An annotated area. score: 0, 1+, 2+ or 3+.  shape: level-0 px."""

    score: str
    shape: BaseGeometry


def find_annotations(folder: Path, slide_ids: Iterable[str]) -> dict[str, Path]:
    """SLIDE.geojson or SLIDE.json in a folder, by slide. Raises InputError when the folder has none of these slides."""
    if not folder.is_dir():
        raise InputError("is no folder", folder, "give the folder with SLIDE.geojson files")
    wanted = list(slide_ids)
    found = {one: folder / f"{one}{suffix}" for suffix in reversed(SUFFIXES) for one in wanted
             if (folder / f"{one}{suffix}").is_file()}  # fmt: skip
    if not found:
        example = f"{wanted[0]}.geojson" if wanted else "SLIDE.geojson"
        raise InputError("holds no annotations of these slides", folder, f"name the files by slide_id, as {example}")
    return found


def read_annotations(path: Path) -> tuple[list[Region], list[str]]:
    """The regions that bear a HER2 score, and notes for a person on those that were passed over.

    Raises InputError when the file is no GeoJSON, or holds coordinates that are no numbers.
    """
    regions: list[Region] = []
    skipped: Counter[str] = Counter()
    for feature in _features(path):
        geometry, properties = (_mapping(feature.get(key)) for key in ("geometry", "properties"))
        if str(geometry.get("type")) not in AREA_TYPES:
            skipped["no area"] += 1
            continue
        name = _class_name(properties)
        score = SCORE_PATTERN.match(name.strip()) if name is not None else None
        if score is None:
            skipped["no class" if name is None else f"class {name!r}"] += 1
            continue
        area = _valid_area(path, geometry)
        if area.is_empty:
            skipped["zero area"] += 1
            continue
        regions.append(Region("0" if score[1] == "0" else f"{score[1]}+", area))
    return regions, [f"{path.name}: {count} × {why} passed over" for why, count in sorted(skipped.items())]


def _features(path: Path) -> Iterator[dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no JSON ({error})", path, REMEDY) from error
    if isinstance(data, dict):
        data = data.get("features") if data.get("type") == "FeatureCollection" else [data]
    if not isinstance(data, list) or not all(isinstance(one, dict) and "geometry" in one for one in data):
        raise InputError("is no GeoJSON: neither a FeatureCollection, a list of Features nor a Feature", path, REMEDY)
    yield from data


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _class_name(properties: dict[str, Any]) -> str | None:
    """The class's name; of a derived class (`Tumor: 3+`) its last part."""
    for key in ("classification", "class", "label", "name"):
        value = properties.get(key)
        if isinstance(value, dict):
            names = value.get("names")
            value = value.get("name") or ": ".join(str(one) for one in (names if isinstance(names, list) else []))
        if isinstance(value, str) and value.strip():
            return value.rsplit(":", 1)[-1]
    return None


def _valid_area(path: Path, geometry: dict[str, Any]) -> BaseGeometry:
    """The geometry as valid areas: rings that cross themselves are mended; empty when nothing of it is an area."""
    try:
        found = shape(geometry)
        coordinates = shapely.get_coordinates(found)
        if not all(math.isfinite(one) for one in coordinates.ravel()):
            raise ValueError("a coordinate is no number")
        mended = shapely.make_valid(found)
    except (ShapelyError, ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError) as error:
        raise InputError(f"holds a region that can't be read ({error})", path, REMEDY) from error
    parts = [one for one in shapely.get_parts(mended, return_index=False) if one.area > 0]
    polygons = [one for part in parts for one in shapely.get_parts(part) if one.geom_type == "Polygon" and one.area > 0]
    return shapely.unary_union(polygons) if polygons else shapely.Polygon()
