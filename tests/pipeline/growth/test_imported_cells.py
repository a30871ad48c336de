"""Cells of QuPath replace those of a slide, say where they come from, and score it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.exchange.outgoing import ExportRequest, export_cohort
from her2batch.pipeline.growth.imported_cells import IMPORTED, find_cell_files, import_cells, tiles_of_points
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.tables.cell_provenance import CellProvenance
from tests.conftest import tissue_image, write_slide


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    (tmp_path / "scans").mkdir()
    write_slide(tmp_path / "scans" / "a.tiff", tissue_image(1600, 1400, seed=2, brown=0.3), levels=2)
    assert ingest(IngestRequest(tmp_path / "scans", tmp_path / "cohort"), Plan(), Resources(workers=0)).done == 1
    return Cohort(tmp_path / "cohort")


def test_exported_cells_can_be_imported_again(cohort: Cohort, tmp_path: Path) -> None:
    found = export_cohort(ExportRequest(cohort.root, "geojson", tmp_path / "out", what="cells"))
    assert (found.files, found.failures) == (1, {})
    before, scored = cohort.read("cells", "a"), cohort.read("predictions/cells", "a").to_pylist()
    by_area = cohort.read("predictions/membrane", "a")
    files = find_cell_files([tmp_path / "out" / "a.cells.geojson"])
    summary = import_cells(cohort.root, files, Pseudonymizer())
    assert (summary.slides, summary.failures, summary.exit_code) == ({"a": before.num_rows}, {}, 0)
    after = cohort.read("cells", "a")
    assert CellProvenance.of(after).source == "QuPath"
    assert np.sort(after["area"]) == pytest.approx(np.sort(before["area"]), abs=1e-6)
    again = cohort.read("predictions/cells", "a").to_pylist()
    assert [one["predicted"] for one in again] == [one["predicted"] for one in scored]
    assert all(IMPORTED in one["reasons"] for one in again)
    assert IMPORTED in cohort.rows()["a"]["flags"]
    assert cohort.read("predictions/membrane", "a") == by_area  # the same cells say the same
    assert list(verify_cohort(cohort)) == []


def test_cells_are_imported_where_no_membranes_were_measured(cohort: Cohort, tmp_path: Path) -> None:
    export_cohort(ExportRequest(cohort.root, "geojson", tmp_path / "out", what="cells"))
    cohort.add_tables(cohort.rows()["a"], {}, ["membrane", "predictions/membrane"])
    summary = import_cells(cohort.root, find_cell_files([tmp_path / "out" / "a.cells.geojson"]), Pseudonymizer())
    assert (summary.failures, summary.exit_code) == ({}, 0)
    assert all(IMPORTED in one["reasons"] for one in cohort.read("predictions/cells", "a").to_pylist())


def test_cells_of_another_slide_are_refused_and_nothing_changes(cohort: Cohort, tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    ring = "[[90000, 90000], [90040, 90000], [90040, 90040], [90000, 90000]]"
    geometry = f'{{"type": "Polygon", "coordinates": [{ring}]}}'
    path.write_text(f'[{{"geometry": {geometry}, "properties": {{"objectType": "cell", "classification": "1+"}}}}]')
    before = cohort.read("cells", "a")
    summary = import_cells(cohort.root, [path, tmp_path / "b.geojson"], Pseudonymizer())
    assert summary.exit_code == 2
    assert "none of its cells lies in the tissue" in summary.failures[str(path)]
    assert cohort.read("cells", "a") == before


def test_points_find_their_tile() -> None:
    tiles = pa.table({"x": [0, 448, 896], "y": [0, 0, 448], "size": [448, 448, 448]})
    x, y = np.array([10.0, 447.9, 448.0, 900.0, 900.0]), np.array([10.0, 0.0, 447.0, 10.0, 450.0])
    assert tiles_of_points(tiles, x, y).tolist() == [0, 0, 1, -1, 2]
