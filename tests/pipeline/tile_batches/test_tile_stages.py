"""A slide whose tiles are measured on a device has the tables of the reference, within the bound of the features."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.models.device_measurements.measure_tiles import DIFFERENCE_BOUND
from her2batch.models.encoders import embedding_dim
from her2batch.models.execution.smaller_batches import note_smaller_batch
from her2batch.pipeline.slide_state import StageContext
from her2batch.pipeline.stages import EmbeddingWork
from her2batch.pipeline.worker import SlideResult, SlideWorker
from her2batch.settings import Plan
from her2batch.slides.cucim.chunk_decoder import CucimChunkDecoder
from her2batch.slides.jpeg import complete_jpeg
from her2batch.slides.nvimgcodec import chunk_decoder
from her2batch.slides.nvimgcodec.loading import is_installed
from her2batch.slides.tiff_slide import TiledTiffSlide
from her2batch.store.cohort import Cohort
from her2batch.vision.membrane import TileBatch
from tests.runtime.test_scheduler import slide_jobs

CONTEXT = StageContext(Plan(cells="off", reader="tiff"), dims={"stain": embedding_dim("stain")})


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


needs_nvimgcodec = pytest.mark.skipif(not is_installed(), reason="nvImageCodec isn't installed on this platform")


@needs_nvimgcodec
@pytest.mark.slow
@pytest.mark.parametrize("score", ["0", "3+"])
def test_tiles_decoded_by_nvimagecodec_have_nearly_the_scores_of_the_reference(
    tmp_path: Path, cores: dict[str, Path], score: str
) -> None:
    """Cells too, which get copies of the blocks that are decoded on the device."""
    (tmp_path / "scans").mkdir()
    shutil.copy(cores[score], tmp_path / "scans" / f"a{cores[score].suffix}")
    plan = Plan(reader="tiff")
    reference = run_slide(tmp_path / "reference", tmp_path / "scans", replace(CONTEXT, plan=plan))
    plan = Plan(reader="nvimgcodec")
    found = run_slide(tmp_path / "device", tmp_path / "scans", replace(CONTEXT, plan=plan), threads=1)
    assert found.read("slides", "a")["reader"].to_pylist() == ["nvimgcodec"]
    tables = [each.read("predictions/membrane", "a") for each in (found, reference)]
    assert tables[0].num_rows > 0
    assert_close(*tables, 0.02)
    counts = [each.read("cells", "a").num_rows for each in (found, reference)]
    assert counts[0] == pytest.approx(counts[1], rel=0.03)  # so many nuclei of the pale core are near the limit


@needs_nvimgcodec
def test_a_slide_that_nvimagecodec_shows_wrongly_is_decoded_strictly(
    tmp_path: Path, make_slide: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a decoder without the right colour space would."""
    make_slide("a.tiff", size=(1400, 1200), brown=0.4)
    strict = replace(CONTEXT, tile_device="cpu")
    reference = run_slide(tmp_path / "reference", tmp_path / "scans", strict)
    monkeypatch.setattr(chunk_decoder, "complete_jpeg", lambda data, tables, _: complete_jpeg(data, tables, "RGB"))
    context = replace(strict, plan=Plan(cells="off"))
    cohort = Cohort(tmp_path / "wrong")
    cohort.create(context.plan)
    worker = SlideWorker(cohort, context)
    result = worker.run(slide_jobs(tmp_path / "scans", worker)[0])
    assert "nvImageCodec's pixels of its tile" in result.decoded_on_cpu
    for name in ("tiles", "membrane", "embeddings/stain"):
        assert cohort.table(name, "a").read_bytes() == reference.table(name, "a").read_bytes()


def run_anyhow(folder: Path, scans: Path, context: StageContext) -> SlideResult:
    """Process the only slide of a folder into a cohort of its own, as far as it goes."""
    cohort = Cohort(folder)
    cohort.create(context.plan)
    worker = SlideWorker(cohort, context)
    return worker.run(slide_jobs(scans, worker)[0])


@needs_nvimgcodec
def test_cucim_and_nvimagecodec_give_the_same_tables_on_a_device(
    tmp_path: Path, make_slide: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the slide's own resolution: the overviews of the two readers, which the host shrinks, differ."""
    pytest.importorskip("cucim.clara", reason="cuCIM isn't installed on this platform")
    make_slide("a.tiff", size=(1536, 1280), brown=0.4)  # whole tiles: beyond the edge of a slide the decoders differ
    used = []
    decode = CucimChunkDecoder.decode
    monkeypatch.setattr(CucimChunkDecoder, "decode", lambda *given: used.append(1) or decode(*given))
    cohorts = [
        run_slide(tmp_path / reader, tmp_path / "scans", replace(CONTEXT, plan=Plan(
            cells="off", reader=reader, mpp=0.25), tile_device="cpu"))
        for reader in ("cucim", "nvimgcodec")
    ]  # fmt: skip
    assert used
    for name in ("tiles", "membrane", "embeddings/stain"):
        one, other = (cohort.table(name, "a").read_bytes() for cohort in cohorts)
        assert one == other, name


def test_a_tile_that_cucim_cannot_decode_fails_as_in_the_strict_path(tmp_path: Path, make_slide: Callable) -> None:
    """cuCIM alone would show another tile in its place."""
    pytest.importorskip("cucim.clara", reason="cuCIM isn't installed on this platform")
    path = make_slide("a.tiff", size=(1400, 1200), brown=0.4)
    with TiledTiffSlide(path) as slide:
        table = slide.table(0)
        number = table.across * (table.down // 2) + table.across // 2
        start, count = int(table.offsets[number]), int(table.byte_counts[number])
    with path.open("r+b") as file:
        file.seek(start + count // 3)
        file.write(b"\xff\x3f")
    plans = Plan(cells="off", reader="cucim"), Plan(cells="off", reader="tiff")
    device, strict = (
        run_anyhow(tmp_path / plan.reader, tmp_path / "scans", replace(CONTEXT, plan=plan, tile_device="cpu")).row
        for plan in plans
    )
    assert strict["status"] == "failed"
    assert [device[name] for name in ("status", "error_code", "error")] == [
        strict[name] for name in ("status", "error_code", "error")
    ]


def test_a_slide_whose_networks_got_smaller_batches_says_so(
    tmp_path: Path, make_slide: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_slide("a.tiff", size=(1400, 1200), brown=0.4)
    embed = EmbeddingWork.__call__

    def noting(work: EmbeddingWork, batch: TileBatch) -> object:
        note_smaller_batch(64, 128, "cuda")
        return embed(work, batch)

    monkeypatch.setattr(EmbeddingWork, "__call__", noting)
    result = run_anyhow(tmp_path / "cohort", tmp_path / "scans", CONTEXT)
    assert result.smaller_batches == "a network got 64 tiles at once in place of 128: the memory of cuda ran out"
