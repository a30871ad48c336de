"""The list of stages: without a gap, and one row is all that a new one takes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import SlideError
from her2batch.models.encoders import embedding_dim
from her2batch.pipeline import stages
from her2batch.pipeline.stages import GIVEN, STAGES, Stage, StageContext, active_stages, check_mpp, check_stages
from her2batch.pipeline.worker import SlideWorker
from her2batch.settings import Plan
from her2batch.slides.readers import open_slide
from her2batch.store.cohort import Cohort
from tests.runtime.test_scheduler import todos


def test_every_stage_finds_what_it_takes() -> None:
    check_stages(STAGES, GIVEN)


def test_a_gap_is_refused_with_the_stage_and_what_it_lacks() -> None:
    without = [stage for stage in STAGES if stage.name != "tissue"]
    with pytest.raises(ValueError, match=r"stage quality needs .'tissue'"):
        check_stages(without, GIVEN)


def test_nets_run_only_with_a_bundle() -> None:
    names = [stage.name for stage in active_stages(None)]
    assert "membrane" in names
    assert "thumbnail" not in names
    assert not any(name.startswith("patches") for name in names)


def test_a_toy_stage_is_one_row(tmp_path: Path, make_slide: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    make_slide(brown=0.3)
    seen: list[tuple[int, ...]] = []

    def toy(_: StageContext) -> stages.Work:
        def work(batch: object) -> dict[str, np.ndarray]:
            seen.append(batch.pixels.shape)
            return {"tiles_toy": batch.pixels.mean(axis=(1, 2, 3))}

        return work

    row = Stage("toy", "tiles", ("stains", "grids"), ("tiles_toy",), toy)
    monkeypatch.setattr(stages, "STAGES", (*STAGES[:-1], row, STAGES[-1]))
    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    worker = SlideWorker(cohort, StageContext(Plan(), dims={"stain": embedding_dim("stain")}))
    for todo in todos(tmp_path / "scans", worker):
        assert worker.run(todo).row["status"] == "done"
    assert seen
    assert seen[0][1:] == (224, 224, 3)


def test_a_slide_may_be_a_quarter_coarser_than_the_tiles(make_slide: Callable) -> None:
    info = open_slide(make_slide()).info
    assert check_mpp(replace(info, mpp=0.62), 0.5).mpp == 0.62
    with pytest.raises(SlideError, match=r"0\.63 µm/px, the target is 0\.5") as refused:
        check_mpp(replace(info, mpp=0.63), 0.5)
    assert refused.value.code == "too-coarse"
