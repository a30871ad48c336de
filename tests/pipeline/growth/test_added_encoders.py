"""Encoders are added to finished slides from the pyramids alone, and everything else stays as it is."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from her2batch.errors import InputError, WeightsError
from her2batch.models import encoders
from her2batch.models.encoders import CustomEncoder, embedding_dim, register_encoder
from her2batch.nightly.retention import delete_pyramid
from her2batch.pipeline.estimate import estimate_ingest
from her2batch.pipeline.growth.added_encoders import find_additions, proven_plan, worker_for
from her2batch.pipeline.growth.ingest_summary import IngestSummary
from her2batch.pipeline.inventory import SlideJob
from her2batch.pipeline.queue import local_now
from her2batch.pipeline.slide_state import StageContext
from her2batch.pipeline.worker import PartialSlide, SlideResult, SlideWorker
from her2batch.runtime import ingest as ingest_module
from her2batch.runtime.ingest import IngestRequest, dry_run, ingest
from her2batch.runtime.ray_session import RaySession
from her2batch.settings import Plan, Resources, RunWindow
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort
from her2batch.vision.membrane import TileBatch
from tests.conftest import tissue_image, write_slide

Files = dict[str, bytes]


def mean_colour(batch: TileBatch) -> np.ndarray:
    return batch.pixels.mean(axis=(1, 2), dtype=np.float32)


def refuse_to_load(*_: object) -> None:
    raise OSError("no such weights")


def with_own_encoders(call: Callable[[], object]) -> None:
    register_encoder("colour", CustomEncoder(3, lambda *_: mean_colour, licence="none"))
    register_encoder("unloadable", CustomEncoder(3, refuse_to_load, licence="none"))
    try:
        call()
    finally:
        for name in ("colour", "unloadable"):
            encoders._registry.unregister(name)


@pytest.fixture(autouse=True)
def own_encoders() -> Iterator[None]:
    register_encoder("colour", CustomEncoder(3, lambda *_: mean_colour, licence="none"))
    register_encoder("unloadable", CustomEncoder(3, refuse_to_load, licence="none"))
    yield
    for name in ("colour", "unloadable"):
        encoders._registry.unregister(name)


def run(scans: Path, out: Path, *names: str, **more: object) -> IngestSummary:
    plan = Plan(encoders=names) if names else Plan()
    return ingest(IngestRequest(scans, out, **more), plan, Resources(workers=0))


def files_of(cohort: Path) -> Files:
    """Content of the cohort's files without logs, caches and the lock, by their paths."""
    paths = [path for path in cohort.rglob("*") if path.is_file() and "runs" not in path.parts and path.name != ".lock"]
    return {path.relative_to(cohort).as_posix(): path.read_bytes() for path in paths}


def difference(before: Files, after: Files) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


class Finished(NamedTuple):
    scans: Path
    cohort: Path


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two slides, and one without tissue, ingested with the encoder stain."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "scans").mkdir()
    for k in range(2):
        write_slide(folder / "scans" / f"s{k}.tiff", tissue_image(1400, 1200 + k, seed=k, brown=0.3))
    write_slide(folder / "scans" / "glass.tiff", np.full((600, 600, 3), 242, np.uint8))
    assert run(folder / "scans", folder / "c").exit_code == 0
    return Finished(folder / "scans", folder / "c")


@pytest.fixture(scope="module")
def at_once(once: Finished) -> Files:
    """Files of a cohort of the same slides that was ingested with both encoders."""
    with_own_encoders(lambda: run(once.scans, once.cohort.with_name("at-once"), "stain", "colour"))
    return files_of(once.cohort.with_name("at-once"))


@pytest.fixture(scope="module")
def colour_once(once: Finished) -> Path:
    """A cohort of the same slides that was ingested with the encoder colour alone."""
    with_own_encoders(lambda: run(once.scans, once.cohort.with_name("colour"), "colour"))
    return once.cohort.with_name("colour")


