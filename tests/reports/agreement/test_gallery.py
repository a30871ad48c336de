"""Misclassified slides: one entry each, the largest error first, for every approach of a training run."""

import numpy as np
import pyarrow as pa
import pytest

from her2batch.reports.agreement.gallery import (
    APPROACHES,
    MAX_OF_APPROACH,
    approach_of,
    galleries_by_approach,
    worst_misclassified,
)
from her2batch.store.tables.runs import run_schema
from tests.reports.agreement.predictions import predictions


@pytest.mark.parametrize(("method", "input_name", "approach"), [
    ("clam-sb", "uni", 0), ("abmil", "stain", 0), ("convnext-small", "thumbnail-512", 1), ("svm", "patches-low", 2),
    ("fusion", "all", 3),
])  # fmt: skip
def test_every_method_belongs_to_an_approach(method: str, input_name: str, approach: int) -> None:
    assert approach_of(method, input_name) == APPROACHES[approach]


def by_method(table: pa.Table, method: str, input_name: str) -> list[dict]:
    return [{**row, "method": method, "input": input_name} for row in table.to_pylist()]


def test_each_approach_of_a_run_has_its_own_slides() -> None:
    """Slide s1 is far from its label by MIL and right on its thumbnail, s2 the other way round."""
    truth = ["0", "3+", "1+"]
    mil = predictions("her2-4way", truth, np.array([[0.9, 0.1, 0, 0], [0.8, 0.1, 0.1, 0], [0.1, 0.9, 0, 0]]))
    images = predictions("her2-4way", truth, np.array([[0.9, 0.1, 0, 0], [0, 0, 0.1, 0.9], [0.1, 0, 0.9, 0]]))
    rows = [*by_method(mil, "clam-sb", "uni"), *by_method(images, "vit-base", "thumbnail-224")]
    found = galleries_by_approach(pa.Table.from_pylist(rows, run_schema("predictions")), set())
    assert [one.approach for one in found] == list(APPROACHES[:2])
    assert [[error["slide_id"] for error in one.errors] for one in found] == [["s1"], ["s2"]]
    assert [(one.n, one.tested) for one in found] == [(1, 3), (1, 3)]


def test_a_gallery_counts_the_slides_that_it_does_not_show() -> None:
    n = MAX_OF_APPROACH + 5
    table = predictions("her2-4way", ["3+"] * n, np.tile([0.7, 0.1, 0.1, 0.1], (n, 1)))
    (gallery,) = galleries_by_approach(table, set())
    assert (len(gallery.errors), gallery.n, gallery.tested) == (MAX_OF_APPROACH, n, n)


def test_tasks_of_the_user_are_ranked_by_their_own_classes() -> None:
    rows = [{"task": "ki67", "method": "clam-sb", "input": "uni", "fold": 0, "slide_id": f"s{k}", "truth": "high",
             "p": p, "predicted": predicted} for k, (p, predicted) in enumerate([([0.1, 0.8, 0.1], "middle"),
                                                                               ([0.6, 0.3, 0.1], "low")])]  # fmt: skip
    table = pa.Table.from_pylist(rows, run_schema("predictions"))
    (gallery,) = galleries_by_approach(table, set(), {"ki67": ("low", "middle", "high")})
    assert [error["slide_id"] for error in gallery.errors] == ["s1", "s0"]


def test_misclassified_slides_open_for_ish_show_only_their_ihc_score() -> None:
    rows = [*predictions("her2-binary", ["positive"], np.array([[0.9, 0.1]])).to_pylist(),
            *predictions("her2-4way", ["3+"], np.array([[0.1, 0.1, 0.7, 0.1]])).to_pylist()]  # fmt: skip
    table = pa.Table.from_pylist(rows, run_schema("predictions"))
    assert [row["task"] for row in worst_misclassified(table, {"s0"})] == ["her2-4way"]
    assert [row["predicted"] for row in worst_misclassified(table.slice(0, 1), set())] == ["negative"]
    (gallery,) = galleries_by_approach(table, {"s0"})
    assert [row["task"] for row in gallery.errors] == ["her2-4way"]
