"""The process of an actor: which libraries it loads, in which order, and its memory limit."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from her2batch.runtime.ray_session import RaySession


@pytest.mark.slow
def test_gpu_worker_loads_cucim_before_torch(tmp_path: Path) -> None:
    """In the other order cuCIM is refused, because it would hang."""
    pytest.importorskip("cucim")
    code = """
import sys
from pathlib import Path
from her2batch.runtime.actor import Actor
from her2batch.pipeline.slide_state import StageContext
from her2batch.pipeline.worker import SlideWorker
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
worker = SlideWorker(Cohort(Path(sys.argv[1])), StageContext(Plan(reader="cucim")))
actor = Actor(worker, ("tiles",), 0, gpu_share=1.0)
actor._worker.ready(("tiles",))
print(list(actor._worker.works) != [], "torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert run.stdout.split() == ["True", "True"], run.stderr


def test_cpu_worker_has_a_memory_limit_and_sees_no_gpu(ray_session: RaySession) -> None:
    @ray_session.ray.remote(num_cpus=0)
    class Probe:
        def look(self) -> tuple[int, str]:
            from her2batch.runtime.actor import _limit

            _limit(3_000_000_000)
            return resource.getrlimit(resource.RLIMIT_DATA)[0], os.environ.get("CUDA_VISIBLE_DEVICES", "all")

    probe = Probe.options(runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}).remote()
    assert ray_session.ray.get(probe.look.remote()) == (3_000_000_000, "")
