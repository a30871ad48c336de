"""Cells are written as QuPath cell objects, and read again with the same values."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely

from her2batch.errors import InputError
from her2batch.exchange.cells.qupath_cells import MEASUREMENTS, cell_features, read_cells
from her2batch.exchange.geojson import write_feature_collection
from her2batch.files.parquet import write_parquet
from her2batch.store import schemas
from her2batch.store.tables.cells import cells_table
from tests.store.tables.test_cells import random_cells

MPP = 0.25


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder, table = tmp_path_factory.mktemp("qupath"), cells_table("S1", random_cells(2000))
    write_parquet(table, folder / "S1.parquet", schemas.layout_of("cells"))
    write_feature_collection(folder / "S1.cells.geojson", cell_features(folder / "S1.parquet", MPP))
    return folder / "S1.cells.geojson", {name: table[name].to_numpy() for name in table.column_names[1:]}


def test_objects_are_cells_with_nucleus_class_and_measurements(exported: tuple[Path, dict]) -> None:
    path, columns = exported
    features = json.loads(path.read_text())["features"]
    assert len(features) == 2000
    for k, one in enumerate(features[::97]):
        own = one["properties"]
        assert own["objectType"] == "cell"
        assert set(own["measurements"]) == {"Cell", *MEASUREMENTS.values()}
        outer, inner = (shapely.geometry.shape(one[name]) for name in ("geometry", "nucleusGeometry"))
        assert outer.is_valid
        assert outer.buffer(0.2).contains(inner)
        assert inner.area * MPP**2 == pytest.approx(columns["area"][97 * k], rel=0.05)
        base = "Tumor" if columns["tumour"][97 * k] >= 0.5 else "Other"
        assert own["classification"]["name"].startswith(base)


def test_cells_of_a_slide_that_cannot_be_scored_have_no_category(tmp_path: Path) -> None:
    write_parquet(cells_table("S1", random_cells(20)), tmp_path / "S1.parquet", schemas.layout_of("cells"))
    features = [json.loads(text) for text in cell_features(tmp_path / "S1.parquet", MPP, scored=False)]
    assert {one["properties"]["classification"]["name"] for one in features} == {"Tumor", "Other"}
    assert len({tuple(one["properties"]["classification"]["color"]) for one in features}) == 1


def test_what_is_written_is_read_again(exported: tuple[Path, dict]) -> None:
    path, columns = exported
    found, others = read_cells(path, MPP)
    assert others == 0
    for name in MEASUREMENTS:
        assert found[name] == pytest.approx(columns[name], rel=1e-6, abs=1e-6), name
    assert (found["category"] == columns["category"]).all()
    assert np.abs(found["x"] - columns["x"]).max() < 0.2


def feature(classification: object, **properties: object) -> dict:
    ring = [[0, 0], [40, 0], [40, 40], [0, 40], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"geometry": geometry, "properties": {"objectType": "cell", "classification": classification, **properties}}


def test_cells_of_qupath_without_our_measurements(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    classes = [{"name": "Tumor: 3+"}, {"names": ["Stroma", "Negative"]}, "1+", {"name": "Immune cells: 2+"}]
    other = {"geometry": feature("x")["geometry"], "properties": {"objectType": "annotation"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [other, *map(feature, classes)]}))
    found, others = read_cells(path, MPP)
    assert others == 1
    assert found["category"].tolist() == [3, 0, 1, 2]
    assert found["tumour"].tolist() == [1, 0, 1, 0]
    assert found["intense"].tolist() == [1, 0, 0, 0]
    assert found["area"].tolist() == [100.0] * 4


@pytest.mark.parametrize("classification", [None, "Tumor", {"name": "Positive"}])
def test_cells_without_intensity_are_refused_with_the_remedy(tmp_path: Path, classification: object) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([feature("1+"), feature(classification)]))
    with pytest.raises(InputError, match=r"feature 2 .* no intensity.*Set cell intensity"):
        read_cells(path, MPP)


def test_a_file_without_cells_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([feature("1+", objectType="annotation")]))
    with pytest.raises(InputError, match="has no cells"):
        read_cells(path, MPP)


PEAK = """
import resource, sys
from pathlib import Path
from her2batch.exchange.cells.qupath_cells import cell_features
from her2batch.exchange.geojson import write_feature_collection
write_feature_collection(Path(sys.argv[2]), cell_features(Path(sys.argv[1]), 0.25))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
"""Program that exports a table of cells and prints its greatest memory, MB."""


@pytest.mark.long
def test_memory_of_the_export_of_half_a_million_cells_is_bounded(tmp_path: Path) -> None:
    peaks = []
    for n in (1_000, 500_000):
        table = tmp_path / f"{n}.parquet"
        write_parquet(cells_table("S1", random_cells(n)), table, schemas.layout_of("cells"))
        command = [sys.executable, "-c", PEAK, str(table), str(tmp_path / "cells.geojson")]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert (tmp_path / "cells.geojson").stat().st_size > 500_000_000
    assert peaks[1] - peaks[0] < 300
