"""Bootstrap confidence intervals over patients, and comparisons of methods on the same slides.

Predictions of all folds are pooled, as every slide is tested once. A pooled AUC also compares probabilities of networks
of different folds; it is not the mean of the folds' AUCs, which `metrics` computes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import beta, rankdata

from her2batch.errors import InputError
from her2batch.store.training_run import tasks_of_table
from her2batch.tasks import PATCH_INPUTS
from her2batch.training.methods import PATCH_NET
from her2batch.training.metrics import (
    CELL,
    FIGURES,
    NUMBER_FIGURES,
    CheckedPredictions,
    Floats,
    accuracy,
    c_index,
    check_numbers,
    check_predictions,
    class_recalls,
    divide_or_nan,
    f1,
    grouped_rows,
    kappa,
    mean_defined,
    nan_to_null,
    r_squared,
)
from her2batch.training.recipes.random_streams import random_stream

DRAWS = 2000
"""Number of resamples (methods.md §7)."""

ROUNDING = 1e-20
"""Rounding error of a variance whose terms are all equal; with 10,000 slides per class a real one is above 1e-17."""

BOOTSTRAP = 1003
"""Key of the random stream of a run's seed."""

MIN_AUC_SLIDES = 10
"""Slides of a class, and of all others, below which reports show no AUC: a single pair of slides would decide it."""

Z95 = 1.959963984540054
"""97.5th percentile of the standard normal distribution."""

TEXT, F64 = pa.string(), pa.float64()
KEYS = [(name, TEXT) for name in CELL]
BOUNDS = [("low", F64), ("high", F64)]
INTERVALS = pa.schema([*KEYS, ("metric", TEXT), ("class", TEXT), ("value", F64), *BOUNDS])
OTHERS = [("other_method", TEXT), ("other_input", TEXT)]
PAIRED = pa.schema([*KEYS, *OTHERS, ("metric", TEXT), ("difference", F64), *BOUNDS, ("p", F64), ("p_delong", F64)])


def bootstrap_intervals(
    predictions: pa.Table, patients: Mapping[str, str], draws: int = DRAWS, seed: int = 0
) -> pa.Table:
    """Return 95 % percentile intervals of auc, f1, accuracy, kappa and each recall, from resampled patients.

    A task whose target is a number has c_index, r2 and mae instead.

    patients: of each slide_id.  Returns task, method, input, metric, class (of a recall, else null), value (of all
    predictions), low, high; fractions. Draws where a metric is undefined are left out; null when all are.
    Raises InputError for a slide without a patient, and as `metrics.check_predictions` does.
    """
    tasks, rows = tasks_of_table(predictions), []
    for keys, part in grouped_rows(predictions, CELL):
        if tasks[keys["task"]].is_number:
            rows += _number_intervals(keys, part, patients, draws, seed)
            continue
        found, of, n = check_predictions(part), *patient_indices(part, patients)
        figures = _figures(found, of, draw_resamples(n, draws, seed))
        for name in FIGURES:
            rows.append({**keys, "metric": name, "class": None, **_interval(figures.of[name])})
        for k, word in enumerate(tasks[keys["task"]].classes):
            rows.append({**keys, "metric": "recall", "class": word, **_interval(figures.recalls[:, k])})
    return pa.Table.from_pylist(rows, INTERVALS)


def _number_intervals(
    keys: Mapping[str, Any], part: pa.Table, patients: Mapping[str, str], draws: int, seed: int
) -> list[dict[str, Any]]:
    """Return the intervals of the metrics of a task whose target is a number, from the same resampled patients."""
    truth, predicted = check_numbers(part)
    of, n = patient_indices(part, patients)
    values = []
    for weights in draw_resamples(n, draws, seed):
        rows = np.repeat(np.arange(len(of)), weights[of].astype(np.int64))
        y, z = truth[rows], predicted[rows]
        values.append((c_index(y, z), r_squared(y, z), float(np.abs(y - z).mean()) if len(y) else math.nan))
    return [
        {**keys, "metric": name, "class": None, **_interval(np.array(column, np.float64))}
        for name, column in zip(NUMBER_FIGURES, zip(*values, strict=True), strict=True)
    ]


