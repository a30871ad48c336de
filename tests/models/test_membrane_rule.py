"""The membrane rule: every wording of the guideline, and properties of its probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.models.membrane_rule import MIN_PLAUSIBLE, apply_rule, guideline_steps, rule_predictions, slide_shares
from her2batch.tasks import CLASSES, IHC_SCORES, her2_class
from her2batch.vision.membrane import MEMBRANE_COLUMNS

shares = st.floats(0, 1, width=32)
steps = st.lists(shares, min_size=6, max_size=6)


def table(faint=0.0, complete=0.0, intense=0.0, cells=0.5, tiles=3) -> dict[str, np.ndarray]:
    """A slide of like tiles: `faint` or more, `complete` moderate or more, `intense` and complete."""
    faint, complete = max(faint, complete, intense), max(complete, intense)
    row = {
        "cells": cells, "faint": faint, "moderate": complete, "intense": intense,
        "faint_complete": complete, "moderate_complete": complete, "intense_complete": intense,
    }  # fmt: skip
    return {name: np.full(tiles, row[name], np.float32) for name in MEMBRANE_COLUMNS}


WORDING = [
    ("none", {}, "0"),
    ("faint, incomplete in 10 % or less", {"faint": 0.08}, "0"),
    ("faint, incomplete in more than 10 %", {"faint": 0.3}, "1+"),
    ("weak to moderate, complete in 10 % or less", {"faint": 0.3, "complete": 0.08}, "1+"),
    ("weak to moderate, complete in more than 10 %", {"faint": 0.3, "complete": 0.2}, "2+"),
    ("intense, complete in 10 % or less", {"faint": 0.09, "complete": 0.06, "intense": 0.05}, "2+"),
    ("intense, complete in more than 10 %", {"intense": 0.2}, "3+"),
]


@pytest.mark.parametrize(("words", "given_shares", "score"), WORDING, ids=[one[0] for one in WORDING])
def test_each_wording_of_the_guideline_gives_its_score(words: str, given_shares: dict[str, float], score: str) -> None:
    assert apply_rule(table(**given_shares)).category == score


@given(shares, shares, shares)
def test_the_first_step_reached_is_the_class(faint, complete, intense) -> None:
    figures = table(faint, complete, intense)
    climbed = next((one.category for one in guideline_steps(slide_shares(figures)) if one.reached), "0")
    assert climbed == apply_rule(figures).category


def test_ultralow_is_a_flag_of_score_0() -> None:
    assert apply_rule(table(faint=0.05)).ultralow
    assert "ultralow" in apply_rule(table(faint=0.05)).reasons
    for other in ({}, {"faint": 0.3}, {"intense": 0.3}):
        assert not apply_rule(table(**other)).ultralow


@given(shares, shares, shares, st.sampled_from(["faint", "complete", "intense"]), shares)
def test_more_staining_never_lowers_the_score(faint, complete, intense, what, more) -> None:
    before = {"faint": faint, "complete": complete, "intense": intense}
    after = before | {what: max(before[what], more)}
    low, high = apply_rule(table(**before)), apply_rule(table(**after))
    assert high.score >= low.score - 1e-9
    assert IHC_SCORES.index(high.category) >= IHC_SCORES.index(low.category)


@given(shares, shares, shares)
def test_probabilities_score_and_class_agree(faint, complete, intense) -> None:
    verdict = apply_rule(table(faint, complete, intense))
    assert 0 <= verdict.score <= 3
    assert sum(verdict.p) == pytest.approx(1)
    assert min(verdict.p) >= -1e-12
    assert verdict.distance >= 0
    place = IHC_SCORES.index(verdict.category)
    assert sum(verdict.p[place:]) >= 0.5 - 1e-9  # the category is the median class
    assert sum(verdict.p[: place + 1]) >= 0.5 - 1e-9
    assert verdict.score >= place / 2


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=20))
def test_shares_of_a_slide_are_weighted_by_cellular_area(rows) -> None:
    cells, faint = (np.array(one, np.float32) for one in zip(*rows, strict=True))
    columns = {name: np.zeros(len(rows), np.float32) for name in MEMBRANE_COLUMNS} | {"cells": cells, "faint": faint}
    found = slide_shares(columns)
    halves = [slide_shares({k: v[part] for k, v in columns.items()}) for part in (np.s_[: len(rows) // 2 + 1],)]
    assert found["cells"] == pytest.approx(cells.mean(), rel=1e-5, abs=1e-9)
    if cells.sum() > 1e-3:
        assert found["faint"] == pytest.approx(np.average(faint.astype(float), weights=cells), rel=1e-5, abs=1e-9)
    assert all(0 <= value <= 1 + 1e-6 for half in halves for value in half.values())


def test_near_a_threshold_both_classes_stay_plausible() -> None:
    near, far = apply_rule(table(faint=0.11)), apply_rule(table(faint=0.6))
    assert "near-10-percent" in near.reasons
    assert "near-10-percent" in apply_rule(table(faint=0.19)).reasons  # one standard deviation of a share away
    assert min(near.p[0], near.p[1]) > 0.3
    assert far.reasons == ()
    assert far.p[1] > 0.95
    assert far.distance > near.distance


@pytest.mark.parametrize("complete", [0.55, 0.7, 0.9])
def test_weak_complete_staining_is_for_review_as_2_plus(complete: float) -> None:
    columns = table(faint=max(complete, 0.6)) | {"faint_complete": np.full(3, complete, np.float32)}
    verdict = apply_rule(columns)
    assert "weak-complete" in verdict.reasons
    for row in rule_predictions(verdict, presumed=False):
        assert row["review"]
        assert {str(her2_class(row["task"], "2+", ish)) for ish in "-+"} <= set(row["plausible"])


@pytest.mark.parametrize(("faint", "complete"), [(0.4, 0.25), (0.7, 0.46), (0.05, 0.02)])
def test_broken_rings_are_no_weak_complete_staining(faint: float, complete: float) -> None:
    columns = table(faint=faint) | {"faint_complete": np.full(3, complete, np.float32)}
    assert "weak-complete" not in apply_rule(columns).reasons


def test_low_cellularity_needs_review() -> None:
    verdict = apply_rule(table(faint=0.6, cells=0.01))
    assert verdict.reasons == ("low-cellularity",)
    assert all(row["review"] for row in rule_predictions(verdict, presumed=False))


def test_a_slide_without_cells_is_0_and_without_tiles_refused() -> None:
    assert apply_rule(table(cells=0.0)).category == "0"
    with pytest.raises(ValueError, match="without tiles"):
        apply_rule(table(tiles=0))


class TestPredictions:
    def rows(self, presumed: bool = False, **given_shares: float) -> dict[str, dict]:
        return {row["task"]: row for row in rule_predictions(apply_rule(table(**given_shares)), presumed)}

    def test_there_is_one_row_per_task_with_its_classes(self) -> None:
        for task, row in self.rows(intense=0.5).items():
            assert row["classes"] == list(CLASSES[task])
            assert sum(row["p"]) == pytest.approx(1)
            assert row["method"] == "membrane"
            assert row["predicted"] in row["plausible"]
            assert row["score"] > 2.5

    @pytest.mark.parametrize(
        ("given_shares", "predicted"),
        [
            ({}, ("0", "0", "negative")),
            ({"faint": 0.6}, ("1+", "low", "negative")),
        ],
    )
    def test_clear_slides_need_no_review(self, given_shares, predicted) -> None:
        rows = self.rows(**given_shares)
        assert tuple(row["predicted"] for row in rows.values()) == predicted
        assert all(row["reasons"] == ["uncalibrated"] for row in rows.values())
        assert not any(row["review"] for row in rows.values())

    def test_a_slide_without_any_staining_is_0_in_every_laboratory(self) -> None:
        assert self.rows()["her2-4way"]["plausible"] == ["0"]

    @given(shares, shares, shares)
    def test_plausible_classes_have_no_gaps_and_reach_at_most_one_further_on_each_side(
        self, faint, complete, intense
    ) -> None:
        result = apply_rule(table(faint, complete, intense))
        for row in rule_predictions(result, presumed=False):
            places = [row["classes"].index(name) for name in row["plausible"]]
            assert places == list(range(places[0], places[-1] + 1))
            likely = [k for k, p in enumerate(row["p"]) if p >= MIN_PLAUSIBLE]
            if row["task"] == "her2-4way":
                assert min(likely) - places[0] <= 1
                assert places[-1] - max(likely) <= 1

    @pytest.mark.parametrize(
        ("given_shares", "plausible"),
        [
            ({"faint": 0.3}, ["0", "1+"]),
            ({"faint": 0.9, "complete": 0.03}, ["1+", "2+"]),
            ({"faint": 0.9, "complete": 0.6, "intense": 0.03}, ["2+", "3+"]),
            ({"complete": 0.9, "intense": 0.3}, ["2+", "3+"]),
        ],
    )
    def test_a_class_that_another_laboratory_would_give_is_plausible(self, given_shares, plausible) -> None:
        assert self.rows(**given_shares)["her2-4way"]["plausible"] == plausible

    def test_3_plus_by_the_area_alone_is_for_review(self) -> None:
        for row in self.rows(intense=0.5).values():
            assert row["review"]
            assert "unconfirmed-3-plus" in row["reasons"]

    def test_2_plus_needs_ish(self) -> None:
        rows = self.rows(complete=0.4)
        assert rows["her2-4way"]["predicted"] == "2+"
        assert "needs-ish" not in rows["her2-4way"]["reasons"]
        assert {"low", "high"} <= set(rows["her2-3way"]["plausible"])
        assert rows["her2-binary"]["plausible"] == ["negative", "positive"]
        for task in ("her2-3way", "her2-binary"):
            assert "needs-ish" in rows[task]["reasons"]
            assert rows[task]["review"]
            assert rows[task]["p"][-1] == pytest.approx(22 / 118, abs=0.02)

    def test_a_presumed_marker_is_a_reason(self) -> None:
        assert all("marker-presumed" in row["reasons"] for row in self.rows(presumed=True, faint=0.6).values())
        assert not any("marker-presumed" in row["reasons"] for row in self.rows(faint=0.6).values())

    @given(shares, shares, shares)
    def test_every_class_above_the_threshold_is_plausible(self, faint, complete, intense) -> None:
        for row in rule_predictions(apply_rule(table(faint, complete, intense)), presumed=False):
            for name, p in zip(row["classes"], row["p"], strict=True):
                assert name in row["plausible"] or p < MIN_PLAUSIBLE
