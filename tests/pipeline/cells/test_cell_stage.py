"""Cells of a slide: each nucleus once, whatever the blocks, and with the decisions of regions."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from scipy.spatial import cKDTree

from her2batch.exchange.regions import SlideRegions
from her2batch.pipeline.cells import cell_stage
from her2batch.pipeline.cells.block_image import BlockImage
from her2batch.pipeline.cells.cell_stage import marker_place, override_likelihood, own_cells
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.vision.cells.detection import Cells
from tests.conftest import tissue_image, write_slide

PITCH = 44  # level-0 px between the nuclei of tissue_image
SERIAL = Resources(workers=0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of several blocks, in chunks of 64 px."""
    folder = tmp_path_factory.mktemp("cells")
    (folder / "scans").mkdir()
    write_slide(folder / "scans" / "a.tiff", tissue_image(3000, 2600, seed=5, brown=0.35), tile=64, levels=2)
    return folder


@pytest.fixture(scope="module")
def cohort(slide: Path) -> Path:
    assert ingest(IngestRequest(slide / "scans", slide / "cohort"), Plan(tile=112), SERIAL).done == 1
    return slide / "cohort"


def table(cohort: Path, name: str):
    return pq.read_table(cohort / "tables" / name / "a.parquet")


def test_every_nucleus_of_the_tiles_is_found_once(cohort: Path) -> None:
    cells, tiles = table(cohort, "cells").to_pandas(), table(cohort, "tiles").to_pandas()
    found = cells[["x", "y"]].to_numpy()
    assert cKDTree(found).query(found, k=2)[0][:, 1].min() > 0.5 * PITCH, "two cells of one nucleus"
    x, y = np.meshgrid(np.arange(PITCH / 2, 3000, PITCH), np.arange(PITCH / 2, 2600, PITCH))
    nuclei = np.stack([x.ravel(), y.ravel()], axis=1)
    inside = ((nuclei / [3000, 2600] - 0.5) ** 2).sum(axis=1) < 0.14
    corners = tiles[["x", "y"]].to_numpy()
    of_tile = [((corners <= one) & (one < corners + tiles["size"][0])).all(axis=1).any() for one in nuclei]
    wanted = nuclei[inside & np.array(of_tile)]
    distance, _ = cKDTree(found).query(wanted)
    assert len(wanted) > 1000
    assert (distance < 8).mean() > 0.99
    assert distance.max() < PITCH


def test_cells_belong_to_the_tile_of_their_centre_in_order(cohort: Path) -> None:
    cells, tiles = table(cohort, "cells").to_pandas(), table(cohort, "tiles").to_pandas()
    assert cells["cell"].tolist() == list(range(len(cells)))
    own = tiles.iloc[cells["tile"]].reset_index()
    for axis in ("x", "y"):
        assert (cells[axis] >= own[axis] - 1).all()
        assert (cells[axis] <= own[axis] + own["size"] + 1).all()
    assert cells["tile"].is_monotonic_increasing


def test_other_tables_are_the_same_without_cells(slide: Path, cohort: Path) -> None:
    assert ingest(IngestRequest(slide / "scans", slide / "off"), Plan(tile=112, cells="off"), SERIAL).done == 1
    assert not (slide / "off" / "tables" / "cells").exists()
    assert not (slide / "off" / "tables" / "predictions" / "cells").exists()
    for name in ("tiles", "membrane", "embeddings/stain", "predictions/membrane"):
        paths = [folder / "tables" / name / "a.parquet" for folder in (cohort, slide / "off")]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name


