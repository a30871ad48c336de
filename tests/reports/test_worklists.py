"""Work lists: which slides are on which list."""

from dataclasses import replace

from her2batch.reports import worklists
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import SortableTable
from her2batch.tasks import CLASSES
from tests.reports.conftest import FAILED


def prediction(
    slide_id: str, predicted: str, task: str = "her2-4way", method: str = "membrane", **more: object
) -> dict:
    classes = CLASSES[task]
    p = [0.9 if one == predicted else 0.1 / (len(classes) - 1) for one in classes]
    return {
        "slide_id": slide_id, "task": task, "method": method, "classes": list(classes), "p": p, "score": 1.0,
        "predicted": predicted, "plausible": [predicted], "review": False, "reasons": [], "bundle": "membrane", **more,
    }  # fmt: skip


def with_predictions(report_data: ReportData, *predictions: dict, **labels: dict) -> ReportData:
    """Return the data with these predictions and labels instead of its own."""
    found: dict[str, list] = {}
    for row in predictions:
        found.setdefault(row["slide_id"], []).append(row)
    return replace(report_data, predictions=found, labels=labels)


def slide_ids(table: SortableTable) -> list[str]:
    return [row[0] for row in table.rows]


def three_slides(report_data: ReportData) -> list[str]:
    return [row["slide_id"] for row in report_data.done_rows][:3]


def test_2_plus_is_equivocal_until_ish_is_known(report_data: ReportData) -> None:
    a, b, c = three_slides(report_data)
    predictions = (prediction(a, "2+"), prediction(b, "1+"), prediction(b, "2+", method="clam-sb"), prediction(c, "2+"))
    found = worklists.list_equivocal(
        with_predictions(report_data, *predictions, **{c: {"her2": "2+", "ish": "-", "site": "x"}})
    )
    assert slide_ids(found) == [a, b]
    assert found.slide_ids == [a, b]


def test_0_against_1_plus_lists_plausible_both_and_ultralow(report_data: ReportData) -> None:
    a, b, c = three_slides(report_data)
    both = {"plausible": ["0", "1+"]}
    found = worklists.list_zero_against_one_plus(
        with_predictions(
            report_data, prediction(a, "0", **both), prediction(b, "0", reasons=["ultralow"]), prediction(c, "1+")
        )
    )
    assert slide_ids(found) == [a, b]
    far = with_predictions(report_data, prediction(a, "2+", plausible=["0", "1+", "2+"]))
    assert slide_ids(worklists.list_zero_against_one_plus(far)) == []


def test_disagreement_has_a_column_for_each_method(report_data: ReportData) -> None:
    a, b, _ = three_slides(report_data)
    other = {"task": "her2-3way", "method": "svm", "bundle": "abcdef"}
    predictions = (
        prediction(a, "low", task="her2-3way"),
        prediction(a, "0", **other),
        prediction(b, "0", task="her2-3way"),
        prediction(b, "0", **other),
    )
    found = worklists.list_disagreements(with_predictions(report_data, *predictions))
    assert [one[0] for one in found.columns][-2:] == ["membrane", "svm abcd"]
    assert [row[0] for row in found.rows] == [a]
    assert found.rows[0][-3:] == ["her2-3way", "low", "0"]


def test_near_threshold_shows_the_nearest_share(report_data: ReportData) -> None:
    found = worklists.list_near_threshold(report_data)
    near = {slide_id for slide_id in report_data.rows for one in report_data.predictions_for(slide_id, "her2-4way")
            if "near-10-percent" in one["reasons"]}  # fmt: skip
    assert set(slide_ids(found)) == near
    assert near
    names = [one[0] for one in found.columns]
    for row in found.rows:
        assert 0.1 / 1.5 - 1e-6 <= row[names.index("nearest")] <= 0.15 + 1e-6


def test_unscorable_slides_have_a_reason(report_data: ReportData) -> None:
    found = worklists.list_unscorable(report_data)
    why = {row[0]: row[4] for row in found.rows}
    assert why[FAILED] == "truncated"
    for slide_id, row in report_data.rows.items():
        if row["status"] == "done" and row["stain"] in ("er", "pr"):
            assert why[slide_id] == "no-method"
    assert "her2" not in {report_data.rows[one]["stain"] for one, reason in why.items() if reason == "no-method"}


def test_cases_are_listed_with_conflicts_first(report_data: ReportData) -> None:
    found = worklists.list_cases(report_data)
    assert {row[0]: [one[0] for one in row[3]] for row in found.rows} == {
        case.name: [row["slide_id"] for row in case.slides] for case in report_data.cases if len(case.slides) > 1
    }
    conflicts = [bool(row[4]) for row in found.rows]
    assert conflicts == sorted(conflicts, reverse=True)
    assert all(len(row) == len(found.columns) for row in found.rows)


def test_every_list_has_a_value_and_a_source_for_each_column(report_data: ReportData) -> None:
    for make in (*worklists.WORKLISTS, worklists.list_flagged, worklists.list_all_slides):
        found = make(report_data)
        assert all(len(row) == len(found.columns) for row in found.rows), found.name
        assert all(source for _, _, source in found.columns), found.name
    assert slide_ids(worklists.list_all_slides(report_data)) == list(report_data.rows)
