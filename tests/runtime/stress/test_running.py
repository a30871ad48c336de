"""A stress test of a cohort: the choice of slides, failures that do not stop it, and the same result on Ray."""

from dataclasses import replace

import pytest

from her2batch.errors import InputError
from her2batch.runtime.ray_session import RaySession
from her2batch.runtime.stress import running
from her2batch.runtime.stress.running import StressRequest, choose_slides, stress_cohort
from her2batch.settings import Resources
from her2batch.store.cohort import Cohort
from her2batch.vision.shifts.scanner_shifts import SHIFTS
from tests.conftest import Synthetic

SMALL = StressRequest(slides=3, tiles=2, shifts=SHIFTS[-2:])


@pytest.fixture(scope="module")
def cohort(synthetic: Synthetic) -> Cohort:
    return Cohort(synthetic.cohort)


def test_slides_are_chosen_by_the_seed_among_her2_slides(cohort: Cohort) -> None:
    chosen = [row["slide_id"] for row in choose_slides(cohort, SMALL)]
    assert chosen == [row["slide_id"] for row in choose_slides(cohort, SMALL)]
    assert len(chosen) == 3
    assert chosen != [row["slide_id"] for row in choose_slides(cohort, replace(SMALL, seed=1))]
    every = choose_slides(cohort, replace(SMALL, slides=1000))
    assert {row["stain"] for row in every} == {"her2"}


def test_named_slides_are_tested_and_unknown_ones_refused(cohort: Cohort) -> None:
    name = choose_slides(cohort, SMALL)[1]["slide_id"]
    assert [row["slide_id"] for row in choose_slides(cohort, replace(SMALL, slide_ids=(name,)))] == [name]
    with pytest.raises(InputError, match="slide x can't be tested"):
        choose_slides(cohort, replace(SMALL, slide_ids=("x",)))


def test_slide_that_cannot_be_read_does_not_stop_the_others(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = choose_slides(cohort, SMALL)
    monkeypatch.setattr(running, "choose_slides", lambda *_: [{**rows[0], "slide_id": "gone"}, *rows[1:]])
    counts = []
    run = stress_cohort(cohort, SMALL, Resources(workers=0), lambda *done: counts.append(done))
    assert [slide.slide_id for slide in run.slides] == [row["slide_id"] for row in rows[1:]]
    assert list(run.failures) == ["gone"]
    assert run.exit_code == 3
    assert counts == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.long
def test_ray_gives_the_same_result(cohort: Cohort, ray_session: RaySession) -> None:
    plain = stress_cohort(cohort, SMALL, Resources(workers=0))
    assert stress_cohort(cohort, SMALL, Resources(workers=2)).slides == plain.slides
