"""A slide whose tiles are measured on a device has the tables of the reference, within the bound of the features."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from her2batch.models.device_measurements.measure_tiles import DIFFERENCE_BOUND
from her2batch.models.encoders import embedding_dim
from her2batch.pipeline.slide_state import StageContext
from her2batch.pipeline.worker import SlideWorker
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
from tests.runtime.test_scheduler import slide_jobs

CONTEXT = StageContext(Plan(cells="off"), dims={"stain": embedding_dim("stain")})


def run_slide(folder: Path, scans: Path, context: StageContext, threads: int = 0) -> Cohort:
    """Process the only slide of a folder into a cohort of its own."""
    cohort = Cohort(folder)
    cohort.create(context.plan)
    worker = SlideWorker(cohort, context, threads=threads)
    result = worker.run(slide_jobs(scans, worker)[0])
    assert result.row["status"] == "done", result.trace
    return cohort


def assert_close(found: pa.Table, expected: pa.Table, bound: float) -> None:
    """Compare two tables: numbers with a fraction, also those of lists, within a bound, and all else exactly."""
    assert found.schema == expected.schema
    for row, other in zip(found.to_pylist(), expected.to_pylist(), strict=True):
        for name, value in other.items():
            many = value if isinstance(value, list) else [value]
            if many and isinstance(many[0], float):
                assert np.allclose(row[name], value, rtol=0, atol=bound), name
            else:
                assert row[name] == value, name


def test_tiles_measured_on_a_device_have_the_tables_of_the_reference(tmp_path: Path, make_slide: Callable) -> None:
    make_slide("a.tiff", size=(1400, 1200), brown=0.4)
    reference = run_slide(tmp_path / "reference", tmp_path / "scans", CONTEXT)
    found = run_slide(tmp_path / "device", tmp_path / "scans", replace(CONTEXT, tile_device="cpu"), threads=2)
    bounds = {"tiles": DIFFERENCE_BOUND, "membrane": DIFFERENCE_BOUND, "embeddings/stain": 2e-3}  # float16 up to 2.0
    for name, bound in {**bounds, "predictions/membrane": 0.001}.items():
        assert_close(found.read(name, "a"), reference.read(name, "a"), bound)
