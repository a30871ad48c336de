"""Folds: whole patients, even strata, every slide tested once; labels that cannot be cross-validated are refused."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2batch.errors import InputError
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import FINAL_FOLD
from her2batch.tasks import CLASSES, her2_class
from her2batch.training.folds import (
    assign_patients,
    check_labelled,
    cross_validation_splits,
    final_split,
    shuffle_labels,
)

PAPER = {"0/": 125, "1+/": 142, "2+/-": 96, "2+/+": 22, "3+/": 115}

TASK = "her2-3way"


def labelled(slides: list[tuple[str | None, int]], task: str = TASK) -> pa.Table:
    """(patient, label) of slides s000, s001, …, with one stratum a class."""
    truth = [CLASSES[task][label] for _, label in slides]
    return pa.table(
        {
            "slide_id": [f"s{k:03}" for k in range(len(slides))],
            "patient_id": [patient for patient, _ in slides],
            "label": pa.array([label for _, label in slides], pa.int32()),
            "truth": truth,
            "stratum": [f"{one}/" for one in truth],
        }
    )


def fold_of(table: pa.Table, n_folds: int, seed: int = 0) -> np.ndarray:
    return assign_patients(table["stratum"].to_pylist(), table["patient_id"].to_pylist(), n_folds, seed)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[pa.Table, int]:
    """Patients with one to four slides each, at least four patients of each class and as many as folds."""
    n_folds = draw(st.integers(3, 12))
    n_patients = draw(st.integers(max(n_folds, 12), 40))
    slides = []
    for k in range(n_patients):
        for _ in range(draw(st.integers(1, 4))):
            slides.append((f"P{k}", k % 3 if k < 12 else draw(st.integers(0, 2))))
    return labelled(draw(st.permutations(slides))), n_folds


def spread(fold: np.ndarray, there: np.ndarray) -> int:
    """Slides in the fullest fold less those in the emptiest."""
    return int(np.ptp(np.bincount(fold[there], minlength=10)))


def test_folds_of_the_papers_cohort_are_even_in_every_task() -> None:
    strata = np.random.default_rng(1).permutation([one for one, n in PAPER.items() for _ in range(n)])
    words = [one.split("/") for one in strata.tolist()]
    tasks = {task: [her2_class(task, ihc, ish or None) or "" for ihc, ish in words]
             for task in ("her2-binary", "her2-3way", "her2-4way")}  # fmt: skip
    patients = [f"P{k}" for k in range(500)]
    fold = assign_patients(strata.tolist(), patients, 10, seed=3, also=list(tasks.values()))
    assert np.bincount(fold).tolist() == [50] * 10
    assert all(spread(fold, strata == one) == 1 for one in PAPER)
    for truth in tasks.values():
        assert max(spread(fold, np.array(truth) == one) for one in set(truth)) <= 1
    alone = assign_patients(strata.tolist(), patients, 10, seed=3)
    for truth in tasks.values():
        assert max(spread(alone, np.array(truth) == one) for one in set(truth)) <= 2


def test_folds_have_nearly_equal_sizes_with_several_slides_per_patient() -> None:
    draw = np.random.default_rng(2)
    patients = [f"P{k}" for k in range(60) for _ in range(draw.integers(1, 4))]
    fold = assign_patients(["0", "low", "high"] * len(patients), patients * 3, 10, seed=0)  # each stratum a third
    assert np.ptp(np.bincount(fold)) <= 3


@settings(deadline=None, max_examples=40)
@given(cohorts(), st.integers(0, 2**31))
def test_no_patient_is_in_two_splits_and_every_slide_is_tested_and_validated_once(
    cohort: tuple[pa.Table, int], seed: int
) -> None:
    table, n_folds = cohort
    fold = fold_of(table, n_folds, seed)
    assert sorted(set(fold.tolist())) == list(range(n_folds))
    found = cross_validation_splits(TASK, table, fold, n_folds)
    assert found.schema == run_schema("folds")
    rows = found.to_pylist()
    splits_of: dict[tuple[int, str], set[str]] = {}
    for row in rows:
        splits_of.setdefault((row["fold"], row["patient_id"]), set()).add(row["split"])
    assert all(len(one) == 1 for one in splits_of.values())
    for split in ("test", "val"):
        times = Counter(row["slide_id"] for row in rows if row["split"] == split)
        assert times == Counter(table["slide_id"].to_pylist())
    assert Counter(row["fold"] for row in rows) == Counter(dict.fromkeys(range(n_folds), table.num_rows))


def test_no_training_part_lacks_a_class_that_could_be_there() -> None:
    slides_of = [1, 1, 2, 1, 1, 2, 1, 3, 3, 1, 2, 3]  # as even with all slides of class 0 in two of the three parts
    table = labelled([(f"P{k}", k % 3) for k, n in enumerate(slides_of) for _ in range(n)])
    fold = fold_of(table, 3)
    for part in range(3):
        assert set(table["label"].to_numpy()[fold == part].tolist()) == {0, 1, 2}
    assert cross_validation_splits(TASK, table, fold, 3).num_rows == 3 * 21


@settings(deadline=None, max_examples=40)
@given(cohorts(), st.randoms(use_true_random=False))
def test_folds_do_not_depend_on_the_order_of_rows(cohort: tuple[pa.Table, int], random) -> None:
    table, n_folds = cohort
    order = list(range(table.num_rows))
    random.shuffle(order)
    other = table.take(order)
    fold = fold_of(table, n_folds)
    assert fold_of(other, n_folds).tolist() == fold[order].tolist()
    assert cross_validation_splits(TASK, other, fold[order], n_folds) == cross_validation_splits(
        TASK, table, fold, n_folds
    )
    assert shuffle_labels(other, 5).sort_by("slide_id") == shuffle_labels(table, 5).sort_by("slide_id")


def test_a_seed_gives_the_same_folds_each_time() -> None:
    table = labelled([(f"P{k}", k % 3) for k in range(60)])
    assert fold_of(table, 10, 1).tolist() == fold_of(table, 10, 1).tolist()
    assert fold_of(table, 10, 1).tolist() != fold_of(table, 10, 2).tolist()


def test_splits_equal_a_worked_example() -> None:
    table = labelled([("C", 2), ("A", 0), ("B", 1), ("D", 0), ("E", 1), ("F", 2), ("G", 0), ("H", 1), ("I", 2)])
    fold = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2], np.int32)
    rows = cross_validation_splits(TASK, table, fold, 3).to_pylist()
    assert [one["split"] for one in rows if one["fold"] == 0] == ["test"] * 3 + ["val"] * 3 + ["train"] * 3
    assert [one["split"] for one in rows if one["fold"] == 2] == ["val"] * 3 + ["train"] * 3 + ["test"] * 3
    assert rows[0] == {"task": TASK, "fold": 0, "slide_id": "s000", "patient_id": "C", "split": "test"}


def test_the_final_model_validates_on_part_0_and_has_no_test_part() -> None:
    table = labelled([(f"P{k}", k % 3) for k in range(30)])
    fold = fold_of(table, 10)
    rows = final_split(TASK, table, fold).to_pylist()
    assert {one["fold"] for one in rows} == {FINAL_FOLD}
    assert Counter(one["split"] for one in rows) == {"train": 27, "val": 3}
    assert [one["split"] == "val" for one in rows] == (fold == 0).tolist()


@pytest.mark.parametrize(
    ("slides", "n_folds", "words"),
    [
        ([], 3, "her2-3way: no slide has a label for it; fill in its column"),
        ([("A", 0), (None, 1), (None, 2)], 3, r"slide s001 has no patient \(2 slides\); fill in patient_id"),
        ([("A", 0), ("A", 1), ("A", 2)], 3, "all 3 slides are of one patient"),
        ([(f"P{k}", k % 2) for k in range(20)], 3, "class high has no slide among 20; add slides of it"),
        (
            [(f"P{k}", int(k > 10)) for k in range(20)] + [("P1", 2), ("P2", 2), ("P2", 2)],
            3,
            "class high .* 2 patients",
        ),
        ([(f"P{k}", k % 3) for k in range(9)], 10, "9 patients are fewer than 10 folds; give --folds 9 or fewer"),
    ],
)
def test_what_cannot_be_cross_validated_is_refused_with_the_remedy(
    slides: list[tuple[str | None, int]], n_folds: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        check_labelled(TASK, labelled(slides), n_folds)


def test_a_cohort_of_enough_patients_passes() -> None:
    check_labelled(TASK, labelled([(f"P{k}", k % 3) for k in range(9)]), 9)


def test_a_training_part_without_a_class_is_refused() -> None:
    table = labelled([(f"P{k}", k % 3) for k in range(9)])
    fold = np.array([0, 0, 0, 1, 1, 1, 2, 2, 1], np.int32)  # parts 0 and 1 hold high, fold 0 trains on part 2
    with pytest.raises(InputError, match="class high has no slide in the training part of fold 0; give more --folds"):
        cross_validation_splits(TASK, table, fold, 3)
    with pytest.raises(InputError, match=r"fold 3 of 4 has none of its 9 slides"):
        cross_validation_splits(
            TASK, labelled([(f"P{k}", k % 3) for k in range(9)]), np.arange(9, dtype=np.int32) // 3, 4
        )


def test_shuffled_labels_move_between_patients_and_keep_together() -> None:
    slides = [(f"P{k}", k % 3) for k in range(60) for _ in range(1 + k // 3 % 3)]
    table = labelled(slides)
    other = shuffle_labels(table, seed=0)
    assert other["slide_id"] == table["slide_id"]
    assert other["patient_id"] == table["patient_id"]
    assert (other["label"].to_numpy() != table["label"].to_numpy()).mean() > 0.4
    rows = other.to_pylist()
    by_patient: dict[str, set[int]] = {}
    for row in rows:
        assert CLASSES[TASK][row["label"]] == row["truth"] == row["stratum"].removesuffix("/")
        by_patient.setdefault(row["patient_id"], set()).add(row["label"])
    assert all(len(one) == 1 for one in by_patient.values())
    assert Counter(one for labels in by_patient.values() for one in labels) == {0: 20, 1: 20, 2: 20}
    assert shuffle_labels(table, seed=0) == other
    assert shuffle_labels(table, seed=1) != other


def test_shuffled_labels_of_one_patient_keep_their_order() -> None:
    table = labelled([("A", 0), ("A", 1), ("B", 2), ("B", 2)])
    seen = {tuple(shuffle_labels(table, seed)["label"].to_pylist()) for seed in range(12)}
    assert seen == {(0, 1, 2, 2), (2, 2, 0, 1)}
