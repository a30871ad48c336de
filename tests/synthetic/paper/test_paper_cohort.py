"""Tests of the cohort with the paper's numbers of slides."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.synthetic.cohort import CohortOptions
from her2batch.synthetic.paper.paper_cohort import (
    HER2_COUNTS,
    PAPER_SIZE,
    class_counts,
    make_paper_cohort,
    plan_paper_cohort,
)


def test_the_cohort_has_the_slides_of_the_paper() -> None:
    truths = plan_paper_cohort(500, 0, PAPER_SIZE)
    assert Counter((truth.her2, truth.ish) for truth in truths if truth.stain == "her2") == Counter(HER2_COUNTS)
    assert Counter(truth.receptor("er") for truth in truths if truth.stain == "er") == {"-": 145, "+": 240}
    assert Counter(truth.receptor("pr") for truth in truths if truth.stain == "pr") == {"-": 198, "+": 189}
    slides = Counter(truth.patient_id for truth in truths)
    assert len(slides) == 500
    assert set(slides.values()) == {1, 2, 3}
    assert len({truth.slide_id for truth in truths}) == len(truths) == 1272


def test_another_seed_gives_other_patients_in_the_same_numbers() -> None:
    first, second = ([truth.her2 for truth in plan_paper_cohort(50, seed, PAPER_SIZE)] for seed in (1, 2))
    assert first != second
    assert Counter(first) == Counter(second)


def test_a_small_cohort_has_the_shares_of_the_paper() -> None:
    assert class_counts(HER2_COUNTS, 500) == list(HER2_COUNTS.values())
    assert class_counts(HER2_COUNTS, 10) == [3, 3, 2, 0, 2]
    assert all(sum(class_counts(HER2_COUNTS, n)) == n for n in range(1, 60))


def test_positive_equivocal_tumours_lean_to_more_moderate_cells() -> None:
    truths = [truth for truth in plan_paper_cohort(500, 0, PAPER_SIZE) if truth.her2 == "2+"]
    means = {ish: np.mean([truth.mix.moderate for truth in truths if truth.ish == ish]) for ish in "+-"}
    assert means["+"] > means["-"] + 0.05


def test_the_files_have_the_planned_labels(tmp_path: Path) -> None:
    options = CohortOptions(("lab-3",))
    seen: list[tuple[int, int]] = []
    n = make_paper_cohort(tmp_path, 2, 3, (700, 600), 1, lambda *count: seen.append(count), options)
    planned = plan_paper_cohort(2, 3, (700, 600), options)
    rows = list(csv.DictReader((tmp_path / "labels.csv").open(newline="")))
    assert n == len(rows) == len(planned)
    assert seen[-1] == (n, n)
    for row, truth in zip(rows, planned, strict=True):
        assert (row["slide_id"], row["her2"] or None, row["ish"] or None) == (truth.slide_id, truth.her2, truth.ish)
        assert (row["er"] or None, row["site"]) == (truth.receptor("er"), "lab-3")
        assert (tmp_path / "slides" / f"{truth.slide_id}.svs").is_file()


def test_slides_of_one_stain_are_those_of_the_whole_cohort() -> None:
    truths = plan_paper_cohort(40, 0, PAPER_SIZE)
    assert plan_paper_cohort(40, 0, PAPER_SIZE, CohortOptions(stain="pr")) == [t for t in truths if t.stain == "pr"]


@pytest.mark.parametrize("options", [CohortOptions(stain="ki67"), CohortOptions(kind="sparse")])
def test_what_the_paper_does_not_have_is_refused(options: CohortOptions) -> None:
    with pytest.raises(InputError, match="the paper's cohort has no slides"):
        plan_paper_cohort(10, 0, PAPER_SIZE, options)
