"""Stand-ins for annotations in three dialects of GeoJSON, and for TCGA's clinical table of HER2."""

import json
from pathlib import Path
from typing import Any

import numpy as np

HEADERS = (
    ("bcr_patient_barcode", "er_status_by_ihc", "er_ihc_score", "pr_status_by_ihc", "her2_status_by_ihc",
     "her2_ihc_score", "her2_fish_status", "her2_cent17_ratio"),
    ("bcr_patient_barcode", "breast_carcinoma_estrogen_receptor_status",
     "immunohistochemistry_positive_cell_score", "breast_carcinoma_progesterone_receptor_status",
     "lab_proc_her2_neu_immunohistochemistry_receptor_status", "her2_immunohistochemistry_level_result",
     "lab_procedure_her2_neu_in_situ_hybrid_outcome_type", "her2_neu_chromosone_17_signal_ratio_value"),
    ("CDE_ID:2673794", "CDE_ID:2957359", "CDE_ID:2230166", "CDE_ID:2957357", "CDE_ID:2957563", "CDE_ID:2178402",
     "CDE_ID:2854089", "CDE_ID:2497552"),
)  # fmt: skip
"""The three header rows of TCGA's table, without the columns that no label is read from."""

MISSING, UNTESTED = "[Not Available]", "[Not Evaluated]"

PATIENTS: tuple[tuple[str, str, str, int], ...] = (
    ("Equivocal", "2+", "Negative", 19), ("Equivocal", "2+", "Positive", 1), ("Equivocal", "2+", UNTESTED, 1),
    ("Equivocal", MISSING, "Negative", 1), ("Indeterminate", MISSING, UNTESTED, 1), ("Negative", "0", "Negative", 5),
    ("Negative", "0", UNTESTED, 9), ("Negative", "1+", "Negative", 13), ("Negative", "1+", UNTESTED, 9),
    ("Negative", MISSING, "Negative", 5), ("Negative", MISSING, UNTESTED, 10), ("Positive", "3+", "Positive", 4),
    ("Positive", "3+", UNTESTED, 3), ("Positive", MISSING, "Positive", 1), ("Positive", MISSING, UNTESTED, 3),
    (UNTESTED, MISSING, "Negative", 11), (UNTESTED, MISSING, "Positive", 1),
)  # fmt: skip
"""HER2 by IHC, its score, FISH → number of patients, as in the first hundred of TCGA-BRCA without those of NAMED."""

NAMED = (
    ("TCGA-4H-AAAK", "Positive", "Positive", "Equivocal", "2+", UNTESTED),
    ("TCGA-A2-A04U", "Negative", "Negative", "Negative", "1+", "Positive"),
    ("TCGA-A2-A0EQ", "Negative", "Negative", "Positive", "3+", "Negative"),
)
"""Barcode, ER, PR, HER2 by IHC, its score, FISH. The second and the third contradict themselves."""


def write_labels(path: Path) -> None:
    """Write a table of 100 invented patients with the headers, the words and the contradictions of TCGA's."""
    drawn = [status for *status, count in PATIENTS for _ in range(count)]
    receptors = ["Positive", "Positive", "Positive", "Negative"]
    rows = [*NAMED]
    for k, status in enumerate(drawn):
        rows.append((f"TCGA-ST-{k:04d}", receptors[k % 4], receptors[k // 2 % 4], *status))
    lines = ["\t".join(row) for row in HEADERS]
    lines += ["\t".join((row[0], row[1], MISSING, *row[2:], MISSING)) for row in sorted(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_geojson(folder: Path) -> None:
    """Write a bare list of Features with a classification, one bare Feature with a hole, and a FeatureCollection."""
    old = {"isLocked": False, "measurements": []}
    parts = [[_ring(33000, 54000 + 9000 * k, 4000 - 600 * k)] for k in range(3)]
    tumour = {"classification": {"name": "Tumor", "colorRGB": -3670016}, **old}
    border = {"classification": {"name": "Invborder", "colorRGB": -16711936}, **old}
    listed = [_feature("MultiPolygon", parts, tumour), _feature("MultiPolygon", parts[::-1], border)]
    _write(folder / "geojson_example.json", listed)
    holed = [_ring(11700, 18100, 1600), _ring(12100, 18000, 400)[::-1]]
    _write(folder / "holed.geojson", _feature("Polygon", holed, {"objectType": "annotation"}))
    named = []
    for k, name in enumerate(("UT", "I", "I")):
        properties = {"objectType": "annotation", "name": name, "color": [255, 0, 0]}
        named.append(_feature("Polygon", [_ring(8900, 6300 + 1500 * k, 500)], properties))
    _write(folder / "qupath05.geojson", {"type": "FeatureCollection", "features": named})


def _ring(x: float, y: float, radius: float, points: int = 120) -> list[list[float]]:
    """A closed, wavy circle in level-0 px."""
    angles = np.linspace(0, 2 * np.pi, points + 1)
    radii = radius * (1 + 0.1 * np.sin(5 * angles))
    ring = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1).round(2)
    return [*ring[:-1].tolist(), ring[0].tolist()]


def _feature(kind: str, coordinates: list[Any], properties: dict[str, Any]) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "PathAnnotationObject", "geometry": geometry, "properties": properties}


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
