"""The estimate of --dry-run, which writes nothing."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from her2batch.pipeline.cost_model import Costs
from her2batch.pipeline.estimate import CELL_BYTES, MIN_FINISHED, estimate_ingest
from her2batch.runtime.ingest import IngestRequest, dry_run, ingest
from her2batch.settings import Plan, Resources


def test_estimate_names_slides_that_will_fail_and_writes_nothing(real_data: Path, tmp_path: Path) -> None:
    plan, inventory, cohort = dry_run(IngestRequest(real_data / "slides", tmp_path / "c"), Plan())
    rows, total = estimate_ingest(inventory, plan, Resources(workers=2), cohort)
    what = {row["slide_id"]: row["what"] for row in rows}
    assert what["boxes"] == "will fail: no-mpp"
    assert what["jpeg"] == "will fail: too-coarse"
    assert what["CMU-1-Small-Region"].startswith("ingest (aperio")
    assert (total["todo"], total["duplicate"]) == (10, 1)
    assert not (tmp_path / "c").exists()


def test_estimate_is_longer_for_an_expensive_encoder(real_data: Path, tmp_path: Path) -> None:
    seconds = {}
    for name in ("stain", "uni"):
        plan, inventory, cohort = dry_run(IngestRequest(real_data / "slides", tmp_path / "c"), Plan(encoders=(name,)))
        seconds[name] = estimate_ingest(inventory, plan, Resources(workers=2), cohort)[1]["seconds"]
    assert seconds["uni"] > 3 * seconds["stain"]


def test_estimate_with_a_gpu_is_short_for_an_expensive_encoder(real_data: Path, tmp_path: Path) -> None:
    plan, inventory, cohort = dry_run(IngestRequest(real_data / "slides", tmp_path / "c"), Plan(encoders=("uni",)))
    cpu = estimate_ingest(inventory, plan, Resources(workers=2), cohort)[1]
    gpu = estimate_ingest(inventory, plan, Resources(workers=2, gpus=1), cohort)[1]
    assert cpu["bound"] == "cores"
    assert cpu["seconds_with_a_gpu"] == gpu["seconds"] < 0.5 * cpu["seconds"]


def test_estimate_counts_the_time_and_the_bytes_of_cells(tmp_path: Path, make_slide: Callable) -> None:
    make_slide("s.tiff", size=(900, 900))
    order, totals = IngestRequest(tmp_path / "scans", tmp_path / "c"), {}
    for cells in ("off", "all"):
        plan, inventory, cohort = dry_run(order, Plan(cells=cells))
        _, totals[cells] = estimate_ingest(inventory, plan, Resources(workers=0), cohort)
    more = {key: totals["all"][key] - totals["off"][key] for key in ("seconds", "bytes")}
    tiles = more["bytes"] / CELL_BYTES
    assert tiles > 1
    assert more["seconds"] == pytest.approx(tiles / Costs().cell_tiles_s, rel=0.01)


def test_estimate_uses_the_run_times_of_the_cohort(tmp_path: Path, make_slide: Callable) -> None:
    for k in range(MIN_FINISHED):
        make_slide(f"s{k}.tiff", seed=k, size=(900, 900))
    order = IngestRequest(tmp_path / "scans", tmp_path / "c")
    ingest(order, Plan(), Resources(workers=0))
    make_slide("new.tiff", seed=99, size=(900, 900))
    plan, inventory, cohort = dry_run(order, Plan())
    before = estimate_ingest(inventory, plan, Resources(workers=0), cohort)[1]["seconds"]
    run = next(cohort.runs.glob("ingest-*.parquet"))
    times = pq.read_table(run)
    slower = pc.multiply(times["seconds"], 3.0)
    pq.write_table(times.set_column(times.schema.get_field_index("seconds"), "seconds", slower), run)
    assert estimate_ingest(inventory, plan, Resources(workers=0), cohort)[1]["seconds"] == pytest.approx(3 * before)
