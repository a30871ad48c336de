"""Make a run's bundle: one model per method, trained on all slides and calibrated on the predictions of the folds.

Temperature: Guo et al., ICML 2017: p ∝ exp(log p / T), T by maximum likelihood.  Plausible sets: split conformal
prediction with the score 1 − p of the true class (Sadinle, Lei, Wasserman, JASA 2019): at 90 %, the set of a new slide
contains its true class in 9 of 10 cases, if the slide comes from the same source as the calibration slides. Both are
fitted to the test predictions of the folds, for slides that their model had not seen.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from her2batch.models.bundle import Bundle, BundleInfo, ModelEntry, PackageEntry, save_bundle
from her2batch.models.encoders import encoder_licence, encoder_package
from her2batch.models.mil_registry import mil_package, shape_settings
from her2batch.models.predictor import MIN_PROBABILITY, apply_temperature
from her2batch.settings import ImageSettings, MilSettings, Plan, Training
from her2batch.store.training_run import FINAL_FOLD, TrainingRun, Unit, encoder_folder
from her2batch.tasks import FUSION, FUSION_INPUT, Task, as_task
from her2batch.training.bag_data import open_bags
from her2batch.training.fit_loop import target_scale
from her2batch.training.fusion.stacking import final_stack
from her2batch.training.methods import UnitPlan, method_kind, method_settings, patches_per_edge
from her2batch.training.metrics import check_numbers, metrics_summary, metrics_table
from her2batch.training.publishing.model_card import CARD, model_card

Floats = NDArray[np.float32]

COVERAGE: Final = 0.9
"""Share of slides whose true class is to be among the plausible ones."""

TEMPERATURES: Final = (0.05, 20.0)
"""Smallest and largest temperature."""

KINDS: Final = {"mil": "mil", "image": "thumbnail", "patch": "patch", "counts": "counts"}
"""Kind of a unit → kind of a model in a bundle."""


def make_bundle(run: TrainingRun, work: UnitPlan, training: Training, plan: Plan) -> Bundle:
    """Write the final units of a run to RUN/bundle, replacing an earlier bundle."""
    finals = [unit for unit in work.units if unit.fold == FINAL_FOLD]
    predictions = run.read("predictions")
    entries = [_entry(run, unit, predictions, training) for unit in finals]
    if FUSION in training.methods:
        rules = run.read_or_empty("rules")
        entries += [_fusion_entry(predictions, training.task(name), rules) for name in training.tasks]
    encoders = sorted({entry.input for entry in entries if entry.kind == "mil"})
    licences = sorted({encoder_licence(name) for name in encoders}) or ["none needed"]
    tasks = [training.task(name) for name in dict.fromkeys(entry.task for entry in entries)]
    own = tuple(task for task in tasks if not task.is_builtin)
    info = BundleInfo(
        format=3 if any(entry.ordinal or entry.stack or entry.per_edge for entry in entries) else 2 if own else 1,
        her2batch=version("her2batch"),
        tasks=tuple(task.name for task in tasks),
        encoder=encoders[0] if encoders else None,
        mpp=plan.mpp if encoders else None,
        tile=plan.tile if encoders else None,
        licence="; ".join(licences),
        packages=_packages(entries),
        definitions=own or None,
        models=tuple(entries),
    )
    shutil.rmtree(run.bundle, ignore_errors=True)
    files = dict(_files(run, zip(finals, entries, strict=False)))  # a fusion has no unit
    return save_bundle(run.bundle, info, files, {CARD: model_card(info, run)})


def _packages(entries: Iterable[ModelEntry]) -> tuple[PackageEntry, ...] | None:
    """Return the packages that add MIL methods and encoders of these models; None where all are built in."""
    heads = [entry for entry in entries if entry.kind == "mil"]
    found = {("mil", entry.method): mil_package(entry.method) for entry in heads}
    found |= {("encoder", entry.input): encoder_package(entry.input) for entry in heads}
    rows = [
        PackageEntry(adds=adds, name=name, package=package.name, version=package.version)
        for (adds, name), package in sorted(found.items())
        if package is not None
    ]
    return tuple(rows) or None


def _files(run: TrainingRun, pairs: Iterable[tuple[Unit, ModelEntry]]) -> Iterable[tuple[str, Path]]:
    for unit, entry in pairs:
        if entry.file:
            yield entry.file, run.unit(unit) / f"model{Path(entry.file).suffix}"


def _entry(run: TrainingRun, unit: Unit, predictions: pa.Table, training: Training) -> ModelEntry:
    """Return the entry of a model, with its calibration and its metrics over the folds."""
    kind = method_kind(unit.method, unit.input)
    suffix = ".skops" if kind == "counts" else ".safetensors"
    task = training.task(unit.task)
    own = predictions.filter(_is_of(predictions, unit))
    values: dict[str, Any] = {
        "kind": KINDS[kind], "task": unit.task, "method": unit.method, "input": unit.input,
        "classes": task.classes, "figures": _figures(own),
    }  # fmt: skip
    if unit.method != "majority-vote":
        names = (unit.task, encoder_folder(unit.method), encoder_folder(unit.input))
        values["file"] = f"{'.'.join(names)}{suffix}"
    settings = method_settings(unit.method, kind, training)
    if isinstance(settings, MilSettings):
        dim = open_bags(run.cache(f"{encoder_folder(unit.input)}.arrow")).dim
        values |= {"dim": dim, "pseudo_bags": settings.pseudo_bags, "splits": settings.splits_at_test}
        values["settings"] = _further_settings(unit.method, settings)
    if isinstance(settings, MilSettings | ImageSettings) and settings.ordinal != "none":
        values["ordinal"] = settings.ordinal
    if isinstance(settings, ImageSettings):
        values["size"] = settings.size
    if kind == "patch" and (per_edge := patches_per_edge(training, unit.input)) > 1:
        values["per_edge"] = per_edge
    if task.is_number:
        values |= {"scale": _scale(run, unit), "interval": fit_interval(*check_numbers(own))}
    elif kind != "patch":
        values |= calibrate(own, task)
    return ModelEntry.model_validate(values)


def _fusion_entry(predictions: pa.Table, task: Task, rules: pa.Table) -> ModelEntry:
    """Return the entry of the stack of a task, which reads the bundle's other heads and the rules."""
    own = predictions.filter(_is_of(predictions, Unit(task.name, FUSION, FUSION_INPUT, FINAL_FOLD)))
    stack = final_stack(predictions, task, rules)
    return ModelEntry(
        kind=FUSION, task=task.name, method=FUSION, input=FUSION_INPUT, classes=task.classes, stack=stack,
        figures=_figures(own), **calibrate(own, task),
    )  # fmt: skip


