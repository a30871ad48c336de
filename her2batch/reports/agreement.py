"""What the labels say of the predictions: confusion, ROC, calibration, agreement; and a training run beside the paper.

The figures are `training.metrics`', their intervals `training.compare`'s; here are the curves, with bands from the same
resampled patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from her2batch.reports import figures
from her2batch.reports.figures import Figure
from her2batch.reports.report_data import ReportData
from her2batch.reports.theme import SectionContent, render_template, thumbnail_uris
from her2batch.store.labels import LABELS_SCHEMA, label_slides
from her2batch.store.schemas import run_schema
from her2batch.tasks import CLASSES, MEMBRANE_RULE, PATCH_INPUTS
from her2batch.training.methods import PATCH_NET
from her2batch.training.metrics import (
    CELL,
    FIGURES,
    Floats,
    auc,
    check_predictions,
    confusion,
    groups,
    kappa,
    or_null,
    summary,
)
from her2batch.training.statistics import intervals, patients_of, resamples

DRAWS: Final = 300
"""Resamples of the report's intervals; a run's own comparison takes more."""

GRID: Final = np.linspace(0, 1, 41)
"""1 − specificity at which a ROC curve and its band are drawn."""

BINS: Final = 10
"""Of calibration, equally wide."""

MISSED: Final = 36
"""Misclassified slides that are shown as pictures, the surest mistakes first."""

SHOWN: Final = 24
"""Methods on inputs that get curves, the best by AUC first; the table has all."""

BY_NAME: Final = pa.schema(
    [("name", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("n", pa.int32())]
)


def against_labels(material: ReportData) -> SectionContent | None:
    """The cohort's own predictions against its labels."""
    predictions = labelled(material)
    if not predictions.num_rows:
        return None
    cells, made = _judged(predictions, _patients(material), "labels")
    sites = _by_site(material, predictions)
    missed = _missed(material, predictions)
    small = thumbnail_uris(material.cohort, [one["slide_id"] for one in missed], 180)
    trained = bool(set(pc.unique(predictions["method"]).to_pylist()) - {MEMBRANE_RULE})
    html = render_template("labels.html", cells=cells, sites=sites, missed=missed, pictures=small, pages=material.pages,
                  trained=trained, draws=DRAWS)  # fmt: skip
    return SectionContent(html, (*made, *sites))


def of_run(material: ReportData) -> SectionContent | None:
    """A training run: its figures on held-out slides, and the paper's tables beside them."""
    run = material.run
    if run is None:
        return None
    predictions = _of_slides(run.read("predictions"))
    patients = {row["slide_id"]: row["patient_id"] for row in run.read("labels").to_pylist()}
    cells, made = _judged(predictions, patients, "run") if predictions.num_rows else ([], ())
    rows = summary(run.read("metrics")).to_pylist()
    paper = run.read("tables").to_pylist() if run.table("tables").exists() else []
    excluded = run.read("excluded").to_pylist() if run.table("excluded").exists() else []
    html = render_template(
        "run.html", cells=cells, rows=rows, paper=paper, excluded=excluded, name=run.root.name, draws=DRAWS
    )
    return SectionContent(html, made)


# -- predictions with their truth --------------------------------------------------------------------------------


def labelled(material: ReportData) -> pa.Table:
    """The cohort's predictions that have a label, as a run's predictions: `input` is the bundle, the fold 0."""
    rows = []
    for task in CLASSES:
        good, _ = label_slides(pa.Table.from_pylist(list(material.labels.values()), LABELS_SCHEMA), task, material.rows)
        for label in good.to_pylist():
            for one in material.said(label["slide_id"], task):
                rows.append({**one, "input": one["bundle"], "fold": 0, "truth": label["truth"]})
    schema = run_schema("predictions")
    return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)


def _patients(material: ReportData) -> dict[str, str]:
    """Patient of each slide; a slide without one is its own."""
    return {
        one: row["patient_id"] or material.labels.get(one, {}).get("patient_id") or one
        for one, row in material.rows.items()
    }


def _of_slides(predictions: pa.Table) -> pa.Table:
    """Without those of single patches."""
    patches = pc.and_(
        pc.equal(predictions["method"], PATCH_NET),
        pc.is_in(predictions["input"], value_set=pa.array(list(PATCH_INPUTS), pa.string())),
    )
    return predictions.filter(pc.invert(patches))


# -- what is judged ----------------------------------------------------------------------------------------------


