"""The end of a run: one model a method that has seen all slides, calibrated on the folds', in a bundle.

Temperature: Guo et al., ICML 2017: p ∝ exp(log p / T), T by maximum likelihood.  Plausible sets: split conformal
prediction with the score 1 − p of the true class (Sadinle, Lei, Wasserman, JASA 2019): at 90 %, a new slide's true
class is in its set in 9 of 10 cases, if it comes from where the calibration slides came from. Both are fitted to
the folds' test predictions, whose slides their model had not seen.
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

from her2batch.models.bundle import Bundle, BundleInfo, ModelEntry, save_bundle
from her2batch.models.encoders import encoder_licence
from her2batch.models.predictor import LEAST, apply_temperature
from her2batch.settings import ImageSettings, MilSettings, Plan, Training
from her2batch.store.training_run import FINAL_FOLD, TrainingRun, Unit, encoder_folder
from her2batch.tasks import CLASSES
from her2batch.training.methods import UnitPlan, method_kind, method_settings
from her2batch.training.metrics import metrics_summary, metrics_table

Floats = NDArray[np.float32]

COVERAGE: Final = 0.9
"""Share of slides whose true class shall be among the plausible ones."""

RANGE: Final = (0.05, 20.0)
"""Of temperatures."""

KINDS: Final = {"mil": "mil", "image": "thumbnail", "patch": "patch", "counts": "counts"}
"""What a bundle calls the kinds of a run."""


def make_bundle(run: TrainingRun, work: UnitPlan, training: Training, plan: Plan) -> Bundle:
    """Put the final units of a run into RUN/bundle, in place of the one that is there."""
    finals = [unit for unit in work.units if unit.fold == FINAL_FOLD]
    predictions = run.read("predictions")
    entries = [_entry(run, unit, predictions, training) for unit in finals]
    encoders = sorted({one.input for one in entries if one.kind == "mil"})
    licences = sorted({encoder_licence(one) for one in encoders}) or ["none needed"]
    info = BundleInfo(
        her2batch=version("her2batch"),
        tasks=tuple(dict.fromkeys(one.task for one in entries)),
        encoder=encoders[0] if encoders else None,
        mpp=plan.mpp if encoders else None,
        tile=plan.tile if encoders else None,
        licence="; ".join(licences),
        models=tuple(entries),
    )
    shutil.rmtree(run.bundle, ignore_errors=True)
    return save_bundle(run.bundle, info, dict(_files(run, zip(finals, entries, strict=True))))


def _files(run: TrainingRun, pairs: Iterable[tuple[Unit, ModelEntry]]) -> Iterable[tuple[str, Path]]:
    for unit, entry in pairs:
        if entry.file:
            yield entry.file, run.unit(unit) / f"model{Path(entry.file).suffix}"


def _entry(run: TrainingRun, unit: Unit, predictions: pa.Table, training: Training) -> ModelEntry:
    """A model with its calibration and figures."""
    kind = method_kind(unit.method, unit.input)
    suffix = ".skops" if kind == "counts" else ".safetensors"
    own = predictions.filter(_is(predictions, unit))
    values: dict[str, Any] = {
        "kind": KINDS[kind], "task": unit.task, "method": unit.method, "input": unit.input,
        "classes": CLASSES[unit.task], "figures": _figures(own),
    }  # fmt: skip
    if unit.method != "majority-vote":
        values["file"] = f"{unit.task}.{unit.method}.{encoder_folder(unit.input)}{suffix}"
    settings = method_settings(unit.method, kind, training)
    if isinstance(settings, MilSettings):
        with_dim = run.unit(unit) / "model.safetensors"
        values |= {"dim": _dim(with_dim), "pseudo_bags": settings.pseudo_bags, "splits": settings.splits_at_test}
    if isinstance(settings, ImageSettings):
        values["size"] = settings.size
    if kind != "patch":
        values |= calibrate(own, unit.task)
    return ModelEntry.model_validate(values)


def _is(predictions: pa.Table, unit: Unit) -> pa.ChunkedArray:
    equal, both = pa.compute.equal, pa.compute.and_
    return both(
        both(equal(predictions["task"], unit.task), equal(predictions["method"], unit.method)),
        equal(predictions["input"], unit.input),
    )


def _dim(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return int(file.get_slice("embed.weight").get_shape()[1])


def _figures(own: pa.Table) -> dict[str, float]:
    """Means and standard deviations over the folds, in percent."""
    row = metrics_summary(metrics_table(own)).to_pylist()[0]
    names = [name for name in row if name.endswith(("_mean", "_sd"))]
    return {name: round(row[name], 2) for name in names if row[name] is not None}


def calibrate(own: pa.Table, task: str) -> dict[str, Any]:
    """Temperature and threshold from the folds' test predictions of one method."""
    p = np.array(own["p"].to_pylist(), np.float32)
    labels = np.array([CLASSES[task].index(one) for one in own["truth"].to_pylist()], np.int64)
    temperature = fit_temperature(p, labels)
    return {"temperature": temperature, "threshold": fit_threshold(apply_temperature(p, temperature), labels)}


def fit_temperature(p: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature under which these predictions are most likely. p: (n, C), n ≥ 1.  labels: (n,)."""
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        scaled = apply_temperature(p, math.exp(log_t))
        return float(-np.log(np.maximum(scaled[rows, labels], LEAST)).mean())

    found = minimize_scalar(loss, bounds=tuple(math.log(one) for one in RANGE), method="bounded")
    return round(float(math.exp(found.x)), 4)


def fit_threshold(p: Floats, labels: NDArray[np.int64], coverage: float = COVERAGE) -> float | None:
    """The least probability of a plausible class, from tempered p (n, C). None with too few slides for the coverage."""
    n = len(labels)
    rank = math.ceil((n + 1) * coverage)
    if rank > n:
        return None
    scores = np.sort(1 - p[np.arange(n), labels].astype(np.float64))
    return round(float(max(0.0, 1 - scores[rank - 1])) - 5e-5, 4) if scores[rank - 1] < 1 else 0.0
