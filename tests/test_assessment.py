"""The assessment of a slide: one result, what hangs on ISH, and all reasons for a review, the weightiest first."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.assessment import (
    INFORMATIVE_FLAGS,
    MICROARRAY,
    assess_slide,
    is_uncalibrated,
    prediction_review,
    quality_flags,
)
from her2batch.errors import REMEDIES
from her2batch.method_results import DERIVED_TASKS
from her2batch.models.membrane_rule import apply_rule, rule_predictions
from her2batch.reasons import NOT_ASKING, REASONS
from her2batch.tasks import CLASSES
from tests.models.test_membrane_rule import table

QUALITY = [code for code, (kind, _) in REASONS.items() if kind == "quality" and code != "low-cellularity"]


def slide(**more: Any) -> dict[str, Any]:
    row = {"slide_id": "S1", "stain": "her2", "status": "done", "flags": [], "n_tiles": 9, "blank_tiles": 0}
    return {**row, "error_code": None, "error": None, **more}


def prediction(predicted: str, task: str = "her2-4way", method: str = "membrane", **more: Any) -> dict[str, Any]:
    made = {"task": task, "method": method, "bundle": "membrane" if method == "membrane" else "b" * 12}
    p = [0.9 if name == predicted else 0.1 for name in CLASSES[task]]
    return {**made, "predicted": predicted, "classes": list(CLASSES[task]), "p": p, "plausible": [predicted],
            "review": False, "reasons": [], "score": None, **more}  # fmt: skip


def rule_rows(flags: tuple[str, ...] = (), **shares: float) -> list[dict[str, Any]]:
    """Predictions of the rules on area and on cells, which give the same class."""
    result = apply_rule(table(**shares))
    area, cells = (rule_predictions(result, False, flags, method) for method in ("membrane", "cells"))
    return [{**row, "bundle": row["method"]} for row in (*area, *cells)]


def entry(label: str | None, verdict: str = "change", task: str = "her2-4way", number: int = 1, **more: Any) -> dict:
    return {"number": number, "task": task, "verdict": verdict, "label": label, "supersedes": None, **more}


@pytest.mark.parametrize("flag", [*QUALITY, "a-flag-of-a-later-version"])
def test_every_quality_flag_makes_every_method_ask_for_a_review(flag: str) -> None:
    """A clear 3+ is for review with pen, blur, folds or any other flag, by the rule and by a trained method."""
    for row in rule_rows((flag,), intense=0.5):
        assert row["review"]
        assert row["reasons"] == [flag, "unconfirmed-3-plus", "uncalibrated"]
    clear = assess_slide(slide(flags=[flag]), rule_rows(intense=0.5))  # a table that was written before
    assert (clear.state, [reason.code for reason in clear.quality]) == ("review", [flag])
    assert assess_slide(slide(), rule_rows(intense=0.5)).state == "clear"


def test_flags_that_do_not_concern_the_image_ask_for_nothing() -> None:
    assert quality_flags([*INFORMATIVE_FLAGS, "pen"]) == ["pen"]
    flags = [flag for flag in INFORMATIVE_FLAGS if flag != MICROARRAY]
    assert assess_slide(slide(flags=flags), rule_rows(intense=0.5)).state == "clear"


def test_a_microarray_has_no_result_as_a_whole() -> None:
    found = assess_slide(slide(flags=[MICROARRAY]), rule_rows(intense=0.5))
    assert (found.result, found.state, found.methods) == (None, "other", ())
    assert "each core has its own score" in found.meaning
    assert assess_slide(slide(flags=[MICROARRAY, "pen"]), rule_rows(intense=0.5)).state == "review"


def test_every_flag_of_the_documentation_has_words() -> None:
    page = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text()
    section = page[page.index("## Quality flags") : page.index("## Reasons for review")]
    flags = set(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE))
    assert len(flags) > 10
    assert flags - INFORMATIVE_FLAGS - REASONS.keys() == set()


def test_tiles_without_image_ask_for_a_review() -> None:
    found = assess_slide(slide(blank_tiles=2), rule_rows(intense=0.5))
    assert [reason.words for reason in found.reasons] == [
        "parts of the tissue have no image (2 tiles, 9 with an image)"
    ]


def test_2_plus_without_ish_is_equivocal_and_nothing_follows_from_it() -> None:
    found = assess_slide(slide(), rule_rows(complete=0.4))
    assert (found.result, found.meaning, found.state) == ("2+", "equivocal, ISH needed", "review")
    assert found.derived == dict.fromkeys(DERIVED_TASKS)
    assert {one.task: one.predicted for one in found.methods} == {"her2-4way": "2+", **dict.fromkeys(DERIVED_TASKS)}


@pytest.mark.parametrize(("ish", "three", "two"), [("+", "high", "positive"), ("-", "low", "negative")])
def test_2_plus_with_ish_is_what_ish_says(ish: str, three: str, two: str) -> None:
    found = assess_slide(slide(), rule_rows(complete=0.4), {"her2": "2+", "ish": ish})
    assert (found.result, found.needs_ish, found.derived) == ("2+", False, {"her2-3way": three, "her2-binary": two})
    assert two in found.meaning
    assert not [one for one in found.methods if one.task in DERIVED_TASKS and one.predicted is not None]
    assert found.state == "clear"


@pytest.mark.parametrize(
    ("score", "ish", "asks"), [("3+", "-", True), ("3+", "+", False), ("1+", "+", True), ("0", "-", False)]
)
def test_a_score_that_the_laboratorys_ish_contradicts_is_for_review(score: str, ish: str, asks: bool) -> None:
    both = [prediction(score), prediction(score, method="cells")]
    found = assess_slide(slide(), both, {"ish": ish})
    assert (found.state, [one.code for one in found.reasons]) == (
        ("review", ["ish-contradicts"]) if asks else ("clear", [])
    )
    decided = assess_slide(slide(), both, {"ish": ish}, [entry(score, "agree")])
    assert (decided.state, decided.reasons) == ("decided", ())


def test_2_plus_by_another_method_holds_the_derived_classes_back() -> None:
    rows = [*rule_rows(intense=0.5), prediction("2+", method="clam-sb")]
    found = assess_slide(slide(), rows)
    assert (found.result, found.needs_ish, found.derived["her2-binary"]) == ("3+", True, None)
    assert [reason.code for reason in found.reasons] == ["needs-ish", "methods-disagree"]
    assert found.reasons[1].words.endswith("(IHC score: 3+ by membrane, 3+ by cells, 2+ by clam-sb)")


def test_all_reasons_are_in_words_once_and_the_weightiest_first() -> None:
    rows = rule_rows(("pen", "blurred"), complete=0.105, cells=0.01)
    found = assess_slide(
        slide(flags=["blurred", "pen"]), [*rows, prediction("1+", method="svm", reasons=["undecided"])]
    )
    assert [reason.code for reason in found.reasons] == [
        "needs-ish", "methods-disagree", "pen", "blurred", "low-cellularity", "near-10-percent", "undecided"
    ]  # fmt: skip
    assert all(" " in reason.words and "-percent" not in reason.words for reason in found.reasons)


@pytest.mark.parametrize("code", sorted(NOT_ASKING))
def test_remarks_alone_ask_for_no_review(code: str) -> None:
    found = assess_slide(slide(), [prediction("0", method="svm", reasons=[code])])
    assert (found.state, [reason.code for reason in found.reasons]) == ("clear", [code])
    assert not prediction_review("her2-4way", "0", [code])


def test_that_a_rule_is_not_calibrated_is_said_once_and_not_for_every_slide() -> None:
    rows = rule_rows()
    assert all("uncalibrated" in row["reasons"] for row in rows)
    assert is_uncalibrated(rows)
    assert assess_slide(slide(), rows).reasons == ()
    assert not is_uncalibrated([{**row, "bundle": "cal-0123456789ab", "reasons": []} for row in rows] + rows)
    assert not is_uncalibrated([prediction("0", method="svm", reasons=["uncalibrated"])])


def test_a_calibrated_prediction_takes_the_place_of_the_uncalibrated_one() -> None:
    area = [row for row in rule_rows() if row["method"] == "membrane"]
    calibrated = [{**row, "bundle": "cal-0123456789ab", "predicted": "1+"} for row in area[:1]]
    found = assess_slide(slide(), [*area, *calibrated])
    assert found.result == "1+"
    assert not any(reason.code == "methods-disagree" for reason in found.reasons)


@pytest.mark.parametrize("method", ["membrane", "cells"])
def test_3_plus_by_one_rule_alone_is_for_review(method: str) -> None:
    rows = [row for row in rule_rows(intense=0.5) if row["method"] == method]
    found = assess_slide(slide(), rows)
    assert (found.state, [reason.code for reason in found.reasons]) == ("review", ["unconfirmed-3-plus"])
    assert assess_slide(slide(), rule_rows(intense=0.5)).state == "clear"


def test_a_method_that_asks_without_a_reason_is_named() -> None:
    found = assess_slide(slide(), [prediction("3+", method="cells", review=True)])
    assert [reason.words for reason in found.reasons] == ["a method asks for a review (cells)"]


@pytest.mark.parametrize("code", ["truncated", "a-new-code"])
def test_a_failed_slide_is_for_review_with_its_remedy(code: str) -> None:
    found = assess_slide(slide(status="failed", error_code=code, error="/scans/x: cut"))
    assert (found.state, found.result, found.reasons[0].code) == ("review", None, "failed")
    assert REMEDIES.get(code, code) in found.reasons[0].words
    assert "/scans" not in found.reasons[0].words


@pytest.mark.parametrize("stain", ["er", "pr", "ki67", "he"])
def test_slides_of_another_marker_are_not_unscorable_her2(stain: str) -> None:
    found = assess_slide(slide(stain=stain, flags=["pen"]))
    assert (found.state, found.result) == ("other", None)
    assert "HER2" not in found.meaning


def test_an_er_slide_with_a_prediction_has_its_class() -> None:
    found = assess_slide(slide(stain="er"), [prediction("positive", "er", "clam-sb")])
    assert (found.state, found.result, found.task, found.derived) == ("clear", "positive", "er", {})


class TestVerdicts:
    def test_a_decided_slide_is_not_asked_again_and_its_result_is_the_verdict(self) -> None:
        found = assess_slide(slide(flags=["pen"]), rule_rows(complete=0.4), None, [entry("1+")])
        assert (found.state, found.result, found.by) == ("decided", "1+", "pathologist")
        assert (found.needs_ish, found.derived["her2-binary"]) == (False, "negative")

    @pytest.mark.parametrize(("task", "label"), [("er", "positive"), ("her2-4way", "1+")])
    def test_a_slide_that_cannot_be_scored_gets_its_result_from_the_verdict(self, task: str, label: str) -> None:
        refused = prediction(None, task, "cells", reasons=["few-tumour-cells"], bundle="cells", review=True)
        found = assess_slide(slide(stain=task.partition("-")[0]), [refused])
        assert (found.state, found.result, found.not_scorable) == ("review", None, True)
        assert found.main == refused  # what the verdict refers to
        decided = assess_slide(slide(), [refused], None, [entry(label, task=task)])
        assert (decided.state, decided.result, decided.by) == ("decided", label, "pathologist")

    @pytest.mark.parametrize("given_entry", [entry("2+", "agree"), entry(None, "needs-ish")])
    def test_2_plus_by_a_pathologist_still_waits_for_ish(self, given_entry: dict) -> None:
        found = assess_slide(slide(), rule_rows(complete=0.4), None, [given_entry])
        assert (found.state, found.result, found.needs_ish) == ("decided", "2+", True)
        assert found.derived == dict.fromkeys(DERIVED_TASKS)

    def test_the_newest_entry_counts_unless_it_is_superseded(self) -> None:
        entries = [entry("1+", number=1), entry("3+", number=2), entry("0", number=3, supersedes=2)]
        assert assess_slide(slide(), rule_rows(), None, entries).result == "0"
        assert assess_slide(slide(), rule_rows(), None, entries[:2]).result == "3+"

    def test_an_er_verdict_decides_no_her2_slide(self) -> None:
        assert assess_slide(slide(flags=["pen"]), rule_rows(), None, [entry("positive", task="er")]).state == "review"


names = st.sampled_from(sorted(CLASSES["her2-4way"]))
HER2_REASONS = [*sorted({*REASONS} - {"low-positive", "weak-nuclei"}), "odd"]  # those are of ER alone
made_predictions = st.lists(
    st.sampled_from(["her2-4way", *DERIVED_TASKS]).flatmap(
        lambda task: st.builds(
            prediction,
            st.sampled_from(CLASSES[task]),
            st.just(task),
            st.sampled_from(["membrane", "clam-sb", "svm"]),
            reasons=st.lists(st.sampled_from(HER2_REASONS), max_size=3),
            review=st.booleans(),
        )
    ),
    max_size=6,
)


@given(made_predictions, st.lists(st.sampled_from([*QUALITY, "odd"]), max_size=3), st.sampled_from([None, "+", "-"]),
       st.none() | names)  # fmt: skip
def test_nothing_definite_is_shown_while_the_review_is_open_for_ish(
    rows: list[dict], flags: list[str], ish: str | None, label: str | None
) -> None:
    found = assess_slide(slide(flags=flags), rows, {"her2": label, "ish": ish})
    two_plus = any(one["predicted"] == "2+" or "needs-ish" in one["reasons"] for one in rows)
    assert found.needs_ish == (two_plus and ish is None)
    if found.needs_ish:
        assert found.review
        assert set(found.derived.values()) == {None}
        assert all(one.predicted is None for one in found.methods if one.task in DERIVED_TASKS)
        shown = " ".join([found.meaning, *(one.text for one in found.methods), *(one.words for one in found.reasons)])
        assert not {"negative", "positive", "low", "high"} & set(shown.replace(",", " ").split())
    if flags and rows:
        assert found.review
    assert found.review == (found.state == "review")


@pytest.mark.parametrize(("predicted", "result", "meaning"), [
    ("null", "0", "HER2 zero"), ("ultralow", "0", "HER2 zero"), ("1+", "1+", "HER2-low"), ("3+", "3+", "HER2 positive"),
])  # fmt: skip
def test_a_sub_score_of_0_is_0_in_the_result(predicted: str, result: str, meaning: str) -> None:
    found = assess_slide(slide(), [prediction(predicted, "her2-5way", "clam-sb")])
    assert (found.result, found.meaning, found.by) == (result, meaning, "clam-sb")
    reviewed = assess_slide(slide(), rule_rows(intense=0.5), reviews=[entry(predicted, task="her2-5way")])
    assert (reviewed.result, reviewed.by) == (result, "pathologist")


def test_2_plus_of_five_classes_is_equivocal_too() -> None:
    found = assess_slide(slide(), [prediction("2+", "her2-5way", "clam-sb")])
    assert (found.needs_ish, found.state) == (True, "review")
    assert prediction_review("her2-5way", "2+", [])


def test_a_control_slide_has_no_result_and_is_for_review_only_where_it_failed() -> None:
    row = {"slide_id": "C", "status": "done", "stain": "her2", "n_tiles": 9, "flags": ["control-slide"]}
    found = assess_slide(row)
    assert (found.state, found.result, found.meaning, found.reasons) == ("other", None, "control slide", ())
    failed = assess_slide({**row, "flags": ["control-slide", "control-failed"]})
    assert failed.state == "review"
    assert [reason.code for reason in failed.reasons] == ["control-failed"]


@pytest.mark.parametrize(
    ("stain", "more", "meaning"),
    [
        ("er", {"predicted": "positive", "task": "er"}, "ER positive"),
        ("pr", {"predicted": "negative", "task": "pr"}, "PR negative"),
        ("ki67", {"predicted": "38.8", "task": "ki67", "classes": []}, "Ki-67: 38.8\u00a0% of the tumour cells"),
        ("ki67", {"predicted": "12", "task": "index", "classes": [], "method": "clam-sb"}, "index: 12"),
    ],
)
def test_the_result_of_another_marker_is_named_with_its_marker(stain: str, more: dict[str, Any], meaning: str) -> None:
    """A class or a number alone could be read as HER2."""
    own = {**prediction("0"), "method": "cells", "bundle": "cells", **more}
    found = assess_slide(slide(stain=stain), [own], {stain: "+", "ish": None})
    assert (found.result, found.meaning) == (more["predicted"], meaning)


def test_the_laboratorys_er_and_pr_results_are_classes() -> None:
    own = [{**prediction("0"), "task": "er", "method": "cells", "bundle": "cells", "predicted": "negative"}]
    assert [assess_slide(slide(stain="er"), own, {"er": sign}).label for sign in ("+", "-", None)] == [
        "positive", "negative", None,
    ]  # fmt: skip


class TestFailedSlides:
    """The glass of a slide that could not be read can be scored by microscope."""

    failed = staticmethod(lambda **more: slide(status="failed", error_code="truncated", **more))

    def test_a_failed_slide_waits_for_a_new_scan_or_a_verdict(self) -> None:
        found = assess_slide(self.failed())
        assert (found.state, found.result, found.meaning) == ("review", None, "no result: the slide failed (truncated)")
        assert found.verdict_target == {"bundle": "none", "method": "none", "task": "her2-4way", "predicted": None}
        assert found.main is None

    def test_a_verdict_decides_it_and_gives_its_result(self) -> None:
        found = assess_slide(self.failed(), (), None, [entry("3+")])
        assert (found.state, found.result, found.by, found.meaning) == ("decided", "3+", "pathologist", "HER2 positive")
        assert found.derived == {"her2-3way": "high", "her2-binary": "positive"}
        assert found.reasons[0].code == "failed"  # the file is still to be scanned again

    def test_2_plus_on_the_glass_waits_for_ish_too(self) -> None:
        found = assess_slide(self.failed(), (), None, [entry("2+")])
        assert (found.meaning, found.derived["her2-binary"]) == ("equivocal, ISH needed", None)

    @pytest.mark.parametrize(("stain", "task"), [("er", "er"), ("he", None), ("ki67", None)])
    def test_the_verdict_is_that_of_the_slides_marker(self, stain: str, task: str | None) -> None:
        target = assess_slide(self.failed(stain=stain)).verdict_target
        assert (target and target["task"]) == task
