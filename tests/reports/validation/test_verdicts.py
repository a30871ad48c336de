"""Verdicts: met, not met, or too few slides; each with a sentence that has the figures."""

from dataclasses import replace

import pytest

from her2batch.reports.validation.comparison import Comparison
from her2batch.reports.validation.measures import Measures
from her2batch.reports.validation.verdicts import MET, NOT_MET, TOO_FEW, conclusion, judge
from her2batch.store.validation.criteria import Criteria, Criterion
from tests.reports.validation.test_measures import compared


@pytest.fixture
def nine_of_ten(comparison: Comparison) -> Measures:
    """Ten slides of two sites, one of them wrong."""
    slides = [compared(k, "3+" if k % 2 else "0", "3+" if k % 2 else "0", site=("n", "s")[k // 5]) for k in range(10)]
    slides[9] = slides[9]._replace(predicted="1+")
    return Measures(replace(comparison, slides=tuple(slides), excluded=()))


@pytest.mark.parametrize(
    ("values", "result"),
    [
        ({}, MET),
        ({"at_least": 0.91}, NOT_MET),
        ({"least_slides": 11}, TOO_FEW),
        ({"at_least": 0.99, "least_slides": 11}, TOO_FEW),
        ({"bound": "lower"}, NOT_MET),
        ({"bound": "lower", "at_least": 0.5}, MET),
        ({"measure": "positive-agreement", "at_least": 0.8, "least_slides": 5}, MET),
        ({"measure": "positive-agreement", "of": "1+", "at_least": 1.0, "least_slides": 5}, MET),
        ({"measure": "negative-agreement", "at_least": 1.0, "least_slides": 5}, MET),
        ({"measure": "category-agreement", "at_least": 0.9}, MET),
        ({"measure": "kappa", "at_least": 0.99}, NOT_MET),
        ({"measure": "results", "at_least": 1.0}, MET),
        ({"measure": "repeated-scans"}, TOO_FEW),
        ({"measure": "slides-of-patient"}, TOO_FEW),
    ],
)
def test_criterion_has_one_verdict(nine_of_ten: Measures, values: dict[str, object], result: str) -> None:
    criterion = Criterion(**{"name": "a", "measure": "agreement", "at_least": 0.9, "least_slides": 1, **values})
    (found,) = judge(Criteria(criteria=(criterion,)), nine_of_ten)
    assert found.result == result
    assert found.sentence.endswith(f"was asked: {result}.")
    assert found.as_json["result"] == result


def test_criterion_holds_for_each_site(nine_of_ten: Measures) -> None:
    criterion = Criterion(name="a", measure="agreement", at_least=0.9, each="site")
    found = judge(Criteria(criteria=(criterion,)), nine_of_ten)
    assert [(one.part, one.result) for one in found] == [("n", MET), ("s", NOT_MET)]
    assert "site s" in found[1].sentence


def test_conclusion_is_the_worst_verdict(nine_of_ten: Measures) -> None:
    def conclude(*criteria: tuple[float, int]) -> str:
        own = [Criterion(name=str(k), measure="agreement", at_least=least, least_slides=n)
               for k, (least, n) in enumerate(criteria)]  # fmt: skip
        return conclusion(judge(Criteria(criteria=tuple(own)), nine_of_ten))

    assert conclude((0.9, 1), (0.5, 1)).startswith("Accepted")
    assert conclude((0.9, 1), (0.5, 99)).startswith("Not decided: 1 of 2")
    assert conclude((0.95, 1), (0.5, 99), (0.1, 1)) == (
        "Not accepted: 1 of 3 criteria not met, 1 undecided for too few slides."
    )