def test_threads_that_decode_give_the_same_cells(slide: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from her2batch.pipeline.worker import SlideWorker

    begin = SlideWorker.begin
    monkeypatch.setattr(
        SlideWorker, "begin", lambda self, *rest, **more: (_threads(self), begin(self, *rest, **more))[1]
    )
    assert ingest(IngestRequest(slide / "scans", slide / "threads"), Plan(tile=112), SERIAL).done == 1
    paths = [folder / "tables" / "cells" / "a.parquet" for folder in (cohort, slide / "threads")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def _threads(worker) -> None:
    worker.threads = 3


def cells_at(*places: tuple[float, float]) -> Cells:
    x, y = (np.array([place[axis] for place in places], np.float32) for axis in (0, 1))
    ones = np.ones(len(places), np.float32)
    return Cells(x, y, *([ones] * 10), np.zeros(len(places), np.uint8))


def test_a_block_owns_the_cells_of_its_tiles_only() -> None:
    tiles = np.array([[0, 0, 448], [448, 0, 448], [896, 0, 448]], np.int32)
    image = BlockImage(np.zeros((400, 700, 3), np.uint8), 200, 0, None, np.array([1, 2]), 224)
    found = own_cells(cells_at((10, 50), (23.4, 50), (23.6, 50), (250, 50), (300, 300)), image, tiles)
    assert found.tiles.tolist() == [1, 2], "the first two lie in tile 0, the last below all tiles"
    assert found.column("x").tolist() == pytest.approx([224.1, 450.5], abs=1e-3)


def test_a_nucleus_that_two_blocks_own_is_kept_once() -> None:
    columns = {
        "x": np.array([10.0, 11.0, 50.0, 51.0]), "y": np.full(4, 5.0), "rim": np.array([1.0, 1.0, 1.0, 1.0]),
        "block": np.array([0, 1, 2, 2]),
    }  # fmt: skip
    kept = cell_stage._without_doubles(columns, 6.0)
    assert kept["x"].tolist() == [10.0, 50.0, 51.0], "two cells of one block are two cells"


def test_regions_decide_what_is_tumour() -> None:
    x, y, tumour = np.array([5.0, 50.0, 95.0]), np.full(3, 5.0), np.array([0.2, 0.9, 0.9])
    inside, excluded = shapely.box(0, 0, 60, 10), shapely.box(40, 0, 100, 10)
    assert override_likelihood(tumour, x, y, None).tolist() == tumour.tolist()
    assert override_likelihood(tumour, x, y, SlideRegions(None, None)).tolist() == tumour.tolist()
    assert override_likelihood(tumour, x, y, SlideRegions(inside, None)).tolist() == [1, 1, 0]
    assert override_likelihood(tumour, x, y, SlideRegions(None, excluded)).tolist() == [0.2, 0, 0]
    assert override_likelihood(tumour, x, y, SlideRegions(inside, excluded)).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("stain", "place"), [("her2", "membrane"), (None, "membrane"), ("er", "nuclear"), ("ki67", "nuclear")]
)
def test_dab_is_looked_for_where_the_marker_lies(stain: str | None, place: str) -> None:
    assert marker_place(stain) == place


def test_a_cohort_from_before_cells_goes_on_without_them(slide: Path, tmp_path: Path) -> None:
    import tomllib

    import tomli_w

    from her2batch.pipeline.resume.plan_change import PlanChangedError, settle_plan
    from her2batch.store.cohort import Cohort

    request = IngestRequest(slide / "scans", tmp_path / "cohort")
    assert ingest(request, Plan(tile=112, cells="off"), SERIAL).done == 1
    cohort = Cohort(request.out)
    stored = tomllib.loads(cohort.settings.read_text())
    del stored["plan"]["cells"]
    cohort.settings.write_text(tomli_w.dumps(stored))
    assert cohort.plan().cells == "off"
    assert ingest(request, Plan(), SERIAL).already == 1, "settings that are not given are those of the cohort"
    with pytest.raises(PlanChangedError, match=r"cells off → all.* 1 finished slide"):
        settle_plan(cohort, Plan(cells="all"))
    assert ingest(IngestRequest(slide / "scans", request.out, replan=True), Plan(cells="all"), SERIAL).fresh == ["a"]
    assert cohort.read("cells", "a").num_rows > 1000
