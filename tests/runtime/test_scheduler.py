"""Slides over Ray actors: shared, lost, stopped; always the bytes of the plain loop."""

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
from tests.runtime.test_ingest import contents

LIMITS = Resources(workers=2)


def worker_for(out: Path, **more: object) -> SlideWorker:
    plan = Plan(tile=64)
    cohort = Cohort(out)
    cohort.create(plan)
    return SlideWorker(cohort, StageContext(plan, dims={"stain": embedding_dim("stain")}), **more)


def todos(scans: Path, worker: SlideWorker) -> list[SlideJob]:
    inventory = take_inventory(scans, worker.cohort, worker.context.plan, Pseudonymizer(), {})
    return inventory.jobs


def test_a_slide_that_is_shared_has_the_bytes_of_one_that_is_not(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession
) -> None:
    make_slide("a.tiff", size=(2600, 2400), brown=0.4)
    reference = worker_for(tmp_path / "plain")
    list(run_serially(reference, SlideQueue(todos(tmp_path / "scans", reference))))
    shared = worker_for(tmp_path / "shared", range_batches=1, split_batches=1)
    finished = list(
        run_on_ray(ray_session, shared, SlideQueue(todos(tmp_path / "scans", shared)), LIMITS, RunMetrics())
    )
    assert [one.row["status"] for one in finished] == ["done"]
    assert finished[0].row["n_tiles"] > 100
    assert contents(tmp_path / "plain") == contents(tmp_path / "shared")


class Looked(SlideQueue):
    """How often the supply was asked to look, before anybody wanted a slide of it."""

    looks, before = 0, None

    def refresh(self) -> None:
        self.looks += 1

    def next_job(self) -> SlideJob | None:
        self.before = self.looks if self.before is None else self.before
        return super().next_job()


def test_a_supply_looks_while_no_worker_is_idle(tmp_path: Path, make_slide: Callable, ray_session: RaySession) -> None:
    """Or else a slide that came while all were busy began to settle only when one was idle."""
    make_slide("a.tiff")
    worker = worker_for(tmp_path / "c")
    queue = Looked(todos(tmp_path / "scans", worker))
    assert len(list(run_on_ray(replace(ray_session, workers=1), worker, queue, LIMITS, RunMetrics()))) == 1
    assert queue.before > 0


@pytest.mark.parametrize(
    ("fault", "words"), [("OutOfDiskError", "Ray's object store is full"), ("RaySystemError", "a worker stopped: ")]
)
def test_what_ray_says_over_many_lines_is_said_in_one(ray_session: RaySession, fault: str, words: str) -> None:
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
class Deadly(SlideWorker):
    """A worker whose process dies of slides called 'deadly', as often as `deaths` says."""

    deaths: int = 99

    def begin(self, todo: SlideJob, share: bool, always: bool = False) -> tuple[object, dict]:
        if todo.slide_id == "deadly":
            seen = self.cohort.root / "deaths"
            count = int(seen.read_text()) if seen.exists() else 0
            seen.write_text(str(count + 1))
            if count < self.deaths:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().begin(todo, share, always)


@pytest.mark.parametrize(("deaths", "outcome"), [(1, "done"), (99, "failed")])
def test_a_lost_worker_costs_its_slide_two_retries_and_the_others_nothing(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession, deaths: int, outcome: str
) -> None:
    import tests.runtime.test_scheduler as here

    ray_session.ray.cloudpickle.register_pickle_by_value(here)
    for name in ("deadly.tiff", "b.tiff", "c.tiff"):
        make_slide(name, seed=len(name) + ord(name[0]), size=(900, 900))
    plan = Plan()
    cohort = Cohort(tmp_path / "c")
    cohort.create(plan)
    worker = here.Deadly(cohort, StageContext(plan, dims={"stain": embedding_dim("stain")}), deaths=deaths)
    found: dict[str, SlideResult] = {}
    for one in run_on_ray(ray_session, worker, SlideQueue(todos(tmp_path / "scans", worker)), LIMITS, RunMetrics()):
        found[one.row["slide_id"]] = one
    assert {name: one.row["status"] for name, one in found.items()} == {"deadly": outcome, "b": "done", "c": "done"}
    if outcome == "failed":
        assert found["deadly"].row["error_code"] == "worker-lost"
        assert (cohort.root / "deaths").read_text() == "3"


@dataclass
class Hanging(SlideWorker):
    """A worker whose process stands still over slides called 'hanging': not even its own threads can end it."""

    def begin(self, todo: SlideJob, share: bool, always: bool = False) -> tuple[object, dict]:
        if todo.slide_id == "hanging":
            with (self.cohort.root / "tries").open("a") as file:
                file.write("once\n")
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().begin(todo, share, always)


