"""The lists a pathologist opens first: who stands on which, and why."""

from dataclasses import replace

from her2batch.reports import worklists
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import Listing
from her2batch.tasks import CLASSES
from tests.reports.conftest import FAILED


def call(slide_id: str, predicted: str, task: str = "her2-4way", method: str = "membrane", **more: object) -> dict:
    classes = CLASSES[task]
    p = [0.9 if one == predicted else 0.1 / (len(classes) - 1) for one in classes]
    return {
        "slide_id": slide_id, "task": task, "method": method, "classes": list(classes), "p": p, "score": 1.0,
        "predicted": predicted, "plausible": [predicted], "review": False, "reasons": [], "bundle": "membrane", **more,
    }  # fmt: skip


def said(material: ReportData, *calls: dict, **labels: dict) -> ReportData:
    """The material with these predictions, all on its own slides, and these labels."""
    found: dict[str, list] = {}
    for one in calls:
        found.setdefault(one["slide_id"], []).append(one)
    return replace(material, calls=found, labels=labels)


def ids(listing: Listing) -> list[str]:
    return [row[0] for row in listing.rows]


def three(material: ReportData) -> list[str]:
    return [row["slide_id"] for row in material.done][:3]


def test_2_plus_waits_for_ish_and_no_longer_when_it_is_known(material: ReportData) -> None:
    a, b, c = three(material)
    calls = (call(a, "2+"), call(b, "1+"), call(b, "2+", method="clam-sb"), call(c, "2+"))
    found = worklists.equivocal(said(material, *calls, **{c: {"her2": "2+", "ish": "-", "site": "x"}}))
    assert ids(found) == [a, b]
    assert found.slides == [a, b]


def test_0_against_1_is_where_both_are_plausible_or_a_trace_is_there(material: ReportData) -> None:
    a, b, c = three(material)
    both = {"plausible": ["0", "1+"]}
    found = worklists.second_look(
        said(material, call(a, "0", **both), call(b, "0", reasons=["ultralow"]), call(c, "1+"))
    )
    assert ids(found) == [a, b]
    far = said(material, call(a, "2+", plausible=["0", "1+", "2+"]))
    assert ids(worklists.second_look(far)) == []


def test_disagreement_has_a_column_a_method(material: ReportData) -> None:
    a, b, _ = three(material)
    other = {"task": "her2-3way", "method": "svm", "bundle": "abcdef"}
    calls = (
        call(a, "low", task="her2-3way"),
        call(a, "0", **other),
        call(b, "0", task="her2-3way"),
        call(b, "0", **other),
    )
    found = worklists.disagreement(said(material, *calls))
    assert [one[0] for one in found.columns][-2:] == ["membrane", "svm abcd"]
    assert [row[0] for row in found.rows] == [a]
    assert found.rows[0][-3:] == ["her2-3way", "low", "0"]


def test_near_10_percent_shows_the_share_that_is_near(material: ReportData) -> None:
    found = worklists.near_threshold(material)
    near = {slide_id for slide_id in material.rows for one in material.said(slide_id, "her2-4way")
            if "near-10-percent" in one["reasons"]}  # fmt: skip
    assert set(ids(found)) == near
    assert near
    names = [one[0] for one in found.columns]
    for row in found.rows:
        assert 0.1 / 1.5 - 1e-6 <= row[names.index("nearest")] <= 0.15 + 1e-6


def test_what_has_no_score_has_a_reason(material: ReportData) -> None:
    found = worklists.unscorable(material)
    why = {row[0]: row[4] for row in found.rows}
    assert why[FAILED] == "truncated"
    for slide_id, row in material.rows.items():
        if row["status"] == "done" and row["stain"] in ("er", "pr"):
            assert why[slide_id] == "no-method"
    assert "her2" not in {material.rows[one]["stain"] for one, reason in why.items() if reason == "no-method"}


def test_cases_stand_side_by_side_conflicts_first(material: ReportData) -> None:
    found = worklists.side_by_side(material)
    assert {row[0]: [one[0] for one in row[3]] for row in found.rows} == {
        case.name: [row["slide_id"] for row in case.slides] for case in material.cases if len(case.slides) > 1
    }
    conflicts = [bool(row[4]) for row in found.rows]
    assert conflicts == sorted(conflicts, reverse=True)
    assert all(len(row) == len(found.columns) for row in found.rows)


def test_every_list_has_a_value_a_column_and_names_its_source(material: ReportData) -> None:
    for make in (*worklists.WORKLISTS, worklists.flagged, worklists.every):
        found = make(material)
        assert all(len(row) == len(found.columns) for row in found.rows), found.name
        assert all(source for _, _, source in found.columns), found.name
    assert ids(worklists.every(material)) == list(material.rows)