@pytest.fixture
def colour_only(colour_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(colour_once, tmp_path / "colour")
    return tmp_path / "colour"


@pytest.fixture
def finished(once: Finished, tmp_path: Path) -> Finished:
    shutil.copytree(once.cohort, tmp_path / "c")
    return Finished(once.scans, tmp_path / "c")


@pytest.mark.slow
def test_adding_an_encoder_needs_no_scans_and_changes_nothing_else(finished: Finished) -> None:
    before = files_of(finished.cohort)
    summary = run(Path("/mnt/gone"), finished.cohort, "colour")
    assert (summary.exit_code, summary.seen, sorted(summary.added.slides)) == (0, 0, ["glass", "s0", "s1"])
    changed = difference(before, files_of(finished.cohort))
    new = {f"tables/embeddings/colour/{name}.parquet" for name in ("glass", "s0", "s1")}
    rows = {f"tables/slides/{name}.parquet" for name in ("glass", "s0", "s1")}
    assert changed == new | rows | {"cohort.toml"}
    assert list(verify_cohort(Cohort(finished.cohort))) == []
    assert Cohort(finished.cohort).plan().encoders == ("stain", "colour")


@pytest.mark.slow
def test_a_grown_cohort_has_the_bytes_of_one_made_at_once(finished: Finished, at_once: Files) -> None:
    run(Path("/mnt/gone"), finished.cohort, "colour")
    assert difference(files_of(finished.cohort), at_once) == set()
    again = run(finished.scans, finished.cohort)
    assert (again.already, again.added.slides, again.added.left) == (3, [], 0)


@pytest.mark.slow
def test_the_stain_encoder_can_be_added_too(once: Finished, colour_only: Path) -> None:
    """The white point is that of the thumbnail then, a JPEG, so that values differ a little."""
    assert run(Path("/mnt/gone"), colour_only, "stain").exit_code == 0
    for name in ("s0", "s1"):
        found, expected = (
            np.stack(Cohort(root).read("embeddings/stain", name)["embedding"].to_numpy())
            for root in (colour_only, once.cohort)
        )
        assert np.abs(found.astype(float) - expected).max() < 0.05


@pytest.mark.slow
def test_new_slides_get_every_encoder_of_the_cohort(finished: Finished, tmp_path: Path) -> None:
    run(finished.scans, finished.cohort, "colour")
    (tmp_path / "new").mkdir()
    write_slide(tmp_path / "new" / "n.tiff", tissue_image(1400, 1300))
    run(tmp_path / "new", finished.cohort)  # not named again
    run(tmp_path / "new", finished.cohort, "stain")
    names = {path.parent.name for path in finished.cohort.glob("tables/embeddings/*/n.parquet")}
    assert names == {"stain", "colour"}
    assert len(list(finished.cohort.glob("tables/embeddings/colour/*.parquet"))) == 4


@pytest.mark.slow
def test_an_encoder_that_is_left_out_keeps_its_embeddings(finished: Finished, tmp_path: Path) -> None:
    run(finished.scans, finished.cohort, "colour")
    before = files_of(finished.cohort)
    summary = run(finished.scans, finished.cohort, "stain", replan=True)  # new slides will do without it
    assert (summary.already, summary.added.slides) == (3, [])
    assert difference(before, files_of(finished.cohort)) == {"cohort.toml"}
    assert Cohort(finished.cohort).plan().encoders == ("stain",)
    assert list(verify_cohort(Cohort(finished.cohort))) == []


@pytest.mark.slow
def test_an_encoder_that_does_not_load_is_not_kept(finished: Finished) -> None:
    before = files_of(finished.cohort)
    with pytest.raises(WeightsError, match="unloadable cannot be loaded"):
        run(finished.scans, finished.cohort, "unloadable")
    assert difference(before, files_of(finished.cohort)) == set()
    assert run(finished.scans, finished.cohort).exit_code == 0


@pytest.mark.slow
def test_only_the_encoders_that_are_needed_are_loaded(colour_only: Path) -> None:
    """Weights of the cohort's other encoders may be on another machine."""
    register_encoder("colour", CustomEncoder(3, refuse_to_load, licence="none"))
    assert run(Path("/mnt/gone"), colour_only, "stain").exit_code == 0


@pytest.mark.slow
def test_an_interrupted_addition_goes_on(finished: Finished, at_once: Files) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError

    request = IngestRequest(Path("/mnt/gone"), finished.cohort)
    with pytest.raises(RuntimeError):
        ingest(request, Plan(encoders=("colour",)), Resources(workers=0), report=stop)
    assert len(list(finished.cohort.glob("tables/embeddings/colour/*.parquet"))) == 1
    summary = run(finished.scans, finished.cohort)  # the first slide has shown that the encoder works
    assert len(summary.added.slides) == 2
    assert difference(files_of(finished.cohort), at_once) == set()


@pytest.mark.slow
def test_without_any_pyramid_it_is_refused_and_replan_reads_the_files(finished: Finished) -> None:
    cohort = Cohort(finished.cohort)
    for row in cohort.rows().values():
        delete_pyramid(cohort, row)
    before = files_of(finished.cohort)
    with pytest.raises(
        InputError, match=r"colour cannot be added to any of the 3 finished slides: no pyramid.*--replan"
    ):
        run(finished.scans, finished.cohort, "colour")
    assert difference(before, files_of(finished.cohort)) == set()
    assert run(finished.scans, finished.cohort, "colour", replan=True).done == 3
    assert len(list(finished.cohort.glob("tables/embeddings/colour/*.parquet"))) == 3


@pytest.mark.slow
def test_slides_without_a_pyramid_do_not_hold_up_the_others(finished: Finished) -> None:
    cohort = Cohort(finished.cohort)
    delete_pyramid(cohort, cohort.rows()["s0"])
    summary = run(finished.scans, finished.cohort, "colour")
    assert (summary.exit_code, sorted(summary.added.slides)) == (0, ["glass", "s1"])
    assert summary.added.without_pyramid == ["s0"]
    assert run(finished.scans, finished.cohort, "colour", replan=True).fresh == ["s0"]


@pytest.mark.slow
def test_a_damaged_pyramid_costs_the_slide_nothing_and_is_repaired_by_the_next_run(finished: Finished) -> None:
    shard = max(finished.cohort.glob("pyramids/s0.zarr/0/c/**/*"), key=lambda path: path.stat().st_size)
    shard.write_bytes(b"\0" * shard.stat().st_size)
    before = files_of(finished.cohort)
    summary = run(Path("/mnt/gone"), finished.cohort, "colour")
    assert (summary.exit_code, sorted(summary.added.slides)) == (3, ["glass", "s1"])
    assert "colour not added to s0: the index of the shard is damaged" in summary.added.failures["s0"]
    assert not {name for name in difference(before, files_of(finished.cohort)) if "/s0" in name}
    assert Cohort(finished.cohort).rows()["s0"]["status"] == "done"
    assert run(finished.scans, finished.cohort).fresh == ["s0"]
    assert (finished.cohort / "tables/embeddings/colour/s0.parquet").exists()
    assert list(verify_cohort(Cohort(finished.cohort))) == []


@pytest.mark.slow
def test_a_slide_that_is_shared_between_workers_gets_the_same_bytes(finished: Finished, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", finished.cohort
    shutil.copytree(shared, whole)
    run(Path("/mnt/gone"), whole, "colour")
    plan = Plan(encoders=("stain", "colour"))
    context = StageContext(plan, dims={name: embedding_dim(name) for name in plan.encoders})
    worker = SlideWorker(Cohort(shared), context, range_batches=1, split_batches=0)
    for job in find_additions(Cohort(shared), plan, Cohort(shared).rows()).jobs:
        own = worker_for(worker, job)
        begun, state = own.begin(job, share=True, always=job.slide_id == "glass")
        assert isinstance(begun, PartialSlide)
        assert state is not None
        parts = [own.measure(job, state, *call) for call in reversed(begun.calls)]
        result = worker_for(replace(worker, threads=2, works={}), job).finish(job, state, *parts)  # elsewhere
        assert isinstance(result, SlideResult)
        assert not result.problem
    assert difference(files_of(whole), files_of(shared)) == {"cohort.toml"}


@pytest.mark.slow
def test_new_slides_come_before_finished_ones(finished: Finished) -> None:
    from her2batch.pipeline.queue import SlideQueue

    jobs = find_additions(Cohort(finished.cohort), Plan(encoders=("colour",)), Cohort(finished.cohort).rows()).jobs
    new = SlideJob("n", replace(jobs[0].source, bytes=1), None)
    assert SlideQueue([*jobs, new]).waiting[0] is new


@pytest.mark.slow
def test_a_plan_is_proven_by_a_slide(finished: Finished, tmp_path: Path) -> None:
    wanted = Plan(encoders=("stain", "colour"))
    assert proven_plan(Cohort(finished.cohort), wanted) == Plan()
    assert proven_plan(Cohort(tmp_path / "new"), wanted) == wanted


@pytest.mark.slow
def test_a_missing_scan_folder_is_an_error_where_no_encoder_is_named(finished: Finished) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        run(Path("/mnt/gone"), finished.cohort)
    with pytest.raises(InputError, match="there is no such folder"):
        run(Path("/mnt/gone"), finished.cohort.with_name("new"), "colour")
    assert not finished.cohort.with_name("new").exists()
    assert run(Path("/mnt/gone"), finished.cohort, "stain").exit_code == 0  # nothing is missing


@pytest.mark.long
@pytest.mark.parametrize("gpus", [0, 2])
def test_encoders_are_added_on_ray(finished: Finished, at_once: Files, gpus: int, ray_session: RaySession) -> None:
    """With declared GPUs the slide without tiles has no part that a pool could embed."""
    plan, request = Plan(encoders=("colour",)), IngestRequest(Path("/mnt/gone"), finished.cohort)
    assert len(ingest(request, plan, Resources(workers=2, gpus=gpus)).added.slides) == 3
    assert difference(files_of(finished.cohort), at_once) == set()


@pytest.mark.slow
def test_a_dry_run_lists_the_encoders_to_add(finished: Finished) -> None:
    request = IngestRequest(Path("/mnt/gone"), finished.cohort)
    plan, inventory, cohort = dry_run(request, Plan(encoders=("colour",)))
    rows, total = estimate_ingest(inventory, plan, Resources(workers=1), cohort)
    assert [row["what"] for row in rows] == ["add colour from its pyramid"] * 3
    assert total["todo"] == 3
    assert 0 < total["seconds"] < 60


@pytest.mark.slow
def test_a_run_that_watches_the_folder_adds_encoders_too(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    write_slide(tmp_path / "new" / "n.tiff", tissue_image(1400, 1200, seed=5))
    request, window = IngestRequest(tmp_path / "new", finished.cohort), RunWindow(watch=True, linger=False, settle=0.2)
    summary = ingest(request, Plan(encoders=("colour",)), Resources(workers=0), window=window)
    assert (summary.fresh, sorted(summary.added.slides), summary.exit_code) == (["n"], ["glass", "s0", "s1"], 0)
    assert len(list(finished.cohort.glob("tables/embeddings/colour/*.parquet"))) == 4


@pytest.mark.slow
def test_a_stopped_window_leaves_the_rest_to_the_next_run(finished: Finished) -> None:
    request, closed = IngestRequest(finished.scans, finished.cohort), local_now() + timedelta(seconds=-1)
    window = RunWindow(until=f"{closed:%H:%M:%S}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "next_occurrence", lambda *_: closed)
        summary = ingest(request, Plan(encoders=("colour",)), Resources(workers=0), window=window)
    assert (summary.added.slides, summary.added.left, summary.exit_code) == ([], 3, 0)
    assert Cohort(finished.cohort).plan() == Plan()
    assert len(run(finished.scans, finished.cohort, "colour").added.slides) == 3