def test_a_slide_that_hangs_is_given_up_and_the_others_go_on(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession
) -> None:
    import tests.runtime.test_scheduler as here

    ray_session.ray.cloudpickle.register_pickle_by_value(here)
    for name in ("hanging.tiff", "b.tiff", "c.tiff"):
        make_slide(name, seed=len(name) + ord(name[0]), size=(900, 900))
    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    worker = here.Hanging(cohort, StageContext(Plan(), dims={"stain": embedding_dim("stain")}))
    limits = Resources(workers=2, patience=5)
    found = list(run_on_ray(ray_session, worker, SlideQueue(todos(tmp_path / "scans", worker)), limits, RunMetrics()))
    assert {one.row["slide_id"]: one.row["error_code"] for one in found} == {"hanging": "timeout", "b": None, "c": None}
    assert (cohort.root / "tries").read_text() == "once\n"


def test_slow_models_get_the_time_they_need() -> None:
    assert step_limit(Plan(), 1800) == 1800
    assert step_limit(Plan(encoders=("stain", "uni")), 1800) > 1800 + 2 * 2048 / 1.3


@dataclass
class DeadlyModel(SlideWorker):
    """A worker whose process dies once, under its first model calls."""

    def measure(self, todo: SlideJob, state: dict, name: str, lo: int, hi: int) -> object:
        dead = self.cohort.root / "dead"
        if name == "tiles" and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().measure(todo, state, name, lo, hi)


def test_a_model_worker_that_dies_under_two_calls_is_replaced_once(
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
    worker = here.DeadlyModel(cohort, context)
    session = replace(ray_session, workers=1, gpus=1)
    found = list(run_on_ray(session, worker, SlideQueue(todos(tmp_path / "scans", worker)), LIMITS, RunMetrics()))
    assert sorted((one.row["slide_id"], one.row["status"]) for one in found) == [(name, "done") for name in "abcd"]
    assert (cohort.root / "dead").exists()


def test_a_stop_ends_the_batch_between_calls(tmp_path: Path, make_slide: Callable, ray_session: RaySession) -> None:
    for k in range(4):
        make_slide(f"s{k}.tiff", seed=k, size=(900, 900))
    worker = worker_for(tmp_path / "c")
    session = replace(ray_session, workers=1)
    running = run_on_ray(session, worker, SlideQueue(todos(tmp_path / "scans", worker)), LIMITS, RunMetrics())
    next(running)
    session.stopped.set()
    assert len(list(running)) < 3
    session.stopped.clear()
    assert 1 <= len(worker.cohort.rows()) < 4


@dataclass
class Nosy(SlideWorker):
    """A worker that writes down what its process sees."""

    def begin(self, todo: SlideJob, share: bool, always: bool = False) -> tuple[object, dict]:
        import cucim  # noqa: F401  (takes 500 MB on every GPU in sight, so none may be)
        import torch

        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        facts = {name: os.environ.get(name) for name in names} | {"gpus": torch.cuda.device_count()}
        (self.cohort.root / "seen.json").write_text(json.dumps(facts))
        return super().begin(todo, share, always)


def test_a_cpu_worker_holds_no_gpu_and_runs_one_thread(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession
) -> None:
    import tests.runtime.test_scheduler as here

    ray_session.ray.cloudpickle.register_pickle_by_value(here)
    make_slide(size=(900, 900))
    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    worker = here.Nosy(cohort, StageContext(Plan(), dims={"stain": embedding_dim("stain")}))
    list(run_on_ray(ray_session, worker, SlideQueue(todos(tmp_path / "scans", worker)), LIMITS, RunMetrics()))
    seen = json.loads((cohort.root / "seen.json").read_text())
    assert seen == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "gpus": 0}


def a_bundle(folder: Path) -> Path:
    """Untrained small nets in the places of the paper's: enough to run every branch."""
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
def test_model_pools_give_the_bytes_of_the_plain_loop(
    tmp_path: Path, make_slide: Callable, ray_session: RaySession, small_weights: Path
) -> None:
    """With a GPU (here only declared) every model role has actors of its own; without, one process does it all."""
    make_slide("a.tiff", size=(1400, 1200), brown=0.4)
    bundle = a_bundle(tmp_path / "bundle")
    plan = Plan(encoders=("stain", "timm:test_vit"))
    for name, resources in {"plain": Resources(workers=0), "pools": Resources(workers=1, gpus=1)}.items():
        order = IngestRequest(tmp_path / "scans", tmp_path / name, bundle=bundle, weights=small_weights)
        summary = ingest(order, plan, resources)
        assert (summary.done, summary.skipped) == (1, [])
    assert contents(tmp_path / "plain") == contents(tmp_path / "pools")
    cohort = Cohort(tmp_path / "pools")
    names = [name.split("/")[0] for name in cohort.table_names()]
    own = ["embeddings", "embeddings", "membrane", "patches"]
    assert names == [*own, "predictions", "predictions", "slides", "thumbnails", "tiles"]
    patches = cohort.read(next(name for name in cohort.table_names() if name.startswith("patches")), "a")
    assert set(patches["resolution"].to_pylist()) == {"moderate"}  # at `low` a patch is larger than this tissue
    total = sum(patches[f"p{k}"].to_numpy() for k in range(len(IHC_SCORES)))
    np.testing.assert_allclose(total, 1, atol=1e-5)
