"""Cells as QuPath cell objects: GeoJSON Features with the outline of the cell, its nucleus, class and measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from shapely.errors import ShapelyError
from shapely.geometry import shape

from her2batch.errors import InputError
from her2batch.exchange.cells.feature_stream import REMEDY, stream_features
from her2batch.exchange.cells.outlines import rings
from her2batch.exchange.geojson import CLASS_COLOURS, GREY, number_texts
from her2batch.files.locations import is_remote
from her2batch.vision.cells.compartment import TUMOUR_LIKELIHOOD

CATEGORIES: Final = ("Negative", "1+", "2+", "3+")
"""Category of a cell → QuPath's name of its intensity class."""

TUMOUR: Final = "Tumor"
OTHER: Final = "Other"
"""Base classes of tumour cells and of other cells."""

OTHER_CLASSES: Final = frozenset({"other", "stroma", "immune cells", "lymphocyte", "necrosis", "ignore", "region"})
"""Base classes, in lower case, of cells that are not of the tumour."""

MEASUREMENTS: Final = {
    "area": "Nucleus: Area µm^2",
    "elongation": "Nucleus: Long over short axis",
    "haematoxylin": "Nucleus: Hematoxylin OD mean",
    "nuclear_dab": "Nucleus: DAB OD mean",
    "membrane_dab": "Membrane: DAB OD mean",
    "cytoplasm_dab": "Cytoplasm: DAB OD mean",
    "faint": "Membrane: faint share",
    "moderate": "Membrane: moderate share",
    "intense": "Membrane: intense share",
    "tumour": "Tumor likelihood",
}
"""Column of the table cells → name of the measurement; the densities have QuPath's own names."""

EXPANSION_UM: Final = 3.5
"""Greatest distance between the outlines of nucleus and cell; less where the next cell is nearer."""

ROWS: Final = 16_384
"""Cells that are in memory at once."""


def cell_features(path: Path, slide_mpp: float, scored: bool = True) -> Iterator[str]:
    """Yield the cells of a slide as Features (JSON text).  path: of the table cells.  slide_mpp: µm per level-0 px.

    scored: whether the cells have categories; otherwise their class is only tumour or not.
    Memory is bounded: besides the cells of one batch, the positions and radii of all cells are kept.
    """
    with pa.BufferReader(path.read_bytes()) if is_remote(path) else pa.OSFile(str(path)) as source:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        places = file.read(["x", "y", "area"])
        centres = np.stack([places[name].to_numpy() for name in ("x", "y")], axis=1).astype(np.float64)
        nuclei = np.sqrt(places["area"].to_numpy().astype(np.float64) / np.pi) / slide_mpp
        outer = nuclei + _expansions(centres, nuclei, EXPANSION_UM / slide_mpp)
        first = 0
        for batch in file.iter_batches(ROWS):
            table, own = pa.Table.from_batches([batch]), slice(first, first + batch.num_rows)
            yield from _batch_features(table, rings(centres[own], nuclei[own]), rings(centres[own], outer[own]), scored)
            first += batch.num_rows


