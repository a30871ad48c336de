"""The list of stages: every stage gets what it takes; a new stage with its own table is one row here and one schema."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from her2batch.errors import SlideError
from her2batch.models.encoders import embedding_dim
from her2batch.pipeline import stages
from her2batch.pipeline.inventory import SlideJob
from her2batch.pipeline.queue import SlideQueue
from her2batch.pipeline.slide_state import SlideState, Stage, StageContext, Tables, TileColumns, Work, check_stages
from her2batch.pipeline.stages import STAGES, active_stages, check_mpp
from her2batch.pipeline.worker import SlideWorker
from her2batch.runtime.ray_session import RaySession
from her2batch.runtime.scheduler import run_on_ray
from her2batch.runtime.serial import run_serially
from her2batch.runtime.telemetry import RunMetrics
from her2batch.settings import Plan, Resources
from her2batch.slides.readers import open_slide
from her2batch.store import schemas
from her2batch.store.audit import cohort_status, verify_cohort
from her2batch.store.cohort import Cohort
from her2batch.store.tables.column import Column
from her2batch.store.training_run import encoder_folder
from her2batch.vision.membrane import TileBatch
from tests.runtime.test_ingest import store_contents
from tests.runtime.test_scheduler import slide_jobs


def test_every_stage_takes_only_what_earlier_stages_give() -> None:
    check_stages(STAGES)


def test_missing_value_is_refused_with_the_name_of_the_stage() -> None:
    without = [stage for stage in STAGES if stage.name != "tissue"]
    with pytest.raises(ValueError, match=r"stage quality needs .'tissue_tiles'"):
        check_stages(without)


def test_stages_that_run_in_parallel_may_not_take_from_each_other() -> None:
    early = [replace(stage, over="aside") if stage.name == "rules" else stage for stage in STAGES]
    with pytest.raises(ValueError, match=r"stage rules needs .*'measurements'"):
        check_stages(early)


def test_networks_run_only_with_a_bundle() -> None:
    names = [stage.name for stage in active_stages(StageContext(Plan()))]
    assert "membrane" in names
    assert "thumbnail" not in names
    assert "predict" not in names
    assert not any(name.startswith("patches") for name in names)


def test_table_of_an_encoder_has_a_plain_name() -> None:
    assert encoder_folder("timm:resnet18.a1_in1k") == "timm-resnet18.a1_in1k"
    assert encoder_folder("uni2-h") == "uni2-h"


# -- a stage with a table of its own -----------------------------------------------------------------------------

SPOTS = (
    Column("slide_id", pa.string(), "key"),
    Column("tile", pa.int32(), "as in tiles"),
    Column("spot", pa.int32(), "number in the tile, from 0"),
    Column("grey", pa.float32(), "mean of the tile, 0–255"),
)


def find_spots(_: StageContext) -> Work:
    """Give 0 to 2 spots for each tile, by its pixels: any number of rows a tile, as with cells."""

    def work(batch: TileBatch) -> TileColumns:
        assert batch.pixels.shape[1:] == (64, 64, 3)
        grey = batch.pixels.mean(axis=(1, 2, 3))
        counts = grey.astype(int) % 3
        spots = np.concatenate([np.arange(count) for count in counts])
        return TileColumns(np.repeat(np.arange(len(grey)), counts), {"spot": spots, "grey": np.repeat(grey, counts)})

    return work


def spot_tables(_: StageContext, state: SlideState) -> Tables:
    found: TileColumns = state.get("spots")
    order = np.argsort(found.tiles, kind="stable")
    columns: Mapping[str, object] = {
        "slide_id": pa.array([state.slide_id] * len(order), pa.string()),
        "tile": found.tiles[order].astype(np.int32),
        "spot": found.column("spot")[order].astype(np.int32),
        "grey": found.column("grey")[order].astype(np.float32),
    }
    return {"spots": pa.table(columns, schemas.table_schema("spots"))}


def register_spots() -> None:
    row = Stage("spots", "tiles", ("tissue_tiles", "stain_fit"), "spots", find_spots, spot_tables)
    if not any(stage.name == row.name for stage in stages.STAGES):
        stages.STAGES = (*stages.STAGES, row)
    schemas.TABLES["spots"] = SPOTS


@dataclass
class SpotWorker(SlideWorker):
    """A worker in whose process the stage is registered."""

    def ready(self, roles: tuple[str, ...] | None = None) -> None:
        register_spots()
        super().ready(roles)


@pytest.mark.long
def test_new_stage_with_its_own_table_is_one_row_and_one_schema(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.pipeline.test_stages as here

    ray_session.ray.cloudpickle.register_pickle_by_value(here)
    make_slide("a.tiff", size=(2600, 2400), brown=0.4)
    make_slide("small.tiff", size=(700, 600))
    monkeypatch.setattr(stages, "STAGES", stages.STAGES)
    monkeypatch.setitem(schemas.TABLES, "spots", SPOTS)
    register_spots()

    def worker(out: Path, **more: int) -> SlideWorker:
        cohort, plan = Cohort(out), Plan(tile=64)
        cohort.create(plan)
        return here.SpotWorker(cohort, StageContext(plan, dims={"stain": embedding_dim("stain")}), **more)

    def jobs(of: SlideWorker) -> list[SlideJob]:
        return slide_jobs(tmp_path / "scans", of)

    plain, shared = worker(tmp_path / "plain"), worker(tmp_path / "shared", range_batches=1, split_batches=1)
    rows = [result.row for result in run_serially(plain, SlideQueue(jobs(plain)))]
    queue = SlideQueue(jobs(shared))
    rows += [result.row for result in run_on_ray(ray_session, shared, queue, Resources(workers=2), RunMetrics())]
    assert [row["error"] for row in rows] == [None] * 4
    assert [row["status"] for row in rows] == ["done"] * 4
    assert store_contents(tmp_path / "plain") == store_contents(tmp_path / "shared")
    for cohort in (plain.cohort, shared.cohort):
        table = pq.read_table(cohort.table("spots", "a"))
        tiles = cohort.read("tiles", "a").num_rows
        assert table.schema.names == [column.name for column in SPOTS]
        assert table.num_rows > tiles / 2
        assert table["tile"].to_pylist() == sorted(table["tile"].to_pylist())
        assert set(np.bincount(table["tile"], minlength=tiles)) == {0, 1, 2}
        assert "spots" in cohort.table_names()
        assert cohort_status(cohort).strays == ["a", "small"]  # no intake table: the workers ran without an ingest
        assert list(verify_cohort(cohort)) == []
        pq.write_table(table.drop_columns(["grey"]), cohort.table("spots", "a"))
        assert [problem.slide_id for problem in verify_cohort(cohort)] == ["a"]


def test_slide_may_be_up_to_a_quarter_coarser_than_the_tiles(make_slide: Callable) -> None:
    info = open_slide(make_slide()).info
    assert check_mpp(replace(info, mpp=0.62), 0.5).mpp == 0.62
    with pytest.raises(SlideError, match=r"0\.63 µm/px, the target is 0\.5") as refused:
        check_mpp(replace(info, mpp=0.63), 0.5)
    assert refused.value.code == "too-coarse"
