"""Agreement between readers against the examples of the papers and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from her2batch.training.readers.agreement import fleiss_kappa, krippendorff_alpha, measure_agreement

KRIPPENDORFF = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
"""Four observers, twelve units (Krippendorff 2011, example C); the last unit has one reading and does not count."""

FLEISS = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
          [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip
"""Ten subjects, fourteen raters, five classes: kappa 0.210."""


def counts_of(observers: tuple[str, ...]) -> np.ndarray:
    units = [[int(value) - 1 for value in unit if value != "."] for unit in zip(*observers, strict=True)]
    return np.array([np.bincount(unit, minlength=5) for unit in units if len(unit) > 1], float)


def test_values_of_the_published_examples() -> None:
    counts = counts_of(KRIPPENDORFF)
    assert krippendorff_alpha(counts, ordinal=False)[0] == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(counts, ordinal=True)[0] == pytest.approx(0.815, abs=5e-4)
    assert fleiss_kappa(np.array(FLEISS, float)) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(counts) is None  # units with different numbers of readings
    assert np.isnan(krippendorff_alpha(np.array([[2.0, 0.0], [2.0, 0.0]]), ordinal=False)[0])


def test_pairs_have_the_weighted_kappa_of_scikit_learn_on_their_common_slides() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 60)
    noisy = {name: np.clip(truth + rng.integers(-1, 2, 60), 0, 3) for name in "ABC"}
    readings = {f"S{k:02}": {name: int(noisy[name][k]) for name in "ABC" if name != "C" or k % 2} for k in range(60)}
    found = measure_agreement("her2", ("0", "1+", "2+", "3+"), readings, {f"S{k:02}": f"p{k // 2}" for k in range(60)})
    assert (found.readers, found.slides, found.fleiss) == (("A", "B", "C"), 60, None)
    pairs = {pair["first"] + pair["second"]: pair for pair in found.pairs}
    assert {name: pair["slides"] for name, pair in pairs.items()} == {"AB": 60, "AC": 30, "BC": 30}
    odd = slice(1, None, 2)
    for name, rows in (("AB", slice(None)), ("AC", odd)):
        a, b = noisy[name[0]][rows], noisy[name[1]][rows]
        interval = pairs[name]["kappa"]
        assert interval["value"] == pytest.approx(cohen_kappa_score(a, b, weights="quadratic"))
        assert interval["low"] < interval["value"] < interval["high"]
        assert pairs[name]["agreed"] == (a == b).sum()
    assert found.alpha["low"] < found.alpha["value"] < found.alpha["high"]


def test_slides_with_one_reader_have_no_agreement() -> None:
    assert measure_agreement("er", ("-", "+"), {"S1": {"A": 0}}, {}) is None
    same = measure_agreement("er", ("-", "+"), {"S1": {"A": 0, "B": 0}, "S2": {"A": 1, "B": 1}}, {})
    assert (same.unanimous, same.fleiss, same.pairs[0]["kappa"]["value"]) == (2, 1.0, 1.0)
    assert same.pairs[0]["kappa"]["low"] is None  # no interval of width 0
