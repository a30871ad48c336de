"""RunMetrics: what a run tells Prometheus. That a real endpoint shows it is a test of the jobs (tests/test_jobs.py)."""

import re
from pathlib import Path

from her2batch.pipeline.progress import RunProgress
from her2batch.runtime import telemetry
from her2batch.runtime.ray_session import RaySession
from her2batch.runtime.telemetry import RunMetrics, TileMetrics


def test_rows_of_every_kind_are_counted(ray_session: RaySession) -> None:
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


def test_every_metric_is_named_for_the_project_once() -> None:
    names = re.findall(r'(?:Counter|Gauge)\("(\w+)"', Path(telemetry.__file__).read_text())
    assert all(name.startswith("her2batch_") for name in names)
    assert len(set(names)) == len(names)