def _scale(run: TrainingRun, unit: Unit) -> tuple[float, float]:
    """Return mean and standard deviation of the numbers that a final unit was trained on, as in its training."""
    truth = {row["slide_id"]: row["truth"] for row in run.read("labels").to_pylist() if row["task"] == unit.task}
    rows = [row for row in run.read("folds").to_pylist() if (row["task"], row["fold"]) == (unit.task, unit.fold)]
    ids = sorted(row["slide_id"] for row in rows if row["split"] == "train")
    return target_scale(np.array([float(truth[slide_id]) for slide_id in ids], np.float64))


def fit_interval(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], coverage: float = COVERAGE
) -> float | None:
    """Return half the width of the interval that contains the true number in nine of ten cases (split conformal).

    truth, predicted: (n,).  Source: Lei et al., JASA 2018: the quantile of |y − ŷ| at rank ⌈(n + 1) · coverage⌉.  None:
    there are too few slides for the coverage.
    """
    rank = math.ceil((len(truth) + 1) * coverage)
    return None if rank > len(truth) else float(np.sort(np.abs(truth - predicted))[rank - 1])


def _is_of(predictions: pa.Table, unit: Unit) -> pa.ChunkedArray:
    equal, both = pa.compute.equal, pa.compute.and_
    return both(
        both(equal(predictions["task"], unit.task), equal(predictions["method"], unit.method)),
        equal(predictions["input"], unit.input),
    )


def _further_settings(method: str, settings: MilSettings) -> dict[str, Any] | None:
    """Return the settings in the shape of a method that have no field of their own in a bundle; None without any."""
    names = shape_settings(method) - {"pseudo_bags", "splits_at_test"}
    return settings.model_dump(mode="json", include=names, exclude_none=True) or None


def _figures(own: pa.Table) -> dict[str, float]:
    """Return means and standard deviations over the folds, in percent."""
    row = metrics_summary(metrics_table(own)).to_pylist()[0]
    names = [name for name in row if name.endswith(("_mean", "_sd"))]
    return {name: round(row[name], 2) for name in names if row[name] is not None}


def calibrate(own: pa.Table, task: str | Task) -> dict[str, Any]:
    """Return temperature and threshold from the test predictions of the folds of one method."""
    p = np.array(own["p"].to_pylist(), np.float32)
    labels = np.array([as_task(task).classes.index(name) for name in own["truth"].to_pylist()], np.int64)
    temperature = fit_temperature(p, labels)
    return {"temperature": temperature, "threshold": fit_threshold(apply_temperature(p, temperature), labels)}


def fit_temperature(p: Floats, labels: NDArray[np.int64]) -> float:
    """Return the temperature of the largest likelihood. p: (n, C), n ≥ 1.  labels: (n,)."""
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        scaled = apply_temperature(p, math.exp(log_t))
        return float(-np.log(np.maximum(scaled[rows, labels], MIN_PROBABILITY)).mean())

    result = minimize_scalar(loss, bounds=tuple(math.log(bound) for bound in TEMPERATURES), method="bounded")
    return round(float(math.exp(result.x)), 4)


def fit_threshold(p: Floats, labels: NDArray[np.int64], coverage: float = COVERAGE) -> float | None:
    """Return the smallest probability of a plausible class. p: (n, C), after the temperature.

    None: there are too few slides for the coverage.
    """
    n = len(labels)
    rank = math.ceil((n + 1) * coverage)
    if rank > n:
        return None
    scores = np.sort(1 - p[np.arange(n), labels].astype(np.float64))
    return round(float(max(0.0, 1 - scores[rank - 1])) - 5e-5, 4) if scores[rank - 1] < 1 else 0.0