def _judged(
    predictions: pa.Table, patients: Mapping[str, str], prefix: str
) -> tuple[list[dict[str, Any]], tuple[Figure, ...]]:
    """Each method's figures with their intervals, best AUC first within a task; and their curves."""
    bounds: dict[tuple[str, ...], dict[tuple[str, str | None], dict[str, Any]]] = {}
    for row in intervals(predictions, patients, DRAWS).to_pylist():
        bounds.setdefault(tuple(row[name] for name in CELL), {})[row["metric"], row["class"]] = row
    cells = []
    for keys, part in groups(predictions, CELL):
        own = bounds[tuple(keys.values())]
        overall = {name: own[name, None] for name in FIGURES}
        cells.append({**keys, "n": part.num_rows, "part": part, "figures": overall, "classes": _classes(part, own)})
    order = list(CLASSES)
    cells.sort(key=lambda one: (order.index(one["task"]), -(one["figures"]["auc"]["value"] or 0), one["method"]))
    made: list[Figure] = []
    for k, one in enumerate(cells):
        one["curves"] = _curves(one["part"], patients, f"{prefix}-{k + 1}") if k < SHOWN else ()
        made += one["curves"]
    return cells, tuple(made)


def _classes(part: pa.Table, own: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Of each class: slides, recall with its interval, precision, F1."""
    table = confusion(part)
    rows = []
    for k, name in enumerate(CLASSES[part["task"][0].as_py()]):
        hit, real, said = int(table[k, k]), int(table[k].sum()), int(table[:, k].sum())
        f1 = 2 * hit / (real + said) if real + said else None
        rows.append({"class": name, "n": real, "recall": own["recall", name], "precision": hit / said if said else None,
                     "f1": f1})  # fmt: skip
    return rows


def _curves(part: pa.Table, patients: Mapping[str, str], name: str) -> tuple[Figure, ...]:
    """Confusion, ROC and calibration of one method."""
    row = part.slice(0, 1).to_pylist()[0]
    title = (
        f"{row['method']}, {row['input']}, {row['task']}" if row["method"] != MEMBRANE_RULE else f"rule, {row['task']}"
    )
    made = []
    for kind, words, table in (
        ("confusion", "Confusion", confusion_table(part)),
        ("roc", "ROC, one class against the rest", roc_table(part, patients)),
        ("calibration", "Calibration", calibration_table(part, patients)),
    ):
        drawn = getattr(figures, kind)(f"{words}: {title}", table)
        made.append(Figure(f"{name}-{kind}", words, f"predictions, labels: {part.num_rows} slides", drawn, table))
    return tuple(made)


def confusion_table(part: pa.Table) -> pa.Table:
    """Columns: truth, predicted, n."""
    classes = CLASSES[part["task"][0].as_py()]
    counts = confusion(part)
    rows = [{"truth": a, "predicted": b, "n": int(counts[k, j])}
            for k, a in enumerate(classes) for j, b in enumerate(classes)]  # fmt: skip
    return pa.Table.from_pylist(rows)


def roc_table(part: pa.Table, patients: Mapping[str, str], draws: int = DRAWS) -> pa.Table:
    """ROC curve of each class against the rest, with the central 95 % of resampled patients at each specificity.

    Columns: class, fpr, tpr, low, high, auc. Of two classes the second alone; classes that all slides or
    none have are left out.
    """
    found = check_predictions(part)
    of, n = patients_of(part, patients)
    weights = resamples(n, draws, 0)[:, of]
    rows = []
    for k, name in enumerate(classes := CLASSES[part["task"][0].as_py()]):
        positive = found.truth == k
        if (len(classes) == 2 and k == 0) or positive.all() or not positive.any():
            continue
        curves = _roc(positive, found.p[:, k], weights)
        low, high = np.nanpercentile(curves[1:], [2.5, 97.5], axis=0)
        area = auc(positive.astype(np.int64), np.stack([1 - found.p[:, k], found.p[:, k]], axis=1))
        rows += [{"class": name, "fpr": float(x), "tpr": float(y), "low": float(a), "high": float(b), "auc": area}
                 for x, y, a, b in zip(GRID, curves[0], low, high, strict=True)]  # fmt: skip
    columns = [(one, pa.float64()) for one in ("fpr", "tpr", "low", "high", "auc")]
    return pa.Table.from_pylist(rows, pa.schema([("class", pa.string()), *columns]))


def _roc(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    """Sensitivity at GRID of each draw: (n,), (n,), (B, n) → (B, len(GRID)); NaN without slides of both kinds.

    Slides of equal score are one step: between them the curve is straight, so its area counts ties half.
    """
    down = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(score[down][1:] != score[down][:-1], True))
    out = np.full((len(weights), len(GRID)), np.nan)
    for k, drawn in enumerate(weights[:, down]):
        hit = np.append(0, np.cumsum(drawn * positive[down])[last])
        false = np.append(0, np.cumsum(drawn * ~positive[down])[last])
        if hit[-1] and false[-1]:
            out[k] = np.interp(GRID, false / false[-1], hit / hit[-1])
    return out


def calibration_table(part: pa.Table, patients: Mapping[str, str], draws: int = DRAWS) -> pa.Table:
    """How often the predicted class is right, by the probability it got. Columns: p (mean), share, low, high, n."""
    found = check_predictions(part)
    of, n = patients_of(part, patients)
    weights = resamples(n, draws, 0)[:, of]
    given = found.p[np.arange(len(found.predicted)), found.predicted]
    right = found.predicted == found.truth
    bins = np.minimum((given * BINS).astype(np.int64), BINS - 1)
    rows = []
    for k in np.unique(bins):
        inside = bins == k
        total = weights[:, inside].sum(axis=1)
        with np.errstate(invalid="ignore"):
            shares = (weights[:, inside] * right[inside]).sum(axis=1) / total
        low, high = np.nanpercentile(shares[1:], [2.5, 97.5]) if (total[1:] > 0).any() else (shares[0], shares[0])
        rows.append({"p": float(given[inside].mean()), "share": float(shares[0]), "low": float(low),
                     "high": float(high), "n": int(inside.sum())})  # fmt: skip
    return pa.Table.from_pylist(rows)


# -- sites and mistakes ------------------------------------------------------------------------------------------


def _by_site(material: ReportData, predictions: pa.Table) -> tuple[Figure, ...]:
    """Agreement with the labels at each site: quadratic kappa of each method and task."""
    sites = sorted({one for one in (material.site(row) for row in material.rows) if one is not None})
    patients = _patients(material)
    made: list[Figure] = []
    for keys, part in groups(predictions, CELL):
        where = pa.array([material.site(one) for one in part["slide_id"].to_pylist()], pa.string())
        parts = {site: part.filter(pc.equal(where, site)) for site in sites}
        rows = [
            {"name": site, **kappa_interval(own, patients), "n": own.num_rows}
            for site, own in parts.items()
            if own.num_rows
        ]
        if len(rows) < 2 or all(one["value"] is None for one in rows):
            continue
        name = f"{keys['task']}, {keys['method']}"
        table = pa.Table.from_pylist(rows, BY_NAME)
        drawn = figures.plot_intervals(f"Kappa by site: {name}", table)
        made.append(Figure(f"kappa-{len(made) + 1}", name, "predictions, labels.site", drawn, table))
    return tuple(made)


def kappa_interval(part: pa.Table, patients: Mapping[str, str], draws: int = DRAWS) -> dict[str, float | None]:
    """Quadratic kappa of one task's predictions, and its interval: value, low, high; null where undefined.

    What `compare.intervals` has, without the AUCs, which cost a hundred times as much on thousands of slides.
    """
    found = check_predictions(part)
    n_classes = found.p.shape[1]
    of, n = patients_of(part, patients)
    pairs = np.zeros((n, n_classes**2))
    np.add.at(pairs, (of, found.truth * n_classes + found.predicted), 1)
    values = kappa((resamples(n, draws, 0) @ pairs).reshape(-1, n_classes, n_classes))
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist() if len(drawn) else (None, None)
    return {"value": or_null(float(values[0])), "low": low, "high": high}


def _missed(material: ReportData, predictions: pa.Table) -> list[dict[str, Any]]:
    """The surest mistakes: of each slide one, by the finest task and the method that is surest."""
    found: dict[str, dict[str, Any]] = {}
    for row in predictions.to_pylist():
        classes = CLASSES[row["task"]]
        if row["predicted"] == row["truth"]:
            continue
        off = abs(classes.index(row["predicted"]) - classes.index(row["truth"]))
        p = row["p"][classes.index(row["predicted"])]
        rank = (-off, -p)
        if row["slide_id"] not in found or rank < found[row["slide_id"]]["rank"]:
            found[row["slide_id"]] = {**row, "rank": rank, "sure": p}
    return sorted(found.values(), key=lambda one: (one["rank"], one["slide_id"]))[:MISSED]
