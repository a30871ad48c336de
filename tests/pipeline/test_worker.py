"""The work on one slide: every outcome becomes its row."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from her2batch.models.encoders import embedding_dim
from her2batch.pipeline import worker as worker_module
from her2batch.pipeline.inventory import SlideJob
from her2batch.pipeline.slide_state import StageContext
from her2batch.pipeline.worker import SlideWorker
from her2batch.settings import Plan
from her2batch.slides.readers import READERS, open_slide
from her2batch.slides.slide import Box, resample
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort
from her2batch.vision.membrane import MEMBRANE_COLUMNS, measure_tiles
from her2batch.vision.stain import fit_stain_vectors
from tests.runtime.test_scheduler import slide_jobs


@pytest.fixture
def worker(tmp_path: Path) -> SlideWorker:
    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    return SlideWorker(cohort, StageContext(Plan(), dims={"stain": embedding_dim("stain")}))


@pytest.fixture
def job(tmp_path: Path, worker: SlideWorker, make_slide: Callable) -> SlideJob:
    make_slide(brown=0.3)
    return slide_jobs(tmp_path / "scans", worker)[0]


def slide_that_raises(error: BaseException) -> type[TiledTiffSlide]:
    class Broken(TiledTiffSlide):
        def _assemble(self, *_: object) -> None:
            raise error

    return Broken


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out-of-memory"),
        (OSError(28, "No space left on device"), "store-write"),
        (KeyError("ours"), "internal"),
    ],
)
def test_exceptions_become_error_codes(
    worker: SlideWorker, job: SlideJob, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    monkeypatch.setitem(READERS, "tiff", slide_that_raises(error))
    monkeypatch.setattr(worker_module, "open_slide", lambda path, *_: READERS["tiff"](path))
    result = worker.run(job)
    row = result.row
    assert (row["status"], row["error_code"]) == ("failed", code)
    assert str(job.source.path) in row["error"]
    assert worker.cohort.rows()["a"]["error_code"] == code
    assert ("KeyError" in result.trace) == (code == "internal")


def test_file_that_changes_while_it_is_read_is_unstable(
    worker: SlideWorker, job: SlideJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = worker.run(job).row
    assert first["status"] == "done"

    class Changing(TiledTiffSlide):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            os.utime(path)

    monkeypatch.setattr(worker_module, "open_slide", lambda path, *_: Changing(path))
    row = worker.run(job).row
    assert row["error_code"] == "unstable"
    assert worker.cohort.read("tiles", "a").num_rows == first["n_tiles"]  # the old result stays
    assert list(verify_cohort(worker.cohort)) == []


def test_removed_file_fails_with_gone(worker: SlideWorker, job: SlideJob) -> None:
    job.source.path.unlink()
    assert worker.run(job).row["error_code"] == "gone"


def test_decode_threads_change_no_byte(tmp_path: Path, worker: SlideWorker, job: SlideJob) -> None:
    worker.run(job)
    other = Cohort(tmp_path / "threads")
    other.create(Plan())
    SlideWorker(other, worker.context, threads=3).run(job)
    for name in ("tiles", "membrane", "embeddings/stain"):
        assert worker.cohort.table(name, "a").read_bytes() == other.table(name, "a").read_bytes()


@pytest.mark.parametrize("score", ["0", "1+", "3+"])
def test_tiles_shrunk_while_decoding_have_the_same_membrane_shares(cores: dict[str, Path], score: str) -> None:
    with open_slide(cores[score]) as slide:
        shrunk = slide.read(Box(0, 0, 896, 672), *slide.tile_source(2.0))
        whole = resample(slide.read(Box(0, 0, 1792, 1344)), 896, 672)
    assert slide.tile_source(2.0) == (0, 2)
    tiles = [np.stack([half[y : y + 224, x : x + 224] for y in (0, 224, 448) for x in (0, 224, 448, 672)])
             for half in (shrunk, whole)]  # fmt: skip
    stains = fit_stain_vectors(tiles[1], (240.0, 240.0, 240.0), 0.5)
    shares = [measure_tiles(some, 0.5, stains)[:, : len(MEMBRANE_COLUMNS)].mean(axis=0) for some in tiles]
    assert np.abs(shares[0] - shares[1]).max() < 0.03