def _expansions(centres: NDArray[np.float64], nuclei: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Width of the ring around each nucleus, level-0 px: half of the gap to the nearest nucleus, up to `reach`."""
    if len(centres) < 2:
        return np.full(len(centres), reach)
    distance, nearest = cKDTree(centres).query(centres, k=2)
    gap = distance[:, 1] - nuclei - nuclei[nearest[:, 1]]
    return np.asarray(np.clip(gap / 2, 0.0, reach))


def _batch_features(
    table: pa.Table, nuclei: NDArray[np.float64], cells: NDArray[np.float64], scored: bool
) -> Iterator[str]:
    names = [json.dumps(name, ensure_ascii=False) for name in ("Cell", *MEASUREMENTS.values())]
    columns = [number_texts(table[name]) for name in ("cell", *MEASUREMENTS)]
    tumour = table["tumour"].to_numpy() >= TUMOUR_LIKELIHOOD
    rows = zip(
        table["category"].to_pylist(), tumour.tolist(), _ring_texts(cells), _ring_texts(nuclei),
        zip(*columns, strict=True), strict=True,
    )  # fmt: skip
    classes = {(k, own): _classification(k, own, scored) for k in range(len(CATEGORIES)) for own in (False, True)}
    for category, of_tumour, outer, inner, values in rows:
        measured = ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True) if value is not None)
        yield (
            f'{{"type": "Feature", "geometry": {outer}, "nucleusGeometry": {inner}, "properties": '
            f'{{"objectType": "cell", "classification": {classes[category, of_tumour]}, '
            f'"measurements": {{{measured}}}}}}}'
        )


def _classification(category: int, of_tumour: bool, scored: bool) -> str:
    """Return the class of a cell as JSON text."""
    names = [TUMOUR if of_tumour else OTHER, *([CATEGORIES[category]] if scored else [])]
    colour = CLASS_COLOURS[CATEGORIES[category] if category else "0"] if of_tumour and scored else GREY
    return json.dumps({"name": ": ".join(names), "names": names, "color": colour})


def _ring_texts(corners: NDArray[np.float64]) -> list[str]:
    """Polygons as GeoJSON text: (n, k, 2) level-0 px, to 0.1 px."""
    closed = np.round(np.concatenate([corners, corners[:, :1]], axis=1), 1)
    return [f'{{"type": "Polygon", "coordinates": [{ring}]}}' for ring in closed.tolist()]


class ImportedCells(NamedTuple):
    """Cells of a file: columns of the table cells by name, (n,) each, and the number of Features that are no cells."""

    columns: dict[str, NDArray[Any]]
    others: int


def read_cells(path: Path, slide_mpp: float) -> ImportedCells:
    """Read cells that QuPath has detected and classified by intensity.

    slide_mpp: µm per level-0 px.  Without measurements of the membrane, a cell's category stands for them.
    Raises InputError with the number of the Feature for what cannot be read, and for cells without intensity class.
    """
    rows, others = [], 0
    for number, feature in enumerate(stream_features(path), start=1):
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        if properties.get("objectType", properties.get("object_type")) not in ("cell", "detection"):
            others += 1
            continue
        rows.append(_read_cell(path, number, feature, properties, slide_mpp))
    if not rows:
        raise InputError("the file has no cells", path, "detect cells in QuPath, and export them with their nuclei")
    names = ("x", "y", "category", *MEASUREMENTS)
    values = np.array(rows, np.float64)
    return ImportedCells({name: values[:, k] for k, name in enumerate(names)}, others)


def _read_cell(
    path: Path, number: int, feature: Mapping[str, Any], properties: Mapping[str, Any], slide_mpp: float
) -> tuple[float, ...]:
    """The values of one cell: x, y, category, and those of MEASUREMENTS."""
    category, of_tumour = _class_of(path, number, properties)
    measured = properties.get("measurements")
    measured = measured if isinstance(measured, dict) else {}
    try:
        nucleus = shape(feature.get("nucleusGeometry") or feature["geometry"])
        centre, area = nucleus.centroid, float(nucleus.area) * slide_mpp**2
        values = {name: float(measured[label]) for name, label in MEASUREMENTS.items() if label in measured}
        place = float(centre.x), float(centre.y)
    except (ShapelyError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise InputError(f"feature {number} cannot be read ({error})", path, REMEDY) from error
    if not np.isfinite([*place, *values.values()]).all():
        raise InputError(f"feature {number} has a number that is not finite", path, REMEDY)
    shares = {name: float(category >= least) for least, name in enumerate(("faint", "moderate", "intense"), start=1)}
    known = {"area": area, "elongation": 1.0, **shares, "tumour": float(of_tumour), **values}
    return *place, float(category), *(known.get(name, 0.0) for name in MEASUREMENTS)


def _class_of(path: Path, number: int, properties: Mapping[str, Any]) -> tuple[int, bool]:
    """The category of a cell by its class, and whether it is of the tumour."""
    found = properties.get("classification")
    if isinstance(found, dict):
        names = found.get("names") or str(found.get("name") or "").split(":")
    else:
        names = str(found or "").split(":")
    words = [str(name).strip() for name in names if str(name).strip()]
    category = next((CATEGORIES.index(word) for word in reversed(words) if word in CATEGORIES), None)
    if category is None:
        what = f"feature {number} has the class {': '.join(words) or 'none'!r}, which states no intensity"
        raise InputError(
            what, path, "run Classify > Object classification > Set cell intensity classifications in QuPath"
        )
    return category, not any(word.lower().rstrip("*") in OTHER_CLASSES for word in words)
