"""Which predictions are validated, and which slides are compared with their labels."""

from dataclasses import replace

import pytest

from her2batch.errors import InputError
from her2batch.reports.report_data import ReportData
from her2batch.reports.validation.comparison import (
    Comparison,
    PredictionChoice,
    ValidationLabels,
    choose_predictions,
    compare,
    read_validation_labels,
)
from her2batch.store.pseudonyms import Pseudonymizer


def test_predictions_that_the_assessment_leads_with_are_validated(report_data: ReportData) -> None:
    assert choose_predictions(report_data, "her2-4way") == PredictionChoice("membrane", "membrane", "her2-4way")
    assert choose_predictions(report_data, "her2-binary").task == "her2-binary"


@pytest.mark.parametrize(("folder", "method"), [("other", None), (None, "nothing"), ("membrane", "cells")])
def test_predictions_that_are_not_there_are_named(report_data: ReportData, folder: str, method: str) -> None:
    with pytest.raises(InputError, match="membrane of membrane"):
        choose_predictions(report_data, "her2-4way", folder, method)


def test_method_must_be_named_where_there_are_several(report_data: ReportData) -> None:
    both = {
        slide_id: [one for row in rows for one in (row, {**row, "bundle": "net", "method": "clam-sb"})]
        for slide_id, rows in report_data.predictions.items()
    }
    data = replace(report_data, predictions=both)
    assert choose_predictions(data, "her2-4way").folder == "membrane"
    assert choose_predictions(data, "her2-4way", "net") == PredictionChoice("net", "clam-sb", "her2-4way")


def test_sheet_names_physical_slides_and_scanners(comparison: Comparison, report_data: ReportData) -> None:
    assert {one.scanner for one in comparison.slides} == {"alpha", "beta"}
    assert {one.site for one in comparison.slides} == {"north", "south"}
    assert comparison.scanner_source == "the label sheet"
    assert len({one.physical_slide for one in comparison.slides}) < len(comparison.slides)
    assert {one.slide_id for one in comparison.slides} | {row["slide_id"] for row in comparison.excluded} == set(
        report_data.rows
    )


def test_labels_of_the_cohort_have_neither(report_data: ReportData) -> None:
    labels = read_validation_labels(report_data.cohort, report_data, None, {}, Pseudonymizer())
    found = compare(report_data, labels, choose_predictions(report_data, "her2-4way"))
    assert {one.physical_slide for one in found.slides} == {one.slide_id for one in found.slides}
    assert "format" in found.scanner_source


def test_slide_without_a_result_is_left_out_with_the_reason(comparison: Comparison, report_data: ReportData) -> None:
    first = comparison.slides[0].slide_id
    without = {slide_id: rows for slide_id, rows in report_data.predictions.items() if slide_id != first}
    labels = read_validation_labels(report_data.cohort, report_data, None, {}, Pseudonymizer())
    found = compare(replace(report_data, predictions=without), labels, comparison.choice)
    assert first not in {one.slide_id for one in found.slides}
    assert (first, "no-result") in {(row["slide_id"], row["reason"]) for row in found.excluded}


def test_nothing_to_compare_is_an_error(comparison: Comparison, report_data: ReportData) -> None:
    with pytest.raises(InputError, match="no slide can be compared"):
        compare(report_data, ValidationLabels({}, ()), comparison.choice)


def test_discordant_slides_are_those_that_differ_the_furthest_first(comparison: Comparison) -> None:
    slides = comparison.slides
    changed = [one._replace(predicted="3+" if one.truth == "0" else one.truth) for one in slides]
    one = next(k for k, own in enumerate(changed) if own.truth == "1+")
    changed[one] = changed[one]._replace(predicted="2+")
    found = replace(comparison, slides=tuple(changed)).discordant
    assert len(found) == 1 + sum(own.truth == "0" for own in slides)
    assert found[-1].truth == "1+"