def compare_methods(predictions: pa.Table, patients: Mapping[str, str], draws: int = DRAWS, seed: int = 0) -> pa.Table:
    """Compare every two (method, input) of a task on the same slides in auc, f1, accuracy and kappa: first less second.

    Both are resampled with the same patients. p: twice the smaller share of draws on one side of 0, both counted with
    one more draw (Davison & Hinkley 1997, §4.2); not corrected for the number of pairs. p_delong: DeLong's test, for
    the AUC of tasks of two classes; it assumes independent slides, so it is too small where patients have several.
    Networks that are tested on patches, and tasks of numbers, are left out.  Raises InputError where methods have not
    tested the same slides, and as `bootstrap_intervals` does.
    """
    rows = []
    tasks = {name: task for name, task in tasks_of_table(predictions).items() if not task.is_number}
    for keys, of_task in grouped_rows(predictions, ("task",)):
        if keys["task"] not in tasks:
            continue
        cells = [(one, part.sort_by("slide_id")) for one, part in grouped_rows(of_task, CELL) if not _of_patches(one)]
        if len(cells) < 2:
            continue
        first = cells[0][1]
        for one, part in cells:
            _same_slides(one, part, first)
        of, n = patient_indices(first, patients)
        weights = draw_resamples(n, draws, seed)
        tested = [(one, found := check_predictions(part), _figures(found, of, weights)) for one, part in cells]
        for (one, a, figures), (other, b, others) in combinations(tested, 2):
            names = {**one, "other_method": other["method"], "other_input": other["input"]}
            delong_p = (
                delong_p_value(a.truth == 1, a.p[:, 1], b.p[:, 1])
                if len(tasks[keys["task"]].classes) == 2
                else math.nan
            )
            for name in FIGURES:
                difference = figures.of[name] - others.of[name]
                row = {**names, "metric": name, **_interval(difference), "p": _two_sided(difference[1:])}
                row["difference"] = row.pop("value")
                rows.append({**row, "p_delong": nan_to_null(delong_p) if name == "auc" else None})
    return pa.Table.from_pylist(rows, PAIRED)


def _of_patches(cell: Mapping[str, Any]) -> bool:
    return cell["method"] == PATCH_NET and cell["input"] in PATCH_INPUTS


def _same_slides(cell: Mapping[str, Any], part: pa.Table, first: pa.Table) -> None:
    ids = part["slide_id"].to_pylist()
    what = f"{cell['task']}: {cell['method']} on {cell['input']}"
    if len(set(ids)) < len(ids):
        raise InputError(
            f"{what} has tested a slide more than once", None, "remove the folders of its units, then resume"
        )
    if part.select(["slide_id", "truth"]) != first.select(["slide_id", "truth"]):
        others = first["slide_id"].to_pylist()
        example = min({*ids} ^ {*others}, default="")
        detail = f" ({example})" if example else " with the same truth"
        raise InputError(
            f"{what} has not tested the same slides as the others{detail}", None, "resume the run to its end"
        )


def patient_indices(part: pa.Table, patients: Mapping[str, str]) -> tuple[NDArray[np.int64], int]:
    """Return the patient of each row, (n,) from 0, and their number. Raises InputError for a slide without patient."""
    ids = part["slide_id"].to_pylist()
    if missing := {*ids} - patients.keys():
        raise InputError(f"slide {min(missing)} has no patient", None, "fill in patient_id in the labels")
    names, of = np.unique(np.array([patients[slide_id] for slide_id in ids], np.str_), return_inverse=True)
    return of.astype(np.int64), len(names)


def draw_resamples(n_patients: int, draws: int, seed: int) -> Floats:
    """Return how often each patient is in each draw, (draws + 1, P); the first row has each patient once."""
    drawn = random_stream(seed, BOOTSTRAP).multinomial(n_patients, np.full(n_patients, 1 / n_patients), draws)
    return np.vstack([np.ones(n_patients), drawn]).astype(np.float64)


@dataclass(frozen=True)
class _Figures:
    """The metrics of every draw. of: name → (B,) float64.  recalls: (B, C)."""

    of: dict[str, Floats]
    recalls: Floats


def _figures(found: CheckedPredictions, of: NDArray[np.int64], weights: Floats) -> _Figures:
    """Return the metrics of draws with each patient weights[b, patient] times. of: (n,) patients.  weights: (B, P).

    Confusion matrices are sums over patients, AUCs quadratic forms of pairs of patients: two matrix products replace
    2,000 passes over the slides. All terms are whole numbers or halves, so the sums are exact in any order.
    """
    n_classes, n_patients = found.p.shape[1], weights.shape[1]
    cell = (of * n_classes + found.truth) * n_classes + found.predicted
    counts = np.bincount(cell, minlength=n_patients * n_classes**2).reshape(n_patients, -1).astype(np.float64)
    tables = (weights @ counts).reshape(-1, n_classes, n_classes)
    scored = [1] if n_classes == 2 else range(n_classes)
    areas = np.stack([_areas(found.truth == k, found.p[:, k], of, weights) for k in scored], axis=-1)
    named = {
        "auc": mean_defined(areas),
        "f1": f1(tables),
        "accuracy": accuracy(tables),
        "kappa": kappa(tables, found.ordinal),
    }
    return _Figures(named, class_recalls(tables))


def _areas(positive: NDArray[np.bool_], score: Floats, of: NDArray[np.int64], weights: Floats) -> Floats:
    """Return the area under the ROC curve in every draw, (B,); NaN where all slides are of one class."""
    n = weights.shape[1]
    up = np.argsort(score, kind="stable")
    high, high_of = score[up][positive[up]], of[up][positive[up]]  # of the positives, ascending
    low, low_of = score[up][~positive[up]], of[up][~positive[up]]
    won = np.zeros((n, n))  # [p, q]: ordered pairs of a positive of p and a negative of q; ties count half
    for patient in np.unique(low_of):
        own = low[low_of == patient]
        beaten = (np.searchsorted(own, high, "left") + np.searchsorted(own, high, "right")) / 2
        won[:, patient] = np.bincount(high_of, beaten, minlength=n)
    all_pairs = (weights @ np.bincount(of[positive], minlength=n)) * (weights @ np.bincount(of[~positive], minlength=n))
    return divide_or_nan(((weights @ won) * weights).sum(axis=1), all_pairs)


