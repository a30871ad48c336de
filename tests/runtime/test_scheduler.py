"""Slides on Ray actors: shared, lost and stopped, always with the bytes of the serial loop."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from her2batch.models.bundle import BundleInfo, ModelEntry
from her2batch.models.encoders import embedding_dim
from her2batch.models.nets import build_network
from her2batch.pipeline.inventory import SlideJob, take_inventory
from her2batch.pipeline.queue import SlideQueue
from her2batch.pipeline.slide_state import StageContext
from her2batch.pipeline.worker import SlideResult, SlideWorker
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.runtime.ray_session import RaySession
from her2batch.runtime.scheduler import _root_error, run_on_ray, step_limit
from her2batch.runtime.serial import run_serially
from her2batch.runtime.telemetry import RunMetrics
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.tasks import CLASSES, IHC_SCORES
from tests.models.bundles import bundle_of
from tests.runtime.test_ingest import store_contents

LIMITS = Resources(workers=2)


def worker_for(out: Path, **more: object) -> SlideWorker:
    plan = Plan(tile=64)
    cohort = Cohort(out)
    cohort.create(plan)
    return SlideWorker(cohort, StageContext(plan, dims={"stain": embedding_dim("stain")}), **more)


def slide_jobs(scans: Path, worker: SlideWorker) -> list[SlideJob]:
    inventory = take_inventory(scans, worker.cohort, worker.context.plan, Pseudonymizer(), {})
    return inventory.jobs


@pytest.mark.long
def test_shared_slide_has_the_same_bytes(tmp_path: Path, make_slide: Callable, ray_session: RaySession) -> None:
    make_slide("a.tiff", size=(2600, 2400), brown=0.4)
    reference = worker_for(tmp_path / "plain")
    list(run_serially(reference, SlideQueue(slide_jobs(tmp_path / "scans", reference))))
    shared = worker_for(tmp_path / "shared", range_batches=1, split_batches=1)
    finished = list(
        run_on_ray(ray_session, shared, SlideQueue(slide_jobs(tmp_path / "scans", shared)), LIMITS, RunMetrics())
    )
    assert [result.row["status"] for result in finished] == ["done"]
    assert finished[0].row["n_tiles"] > 100
    assert store_contents(tmp_path / "plain") == store_contents(tmp_path / "shared")


class CountingQueue(SlideQueue):
    """A queue that counts its refreshes, also those before its first slide is requested."""

    refreshes, before = 0, None

    def refresh(self) -> None:
        self.refreshes += 1

    def next_job(self) -> SlideJob | None:
        self.before = self.refreshes if self.before is None else self.before
        return super().next_job()


@pytest.mark.slow
def test_source_is_refreshed_while_no_worker_is_idle(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession
) -> None:
    """Otherwise the settle time of a slide that arrives while all workers are busy would start too late."""
    make_slide("a.tiff")
    worker = worker_for(tmp_path / "c")
    queue = CountingQueue(slide_jobs(tmp_path / "scans", worker))
    assert len(list(run_on_ray(replace(ray_session, workers=1), worker, queue, LIMITS, RunMetrics()))) == 1
    assert queue.before > 0


@pytest.mark.parametrize(
    ("fault", "words"), [("OutOfDiskError", "Ray's object store is full"), ("RaySystemError", "a worker stopped: ")]
)
def test_long_errors_of_ray_become_one_line(ray_session: RaySession, fault: str, words: str) -> None:
    ray = ray_session.ray

    def fails() -> None:
        raise getattr(ray.exceptions, fault)("one line\nand another")

    first = ray.remote(fails).remote()
    waits = ray.remote(lambda given: given).remote(first)
    for reference in (first, waits):
        with pytest.raises(ray.exceptions.RayError) as caught:
            ray.get(reference)
        assert "\n" in str(caught.value)
        assert str(_root_error(caught.value)).startswith(words)
        assert "\n" not in str(_root_error(caught.value))


@dataclass
class CrashingWorker(SlideWorker):
    """A worker whose process dies `deaths` times of slides called 'deadly'."""

    deaths: int = 99

    def begin(self, job: SlideJob, share: bool, always: bool = False) -> tuple[object, dict]:
        if job.slide_id == "deadly":
            seen = self.cohort.root / "deaths"
            count = int(seen.read_text()) if seen.exists() else 0
            seen.write_text(str(count + 1))
            if count < self.deaths:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().begin(job, share, always)


@pytest.mark.parametrize(("deaths", "outcome"), [(1, "done"), pytest.param(99, "failed", marks=pytest.mark.long)])
def test_slide_that_kills_its_worker_is_retried_twice(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession, deaths: int, outcome: str
) -> None:
    import tests.runtime.test_scheduler as here

    ray_session.ray.cloudpickle.register_pickle_by_value(here)
    for name in ("deadly.tiff", "b.tiff", "c.tiff"):
        make_slide(name, seed=len(name) + ord(name[0]), size=(900, 900))
    plan = Plan()
    cohort = Cohort(tmp_path / "c")
    cohort.create(plan)
    worker = here.CrashingWorker(cohort, StageContext(plan, dims={"stain": embedding_dim("stain")}), deaths=deaths)
    found: dict[str, SlideResult] = {}
    for result in run_on_ray(
        ray_session, worker, SlideQueue(slide_jobs(tmp_path / "scans", worker)), LIMITS, RunMetrics()
    ):
        found[result.row["slide_id"]] = result
    assert {name: result.row["status"] for name, result in found.items()} == {
        "deadly": outcome,
        "b": "done",
        "c": "done",
    }
    if outcome == "failed":
        assert found["deadly"].row["error_code"] == "worker-lost"
        assert (cohort.root / "deaths").read_text() == "3"


@dataclass
class HangingWorker(SlideWorker):
    """A worker whose process stops at slides called 'hanging': not even its own threads can end it."""

    def begin(self, job: SlideJob, share: bool, always: bool = False) -> tuple[object, dict]:
        if job.slide_id == "hanging":
            with (self.cohort.root / "tries").open("a") as file:
                file.write("once\n")
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().begin(job, share, always)


@pytest.mark.slow
def test_slide_that_hangs_fails_with_timeout_and_the_others_are_done(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession
) -> None:
    import tests.runtime.test_scheduler as here

    ray_session.ray.cloudpickle.register_pickle_by_value(here)
    for name in ("hanging.tiff", "b.tiff", "c.tiff"):
        make_slide(name, seed=len(name) + ord(name[0]), size=(900, 900))
    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    worker = here.HangingWorker(cohort, StageContext(Plan(), dims={"stain": embedding_dim("stain")}))
    limits = Resources(workers=2, patience=5)
    found = list(
        run_on_ray(ray_session, worker, SlideQueue(slide_jobs(tmp_path / "scans", worker)), limits, RunMetrics())
    )
    assert {result.row["slide_id"]: result.row["error_code"] for result in found} == {
        "hanging": "timeout",
        "b": None,
        "c": None,
    }
    assert (cohort.root / "tries").read_text() == "once\n"


def test_time_limit_grows_with_slow_encoders() -> None:
    assert step_limit(Plan(), 1800) == 1800
    assert step_limit(Plan(encoders=("stain", "uni")), 1800) > 1800 + 2 * 2048 / 1.3


@dataclass
class CrashingModelWorker(SlideWorker):
    """A worker whose process dies once, under its first model calls."""

    def measure(self, job: SlideJob, state: dict, name: str, lo: int, hi: int) -> object:
        dead = self.cohort.root / "dead"
        if name == "tiles" and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().measure(job, state, name, lo, hi)


@pytest.mark.long
def test_gpu_worker_that_dies_under_two_calls_is_replaced_once(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession, small_weights: Path
) -> None:
    import tests.runtime.test_scheduler as here

    ray_session.ray.cloudpickle.register_pickle_by_value(here)
    for name in "abcd":
        make_slide(f"{name}.tiff", seed=ord(name), brown=0.4)
    plan = Plan(encoders=("timm:test_vit",))
    cohort = Cohort(tmp_path / "c")
    cohort.create(plan)
    context = StageContext(plan, weights=small_weights, dims={"timm:test_vit": embedding_dim("timm:test_vit")})
    worker = here.CrashingModelWorker(cohort, context)
    session = replace(ray_session, workers=1, gpus=1)
    found = list(run_on_ray(session, worker, SlideQueue(slide_jobs(tmp_path / "scans", worker)), LIMITS, RunMetrics()))
    assert sorted((result.row["slide_id"], result.row["status"]) for result in found) == [
        (name, "done") for name in "abcd"
    ]
    assert (cohort.root / "dead").exists()


@pytest.mark.slow
def test_stop_ends_a_run_between_calls(tmp_path: Path, make_slide: Callable, ray_session: RaySession) -> None:
    for k in range(4):
        make_slide(f"s{k}.tiff", seed=k, size=(900, 900))
    worker = worker_for(tmp_path / "c")
    session = replace(ray_session, workers=1)
    running = run_on_ray(session, worker, SlideQueue(slide_jobs(tmp_path / "scans", worker)), LIMITS, RunMetrics())
    next(running)
    session.stopped.set()
    assert len(list(running)) < 3
    session.stopped.clear()
    assert 1 <= len(worker.cohort.rows()) < 4


@dataclass
class EnvironmentWorker(SlideWorker):
    """A worker that writes the environment of its process to a file."""

    def begin(self, job: SlideJob, share: bool, always: bool = False) -> tuple[object, dict]:
        import cucim  # noqa: F401  (takes 500 MB on every GPU in sight, so none may be)
        import torch

        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        facts = {name: os.environ.get(name) for name in names} | {"gpus": torch.cuda.device_count()}
        (self.cohort.root / "seen.json").write_text(json.dumps(facts))
        return super().begin(job, share, always)


@pytest.mark.long
def test_cpu_worker_uses_no_gpu_and_one_thread(tmp_path: Path, make_slide: Callable, ray_session: RaySession) -> None:
    import tests.runtime.test_scheduler as here

    ray_session.ray.cloudpickle.register_pickle_by_value(here)
    make_slide(size=(900, 900))
    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    worker = here.EnvironmentWorker(cohort, StageContext(Plan(), dims={"stain": embedding_dim("stain")}))
    list(run_on_ray(ray_session, worker, SlideQueue(slide_jobs(tmp_path / "scans", worker)), LIMITS, RunMetrics()))
    seen = json.loads((cohort.root / "seen.json").read_text())
    assert seen == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "gpus": 0}


def make_image_bundle(folder: Path) -> Path:
    """A bundle of small untrained networks, with which every branch runs."""
    entries, nets = [], {}
    for source, task, method in (
        ("patches-low", "her2-4way", "convnext-small"),
        ("patches-moderate", "her2-4way", "convnext-small"),
        ("thumbnail-224", "her2-3way", "resnet50"),
    ):
        kind = source.split("-")[0].removesuffix("es")
        file = f"{source}.safetensors"
        about = {"kind": kind, "task": task, "method": method, "input": source, "classes": CLASSES[task], "file": file}
        entries.append(ModelEntry(**about, size="tiny"))
        nets[file] = build_network(method, len(CLASSES[task]), 224, "tiny")
    tasks = ("her2-4way", "her2-3way")
    return bundle_of(
        folder, BundleInfo(her2batch="0.1.0", tasks=tasks, licence="none: untrained", models=tuple(entries)), nets
    ).path


@pytest.mark.slow
def test_gpu_pools_give_the_bytes_of_the_serial_loop(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession, small_weights: Path
) -> None:
    """With a GPU (here only declared) every model role has actors of its own; without, one process does it all."""
    make_slide("a.tiff", size=(1400, 1200), brown=0.4)
    bundle = make_image_bundle(tmp_path / "bundle")
    plan = Plan(encoders=("stain", "timm:test_vit"))
    for name, resources in {"plain": Resources(workers=0), "pools": Resources(workers=1, gpus=1)}.items():
        request = IngestRequest(tmp_path / "scans", tmp_path / name, bundle=bundle, weights=small_weights)
        summary = ingest(request, plan, resources)
        assert (summary.done, summary.skipped) == (1, [])
    assert store_contents(tmp_path / "plain") == store_contents(tmp_path / "pools")
    cohort = Cohort(tmp_path / "pools")
    names = [name.split("/")[0] for name in cohort.table_names()]
    own = ["cells", "embeddings", "embeddings", "membrane", "patches", "pieces"]
    assert names == [*own, *["predictions"] * 3, "saliency", "slides", "thumbnails", "tiles"]
    patches = cohort.read(next(name for name in cohort.table_names() if name.startswith("patches")), "a")
    assert set(patches["resolution"].to_pylist()) == {"moderate"}  # at `low` a patch is larger than this tissue
    total = sum(patches[f"p{k}"].to_numpy() for k in range(len(IHC_SCORES)))
    np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_tiles_on_devices_have_the_same_bytes_for_any_number_of_gpus(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession, small_weights: Path
) -> None:
    """The GPUs are only declared: their workers decode and measure the tiles as on a GPU, but on the CPU."""
    for name in "ab":
        make_slide(f"{name}.tiff", size=(1800, 1500), seed=ord(name), brown=0.4)
    plan = Plan(encoders=("stain", "timm:test_vit"), cells="off", tile=64)
    dims = {name: embedding_dim(name) for name in plan.encoders}
    context = StageContext(plan, weights=small_weights, dims=dims, tile_device="cpu")
    contents = []
    for gpus in (0, 1, 2, 4):
        cohort = Cohort(tmp_path / f"{gpus} GPUs")
        cohort.create(plan)
        worker = SlideWorker(cohort, context, range_batches=1, split_batches=1)
        source = SlideQueue(slide_jobs(tmp_path / "scans", worker))
        session = replace(ray_session, workers=1, gpus=gpus)
        done = list(run_on_ray(session, worker, source, LIMITS, RunMetrics()) if gpus else run_serially(worker, source))
        assert {result.row["status"] for result in done} == {"done"}
        assert {result.decoded_on_cpu for result in done} == {""}
        contents.append(store_contents(cohort.root))
    assert all(one == contents[0] for one in contents[1:])
