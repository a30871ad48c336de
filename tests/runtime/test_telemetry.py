"""The metrics of a run. That a real endpoint shows them is tested with the job files (tests/test_jobs.py)."""

import re
from pathlib import Path

from her2batch.pipeline.progress import RunProgress
from her2batch.runtime import telemetry
from her2batch.runtime.ray_session import RaySession
from her2batch.runtime.telemetry import RunMetrics, TileMetrics


def test_every_kind_of_row_is_counted(ray_session: RaySession) -> None:
    metrics = RunMetrics()
    done = {"status": "done", "bytes": 10, "files": [{"bytes": 3}, {"bytes": 4}]}
    metrics.slide_ended(done, RunProgress(1, 0, 2, left=(1.0, 2.0)))
    metrics.slide_ended(
        {"status": "failed", "bytes": 0, "files": []}, RunProgress(2, 1, 2)
    )  # nothing to add is no error
    metrics.calls_waiting({"cpu": 0, "tiles": 7})
    tiles = TileMetrics("cpu")
    tiles.add(0)
    tiles.add(100)


def test_metric_names_are_unique_and_begin_with_the_project() -> None:
    names = re.findall(r'(?:Counter|Gauge)\("(\w+)"', Path(telemetry.__file__).read_text())
    assert all(name.startswith("her2batch_") for name in names)
    assert len(set(names)) == len(names)
