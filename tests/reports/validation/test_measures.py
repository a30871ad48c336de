"""Agreement with exact intervals, against figures that were computed otherwise."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from sklearn.metrics import cohen_kappa_score

from her2batch.reports.validation.comparison import Compared, Comparison
from her2batch.reports.validation.measures import Measures, exact_share
from her2batch.tasks import IHC_SCORES
from her2batch.training.statistics import exact_interval


def compared(k: int, truth: str, predicted: str, **more: str) -> Compared:
    p = [float(name == predicted) for name in IHC_SCORES]
    row = {"slide_id": f"s{k}", "task": "her2-4way", "method": "membrane", "p": p, "classes": list(IHC_SCORES),
           "predicted": predicted, "review": predicted == "2+",
           "score": float(IHC_SCORES.index(predicted))}  # fmt: skip
    one = Compared(f"s{k}", f"p{k}", None, "alpha", f"s{k}", truth, predicted, row)
    return one._replace(**more)


@pytest.fixture
def random_slides(comparison: Comparison) -> Measures:
    rng = np.random.default_rng(0)
    slides = []
    for k in range(200):
        truth = int(rng.integers(4))
        predicted = int(np.clip(truth + rng.choice([-1, 0, 0, 0, 1]), 0, 3))
        slides.append(compared(k, IHC_SCORES[truth], IHC_SCORES[predicted], site=("n", "s")[k % 2]))
    return Measures(replace(comparison, slides=tuple(slides), excluded=()))


@pytest.mark.parametrize(("agreed", "n"), [(0, 1), (1, 1), (19, 20), (20, 20), (37, 40), (0, 30), (499, 500)])
def test_interval_is_that_of_clopper_and_pearson(agreed: int, n: int) -> None:
    low, high = exact_interval(agreed, n)
    wanted = binomtest(agreed, n).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((wanted.low, wanted.high))


def test_interval_covers_at_least_as_often_as_it_says() -> None:
    n = 20
    intervals = [exact_interval(k, n) for k in range(n + 1)]
    for p in np.linspace(0.01, 0.99, 50):
        covered = [low <= p <= high for low, high in intervals]
        assert binom.pmf(np.arange(n + 1), n, p)[covered].sum() >= 0.95


def test_several_slides_of_a_patient_widen_the_interval() -> None:
    alone = exact_share((str(k), k > 0) for k in range(20))
    pairs = exact_share((str(k // 2), k > 0) for k in range(20))
    assert alone.value == pairs.value == 0.95
    assert (pairs.n, pairs.patients) == (20, 10)
    assert pairs.low < alone.low < 0.95 < alone.high < pairs.high
    assert exact_share([]).value is None


def test_agreement_of_classes_and_cut_offs(random_slides: Measures) -> None:
    slides = random_slides.comparison.slides
    truth = np.array([IHC_SCORES.index(one.truth) for one in slides])
    predicted = np.array([IHC_SCORES.index(one.predicted) for one in slides])
    assert random_slides.agreement.value == pytest.approx((truth == predicted).mean())
    for k, cut in enumerate(IHC_SCORES[1:], start=1):
        assert random_slides.positive_agreement(cut).value == pytest.approx((predicted >= k)[truth >= k].mean())
        assert random_slides.negative_agreement(cut).value == pytest.approx((predicted < k)[truth < k].mean())
    for k, name in enumerate(IHC_SCORES):
        positive, negative = random_slides.class_agreement(name)
        assert positive.value == pytest.approx((predicted == k)[truth == k].mean())
        assert negative.value == pytest.approx((predicted != k)[truth != k].mean())
    groups = np.array([0, 0, 1, 2])
    assert random_slides.category_agreement.value == pytest.approx((groups[truth] == groups[predicted]).mean())


def test_kappa_is_weighted_and_has_an_interval(random_slides: Measures) -> None:
    slides = random_slides.comparison.slides
    wanted = cohen_kappa_score([one.truth for one in slides], [one.predicted for one in slides], weights="quadratic")
    found = random_slides.kappa
    assert found.value == pytest.approx(wanted)
    assert found.low < wanted < found.high


def test_repeated_scans_and_slides_of_a_patient(comparison: Comparison) -> None:
    slides = (
        compared(0, "3+", "3+", patient_id="a", physical_slide="x"),
        compared(1, "3+", "2+", patient_id="a", physical_slide="x"),
        compared(2, "3+", "3+", patient_id="a", physical_slide="x"),
        compared(3, "3+", "3+", patient_id="a", physical_slide="y"),
        compared(4, "0", "0", patient_id="a", physical_slide="z"),
        compared(5, "3+", "1+", patient_id="b", physical_slide="x"),
    )
    found = Measures(replace(comparison, slides=slides, excluded=()))
    assert (found.repeated_scans.agreed, found.repeated_scans.n) == (1, 3)
    assert found.score_sd == pytest.approx(np.sqrt((1 + 0 + 1) / 6))
    assert (found.slides_of_patient.agreed, found.slides_of_patient.n) == (1, 1)


def test_results_count_slides_without_one(comparison: Comparison) -> None:
    reasons = ("no-result", "failed", "no-tiles", "no-label", "needs-ish")
    excluded = tuple(
        {"slide_id": str(k), "patient_id": str(k), "reason": reason, "words": ""} for k, reason in enumerate(reasons)
    )
    found = Measures(replace(comparison, excluded=excluded)).results
    assert (found.agreed, found.n) == (len(comparison.slides), len(comparison.slides) + 3)


def test_parts_are_those_of_each_site(random_slides: Measures) -> None:
    parts = random_slides.parts("site")
    assert list(parts) == ["n", "s"]
    assert sum(own.agreement.n for own in parts.values()) == random_slides.agreement.n