def _interval(values: Floats) -> dict[str, float | None]:
    """Return the estimate, which is the first value, and the central 95 % of the draws."""
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist() if len(drawn) else (None, None)
    return {"value": None if np.isnan(values[0]) else float(values[0]), "low": low, "high": high}


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n independent trials: (low, high), never of width 0.

    Source: Wilson 1927; recommended for small n by Brown, Cai & DasGupta 2001.  Raises ValueError for n < 1.
    """
    if n < 1:
        raise ValueError("a share of nothing has no interval")
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def exact_interval(agreed: float, n: float) -> tuple[float, float]:
    """Return the exact 95 % interval of a share, `agreed` of n independent trials: (low, high).

    Source: Clopper & Pearson 1934, by quantiles of the beta distribution. Counts need not be whole: Korn & Graubard
    1998 use the effective number of trials where trials are not independent.  Raises ValueError for n ≤ 0.
    """
    if n <= 0:
        raise ValueError("a share of nothing has no interval")
    low = float(beta.ppf(0.025, agreed, n - agreed + 1)) if agreed > 0 else 0.0
    high = float(beta.ppf(0.975, agreed + 1, n - agreed)) if agreed < n else 1.0
    return low, high


def widen_interval(metric: Mapping[str, float | None], n: int) -> dict[str, float | None]:
    """Return a share with a bootstrap interval (value, low, high) that is at least as wide as Wilson's for n trials.

    Resampling a few slides that are all right, or all wrong, gives an interval of width 0.  n: independent trials:
    patients, not slides.
    """
    value = metric["value"]
    if value is None or n < 1:
        return {"value": value, "low": None, "high": None}
    low, high = wilson_interval(value, n)
    own_low, own_high = metric["low"], metric["high"]
    return {
        "value": value,
        "low": low if own_low is None else min(low, own_low),
        "high": high if own_high is None else max(high, own_high),
    }


def smallest_class(truth: NDArray[np.int64], n_classes: int) -> int:
    """Return the number of slides of the smallest class, or of the smallest rest of a class. truth: (n,) classes."""
    counts = np.bincount(truth, minlength=n_classes)
    return int(min(counts.min(), len(truth) - counts.max()))


def cells_with_few_slides(predictions: pa.Table) -> set[tuple[str, ...]]:
    """Return the cells (task, method, input) with too few slides of a class for an AUC.

    predictions: of all folds; tasks that predict a number have no AUC.  Raises InputError as
    `metrics.check_predictions` does.
    """
    few, tasks = set(), tasks_of_table(predictions)
    for keys, part in grouped_rows(predictions, CELL) if predictions.num_rows else ():
        if tasks[keys["task"]].is_number:
            continue
        checked = check_predictions(part)
        if smallest_class(checked.truth, checked.p.shape[1]) < MIN_AUC_SLIDES:
            few.add(tuple(keys.values()))
    return few


def without_auc(rows: Sequence[Mapping[str, Any]], few: Collection[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Return copies of rows of metrics; those of cells with too few slides have no AUC, and say so as `too_few`."""
    shown = []
    for row in rows:
        too_few = tuple(row[name] for name in CELL) in few
        shown.append({**row, "too_few": too_few} | ({"auc_mean": None, "auc_sd": None} if too_few else {}))
    return shown


def _two_sided(differences: Floats) -> float | None:
    drawn = differences[~np.isnan(differences)]
    if not len(drawn):
        return None
    smaller = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + smaller) / (1 + len(drawn)))


def delong_p_value(positive: NDArray[np.bool_], one: Floats, other: Floats) -> float:
    """Return the two-sided p value of equal AUCs of two scores of the same n slides, all (n,).

    DeLong 1988, with placements from midranks as in Sun & Xu 2014. 1 when all placements are equal; NaN for fewer than
    two slides of a class or a difference without variance.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    if m < 2 or n < 2:
        return math.nan
    above = np.stack([_placements(score[positive], score[~positive]) for score in (one, other)])  # (2, m)
    below = np.stack([_placements(-score[~positive], -score[positive]) for score in (one, other)])  # (2, n)
    difference = float(above[0].mean() - above[1].mean())
    variance = float(np.var(above[0] - above[1], ddof=1) / m + np.var(below[0] - below[1], ddof=1) / n)
    if variance < ROUNDING:
        return 1.0 if abs(difference) < ROUNDING else math.nan
    return math.erfc(abs(difference) / math.sqrt(2 * variance))


def _placements(scores: Floats, against: Floats) -> Floats:
    """Return the share of `against` below each score, ties half: its rank among all less that among its own class."""
    ranks: Floats = rankdata(np.concatenate([scores, against]))[: len(scores)] - rankdata(scores)
    return ranks / len(against)
