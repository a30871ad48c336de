"""Outlines of nuclei: drawn again from the pyramid, and circles where that is not possible."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from her2batch.exchange.cells.outlines import CORNERS, cell_outlines, circles
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.slide import Box
from her2batch.store.cohort import Cohort
from her2batch.store.tables.cell_provenance import CellProvenance
from tests.conftest import tissue_image, write_slide


@pytest.fixture(scope="module", params=[0.25, 0.23])
def cohort(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("outlines")
    (folder / "scans").mkdir()
    write_slide(folder / "scans" / "a.tiff", tissue_image(1600, 1400, seed=2, brown=0.3), mpp=request.param, levels=2)
    assert ingest(IngestRequest(folder / "scans", folder / "cohort"), Plan(), Resources(workers=0)).done == 1
    return Cohort(folder / "cohort")


def test_outlines_surround_the_cells_of_the_table(cohort: Cohort) -> None:
    cells = pq.read_table(cohort.table("cells", "a"))
    provenance, box = CellProvenance.of(cells), Box(600, 500, 400, 400)
    x, y = (cells[name].to_numpy() for name in ("x", "y"))
    cells = cells.filter((x >= 600) & (x < 1000) & (y >= 500) & (y < 900))
    assert cells.num_rows > 20
    with Pyramid(cohort.pyramid("a")) as slide:
        found = cell_outlines(slide, cells, provenance, box, 0.5)
        mpp = slide.info.mpp
    drawn_again = ~np.isclose(found.corners, circles(cells, mpp)).all(axis=(1, 2))
    assert drawn_again.mean() > 0.95
    rings = shapely.polygons(found.corners)
    assert shapely.contains_xy(rings, cells["x"].to_numpy(), cells["y"].to_numpy()).all()
    ratio = shapely.area(rings) * mpp**2 / cells["area"].to_numpy()
    assert np.median(ratio) == pytest.approx(1, abs=0.3)


def test_imported_cells_are_circles_with_their_area(cohort: Cohort) -> None:
    cells = pq.read_table(cohort.table("cells", "a")).slice(0, 9)
    with Pyramid(cohort.pyramid("a")) as slide:
        found = cell_outlines(slide, cells, CellProvenance(source="QuPath"), Box(0, 0, 500, 500), 0.5)
        mpp = slide.info.mpp
    assert found.corners.shape == (9, CORNERS, 2)
    areas = shapely.area(shapely.polygons(found.corners)) * mpp**2
    assert areas == pytest.approx(cells["area"].to_numpy(), rel=1e-6)


def test_no_cells_have_no_outlines(cohort: Cohort) -> None:
    cells = pq.read_table(cohort.table("cells", "a"))
    with Pyramid(cohort.pyramid("a")) as slide:
        found = cell_outlines(slide, cells.slice(0, 0), CellProvenance.of(cells), Box(0, 0, 50, 50), 0.5)
    assert found.corners.shape == (0, CORNERS, 2)
