"""A slide of a cohort under shifts: reproducible, from its pyramid alone, and the score rises with DAB."""

import numpy as np
import pytest

from her2batch.errors import SlideError
from her2batch.pipeline.stress.rescoring import rescore_slide
from her2batch.store.cohort import Cohort, Row
from her2batch.vision.shifts.scanner_shifts import SHIFTS, ScannerShift
from tests.conftest import Synthetic

DAB = tuple(ScannerShift(f"DAB × {factor}", "dab", factor) for factor in (0.5, 0.7, 0.85, 1.2, 1.4, 1.8))


@pytest.fixture(scope="module")
def cohort(synthetic: Synthetic) -> Cohort:
    return Cohort(synthetic.cohort)


@pytest.fixture(scope="module")
def slides(cohort: Cohort) -> list[Row]:
    """A HER2 slide of each class."""
    of_class: dict[str, Row] = {}
    for row in cohort.rows().values():
        if row["stain"] == "her2" and row["n_tiles"]:
            of_class.setdefault(cohort.read("predictions/membrane", row["slide_id"])["predicted"][0].as_py(), row)
    return list(of_class.values())


def test_score_rises_with_dab_without_exception(cohort: Cohort, slides: list[Row]) -> None:
    assert len(slides) >= 3
    for row in slides:
        found = rescore_slide(cohort, cohort.plan(), row, DAB, n_tiles=6)
        weaker, stronger = [one.score for one in found.shifted[:3]], [one.score for one in found.shifted[3:]]
        scores = [*weaker, found.unchanged.score, *stronger]
        assert scores == sorted(scores), row["slide_id"]
        assert scores[-1] > scores[0]


def test_cells_of_the_tiles_are_scored_where_the_plan_measures_cells(cohort: Cohort, slides: list[Row]) -> None:
    row = max(slides, key=lambda row: cohort.read("predictions/membrane", row["slide_id"])["score"][0].as_py())
    found = rescore_slide(cohort, cohort.plan(), row, DAB[:1], n_tiles=4)
    assert found.unchanged.cells is not None
    assert found.shifted[0].cells_score <= found.unchanged.cells_score
    without = rescore_slide(cohort, cohort.plan().model_copy(update={"cells": "off"}), row, (), n_tiles=2)
    assert (without.unchanged.cells, without.unchanged.cells_score) == (None, None)


def test_unchanged_slide_scores_as_the_ingest_did(cohort: Cohort, slides: list[Row]) -> None:
    row = slides[0]
    found = rescore_slide(cohort, cohort.plan(), row, (), n_tiles=10_000)
    stored = cohort.read("predictions/membrane", row["slide_id"])
    assert found.tiles == found.n_tiles
    assert found.unchanged.score == pytest.approx(stored["score"][0].as_py(), abs=0.1)
    assert found.unchanged.predicted == stored["predicted"][0].as_py()


def test_sample_is_that_of_the_seed(cohort: Cohort, slides: list[Row]) -> None:
    row = max(slides, key=lambda row: row["n_tiles"])
    one, same, other = (rescore_slide(cohort, cohort.plan(), row, SHIFTS[:1], 3, seed) for seed in (0, 0, 1))
    assert one == same
    assert one.unchanged.score != other.unchanged.score
    assert one.tiles == 3


def test_scale_reads_another_area(cohort: Cohort, slides: list[Row]) -> None:
    shifts = tuple(shift for shift in SHIFTS if shift.kind == "scale")
    found = rescore_slide(cohort, cohort.plan(), slides[-1], shifts, n_tiles=4)
    assert len({found.unchanged.score, *(one.score for one in found.shifted)}) == 1 + len(shifts)
    assert all(np.isfinite(one.score) for one in found.shifted)


def test_slide_without_a_pyramid_is_an_error(cohort: Cohort, slides: list[Row]) -> None:
    with pytest.raises(SlideError, match="no pyramid"):
        rescore_slide(cohort, cohort.plan(), {**slides[0], "slide_id": "gone"}, ())
