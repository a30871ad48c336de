"""Classifiers on counts of patch classes: random forest, SVM and MLP, each with a small search inside the given rows.

Source: paper, 2.2, approach 3; grids: methods.md §6.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from her2batch.errors import InputError
from her2batch.models.heads import head_probabilities
from her2batch.settings import CountsSettings

MIN_PROBABILITY: Final = 1e-6
"""Smallest probability whose logarithm is computed, so that one confident mistake does not decide a search."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class CountClassifier:
    """A method. make(seed, rows of the rarest class, **values) returns an unfitted head.

    grid: name → values to try.  default: values where there is no search.
    """

    make: Callable[..., Any]
    grid: Mapping[str, tuple[Any, ...]]
    default: Values


def _forest(seed: int, _: int, trees: int = 300, **values: Any) -> Any:
    return RandomForestClassifier(trees, class_weight="balanced", random_state=seed, n_jobs=1, **values)


def _svm(seed: int, least: int, **values: Any) -> Any:
    """Return an SVM with probabilities by Platt's sigmoid, cross-fitted, which needs two rows of each class."""
    folds = StratifiedKFold(max(2, min(3, least)), shuffle=True, random_state=seed)
    svc = SVC(kernel="rbf", class_weight="balanced", **values)
    return make_pipeline(StandardScaler(), CalibratedClassifierCV(svc, method="sigmoid", ensemble=False, cv=folds))


def _mlp(seed: int, _: int, **values: Any) -> Any:
    return make_pipeline(StandardScaler(), MLPClassifier(max_iter=2000, random_state=seed, **values))


GRIDS: Final[dict[str, CountClassifier]] = {
    "random-forest": CountClassifier(
        _forest, {"max_depth": (None, 4, 8), "min_samples_leaf": (1, 3, 5)}, {"max_depth": 8, "min_samples_leaf": 3}
    ),
    "svm": CountClassifier(
        _svm, {"C": (0.1, 1.0, 10.0, 100.0), "gamma": ("scale", 0.1, 1.0)}, {"C": 10.0, "gamma": "scale"}
    ),
    "mlp": CountClassifier(
        _mlp,
        {"hidden_layer_sizes": ((32,), (64, 32)), "alpha": (1e-4, 1e-2, 1.0)},
        {"hidden_layer_sizes": (32,), "alpha": 1e-2},
    ),
}

SEARCH_TREES: Final = {"random-forest": {"trees": 100}}
"""Trees of a forest during the search: a third of the time, the same order of the grid."""


def fit_count_classifier(
    method: str,
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    patients: Sequence[str],
    n_classes: int,
    settings: CountsSettings,
    seed: int,
) -> Any:
    """Return a fitted head. features: (n, 5).  labels: (n,).  patients: of each row. All rows are of the training part.

    The grid is searched by cross-validation inside these rows, stratified and grouped by patient, for the smallest log
    loss. Where a class has fewer patients than inner folds there are fewer folds, and with fewer than two no search.
    Raises InputError for an unknown method, or a single class.
    """
    if method not in GRIDS:
        raise InputError(f"no classifier of counts is called {method!r}", None, f"choose from {', '.join(GRIDS)}")
    if len(np.unique(labels)) < 2:
        raise InputError("the training part has only one class", None, "label more slides, or give fewer --folds")
    classifier = GRIDS[method]
    values: Values = classifier.default
    if settings.search:
        values = _search(method, features, labels, patients, n_classes, settings, seed)
    return _fit(classifier.make(seed, _rarest(labels), **values), features, labels)


def _search(
    method: str,
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    patients: Sequence[str],
    n_classes: int,
    settings: CountsSettings,
    seed: int,
) -> Values:
    """Return the values of the grid with the smallest mean log loss; the first of equal ones."""
    classifier, groups = GRIDS[method], np.unique(np.asarray(patients, str), return_inverse=True)[1]
    folds = min(settings.inner_folds, min(len(np.unique(groups[labels == k])) for k in np.unique(labels)))
    if folds < 2:
        return classifier.default
    parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(features, labels, groups))
    parts = [(train, val) for train, val in parts if len(np.unique(labels[train])) > 1]
    best: tuple[float, Values] = (np.inf, classifier.default)
    for combination in product(*classifier.grid.values()):
        values = dict(zip(classifier.grid, combination, strict=True))
        losses = []
        for train, val in parts:
            head = classifier.make(seed, _rarest(labels[train]), **SEARCH_TREES.get(method, {}), **values)
            p = head_probabilities(_fit(head, features[train], labels[train]), features[val], n_classes)
            losses.append(-np.log(np.maximum(p[np.arange(len(val)), labels[val]], MIN_PROBABILITY)).mean())
        if losses and np.mean(losses) < best[0]:
            best = float(np.mean(losses)), values
    return best[1]


def _rarest(labels: NDArray[np.int64]) -> int:
    """Return the number of rows of the rarest class."""
    return int(np.unique(labels, return_counts=True)[1].min())


def _fit(head: Any, features: NDArray[np.float64], labels: NDArray[np.int64]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            return clone(head).fit(features, labels)
        except ValueError as error:  # a class of one row cannot be cross-fitted
            if _rarest(labels) > 1:
                raise
            kept = np.isin(labels, [k for k in np.unique(labels) if (labels == k).sum() > 1])
            if len(np.unique(labels[kept])) < 2:
                raise InputError(
                    "too few slides of each class to fit probabilities", None, "label more slides"
                ) from error
            return clone(head).fit(features[kept], labels[kept])
