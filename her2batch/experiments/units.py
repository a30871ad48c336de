"""Training and test of one unit, a fold of a method: from the run's tables and caches to its predictions. No Ray.

The result of a unit depends only on the run's settings and the unit's name, not on where, when, how often or together
with which other units it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.files.atomic import atomic_write
from her2batch.files.parquet import read_parquet
from her2batch.models.nets import network_spec
from her2batch.settings import CountsSettings, ImageSettings, MilSettings, Plan, Training
from her2batch.store.cohort import Cohort
from her2batch.store.pieces.patient_tiles import patient_tiles_of, read_patient_tiles
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import FINAL_FOLD, TrainingRun, Unit, encoder_folder, tasks_of_table, with_tasks
from her2batch.tasks import IHC_SCORES, PATCH_INPUTS, Task
from her2batch.training import methods
from her2batch.training.readers.targets import READERS, estimate_disagreement, soft_targets

if TYPE_CHECKING:
    from her2batch.training.fit_loop import FitResult, Fold, Progress

Rows = NDArray[np.int64]

EpochCallback = Callable[["Progress"], None]
"""Called after every epoch; an exception ends the unit."""


@dataclass(frozen=True)
class TrainingJob:
    """A training run with its cohort, plan and settings, shared by all units."""

    run: TrainingRun
    cohort: Cohort
    plan: Plan
    training: Training
    folds_file: Path | None = None


@dataclass(frozen=True)
class UnitSlides:
    """The n slides of a unit. labels: (n,) class numbers, or float64 numbers.  split: (n,) 'train', 'val' or 'test'."""

    slide_ids: tuple[str, ...]
    labels: NDArray[Any]
    split: NDArray[np.str_]

    def rows(self, split: str) -> Rows:
        """Return the positions of the slides of one split."""
        return np.flatnonzero(self.split == split)


def run_unit(job: TrainingJob, unit: Unit, device: str = "cpu", on_epoch: EpochCallback = lambda _: None) -> str:
    """Train, test and commit one unit; return its name. A unit that is committed already is skipped.

    Raises InputError for a damaged cache or table, FloatingPointError for a loss that is not a number.
    """
    if job.run.is_done(unit):
        return unit.name
    slides = unit_slides(job.run, unit)
    job.run.unit(unit).mkdir(parents=True, exist_ok=True)
    kind = methods.method_kind(unit.method, unit.input)
    if kind == "counts":
        _run_counts_unit(job, unit, slides)
        return unit.name
    inputs = _training_data(job, unit, slides)
    fitted = _fit(job, unit, inputs, device, on_epoch, job.run.checkpoint(unit))
    if not _is_writer():
        return unit.name
    _write_history(job, unit, fitted)
    tests = {"mil": _test_mil, "image": _test_image, "patch": _test_patch}
    tests[kind](job, unit, slides, inputs, fitted, device)
    return unit.name


def _is_writer() -> bool:
    """Return whether this process writes results: of several that train one network, only the first does."""
    import torch

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def _write_history(job: TrainingJob, unit: Unit, fitted: FitResult) -> None:
    train, val = zip(*fitted.history, strict=True)
    columns = {"epoch": range(1, len(train) + 1), "train_loss": train, "val_loss": val}
    job.run.write_unit_table(unit, "history", pa.table({name: list(values) for name, values in columns.items()}))


def train_only(job: TrainingJob, unit: Unit, device: str, on_epoch: EpochCallback, checkpoint: Path) -> Progress:
    """Train a unit without testing it, as a search does. Raises the same errors as run_unit."""
    return _fit(job, unit, _training_data(job, unit, unit_slides(job.run, unit)), device, on_epoch, checkpoint).progress


def unit_slides(run: TrainingRun, unit: Unit) -> UnitSlides:
    """Return the unit's slides with their labels and splits, in order of slide_id."""
    table = run.read("labels")
    number = tasks_of_table(table)[unit.task].is_number
    labelled = [row for row in table.to_pylist() if row["task"] == unit.task]
    truth = {row["slide_id"]: float(row["truth"]) if number else row["label"] for row in labelled}
    folds = run.read("folds")
    is_unit = pa.compute.and_(pa.compute.equal(folds["task"], unit.task), pa.compute.equal(folds["fold"], unit.fold))
    rows = folds.filter(is_unit).sort_by("slide_id").to_pylist()
    ids = tuple(row["slide_id"] for row in rows)
    labels = np.array([truth[slide_id] for slide_id in ids], np.float64 if number else np.int64)
    return UnitSlides(ids, labels, np.array([row["split"] for row in rows]))


@dataclass(frozen=True)
class _TrainingData:
    """The data that a unit trains on.

    data: bags, or pixels (n, e, e, 3).  positions: position in `data` of each of the unit's slides; for patches, the
    position among the unit's slides of each patch's slide.  fill: colour around images.
    """

    fold: Fold
    data: Any
    positions: Rows
    fill: NDArray[np.uint8] | None = None


def _training_data(job: TrainingJob, unit: Unit, slides: UnitSlides) -> _TrainingData:
    from her2batch.training import bag_data, image_data

    kind = methods.method_kind(unit.method, unit.input)
    if kind == "patch":
        return _patch_data(job, unit, slides)
    data: Any
    if kind == "mil":
        data = bag_data.open_bags(job.run.cache(f"{encoder_folder(unit.input)}.arrow"))
        ids, fill = data.slide_ids, None
    else:
        thumbnails = image_data.open_thumbnails(job.run.cache(f"{unit.input}.npy"))
        ids, data, fill = thumbnails.slide_ids, thumbnails.pixels, thumbnails.fills
    row_of = {slide_id: k for k, slide_id in enumerate(ids)}
    at = np.array([row_of[slide_id] for slide_id in slides.slide_ids], np.int64)
    labels = np.full(len(ids), -1, slides.labels.dtype)
    labels[at] = slides.labels
    fold = _make_fold(job, unit, labels, at[slides.rows("train")], at[slides.rows("val")])
    if job.training.readers is not None:
        task = job.training.task(unit.task)
        fold = replace(fold, targets=soft_targets(job.run.read_or_empty("readings"), task, ids, labels))
    return _TrainingData(_smoothed(job, unit, slides, fold), data, at, fill)


def _patch_data(job: TrainingJob, unit: Unit, slides: UnitSlides) -> _TrainingData:
    """Return the annotated patches of the unit's slides, each in the split of its slide."""
    from her2batch.training import image_data

    tables = annotated_patch_tables(job, unit.input, slides.slide_ids)
    patches = image_data.open_stack([job.run.cache(unit.input) / f"{slide_id}.npy" for slide_id in tables])
    row_of = {slide_id: k for k, slide_id in enumerate(slides.slide_ids)}
    scores = [score for table in tables.values() for score in table["truth"].to_pylist()]
    labels = np.array([IHC_SCORES.index(score) for score in scores], np.int64)
    slide_rows = np.repeat([row_of[slide_id] for slide_id in tables], np.diff(patches.starts))
    train, val = (np.flatnonzero(slides.split[slide_rows] == split) for split in ("train", "val"))
    fold = _smoothed(job, unit, slides, _make_fold(job, unit, labels, train, val))
    return _TrainingData(fold, patches, slide_rows, np.full(3, 240, np.uint8))


def annotated_patch_tables(job: TrainingJob, input_name: str, slide_ids: Sequence[str]) -> dict[str, pa.Table]:
    """Return slide → rows of the run's table `patches`, for the slides with annotated patches, in the given order."""
    paths = {slide_id: job.run.cache(input_name) / f"{slide_id}.parquet" for slide_id in slide_ids}
    return {slide_id: read_parquet(path) for slide_id, path in paths.items() if path.is_file()}


def _make_fold(job: TrainingJob, unit: Unit, labels: NDArray[Any], train: Rows, val: Rows) -> Fold:
    from her2batch.training.fit_loop import Fold

    # the same seed for every fold of a method, so that folds differ only in their slides
    task = job.training.task(unit.task)
    return Fold(labels, train, val, task.outputs, job.training.seed, task.is_number)


def _smoothed(job: TrainingJob, unit: Unit, slides: UnitSlides, fold: Fold) -> Fold:
    """Return a fold whose labels are smoothed where the run has a matrix of disagreement for the task.

    A matrix that is estimated from readers is that of the training slides of the fold.
    """
    if unit.task not in job.training.tasks or job.training.disagreement is None:
        return fold
    if job.training.disagreement == READERS:
        training_slides = {slides.slide_ids[k] for k in slides.rows("train")}
        matrix = estimate_disagreement(job.run.read_or_empty("readings"), job.training.task(unit.task), training_slides)
    else:
        matrix = np.array((job.training.smoothing or {})[unit.task], np.float32)
    known = np.maximum(fold.labels, 0)  # slides of neither part have the label −1; their targets are not used
    return replace(fold, targets=matrix[known])


def _fit(
    job: TrainingJob, unit: Unit, inputs: _TrainingData, device: str, on_epoch: EpochCallback, checkpoint: Path
) -> FitResult:
    from her2batch.models.device import set_deterministic
    from her2batch.training import fit_image, fit_mil

    set_deterministic(device)
    settings = methods.method_settings(unit.method, methods.method_kind(unit.method, unit.input), job.training)
    if isinstance(settings, MilSettings):
        return fit_mil.fit_mil_network(unit.method, inputs.data, inputs.fold, settings, device, checkpoint, on_epoch)
    assert isinstance(settings, ImageSettings)
    return fit_image.fit_image_network(
        unit.method, inputs.data, inputs.fold, settings, device, inputs.fill, checkpoint, on_epoch
    )


def _test_mil(
    job: TrainingJob, unit: Unit, slides: UnitSlides, inputs: _TrainingData, fitted: FitResult, device: str
) -> None:
    """Commit the predictions of the test slides and the attention of each of their tiles."""
    from her2batch.models.mil_registry import build_mil_network
    from her2batch.training.fit_mil import predict_bags

    _save_weights(job.run.unit(unit) / "model.safetensors", fitted.weights)
    settings = methods.method_settings(unit.method, "mil", job.training)
    assert isinstance(settings, MilSettings)
    network = build_mil_network(unit.method, inputs.data.dim, inputs.fold.n_classes, settings)
    network.load_state_dict(fitted.weights)
    test = slides.rows("test")
    fold = inputs.fold
    p, attention = predict_bags(
        network.to(device).eval(), inputs.data, inputs.positions[test], fold.n_classes, device, fold.scale
    )
    ids = [slides.slide_ids[k] for k in test]
    job.run.write_unit_table(unit, "attention", _attention_table(job, ids, attention))
    _commit_predictions(job, unit, ids, slides.labels[test], p)


def _test_image(
    job: TrainingJob, unit: Unit, slides: UnitSlides, inputs: _TrainingData, fitted: FitResult, device: str
) -> None:
    classify = _classifier(job, unit, inputs, fitted, device)
    test = slides.rows("test")
    p = classify(inputs.data, inputs.positions[test])
    _commit_predictions(job, unit, [slides.slide_ids[k] for k in test], slides.labels[test], p)


def _test_patch(
    job: TrainingJob, unit: Unit, slides: UnitSlides, inputs: _TrainingData, fitted: FitResult, device: str
) -> None:
    """Commit the predictions of the test slides' annotated patches, and the counts of all slides' tissue patches."""
    from her2batch.models.heads import count_features

    classify = _classifier(job, unit, inputs, fitted, device)
    features = []
    for slide_id in slides.slide_ids:
        batches = [classify(pixels, np.arange(len(pixels))) for pixels in tissue_patches(job, unit.input, slide_id)]
        features.append(count_features(np.concatenate([np.empty((0, 4), np.float32), *batches])).tolist())
    columns = {"slide_id": list(slides.slide_ids), "features": features}
    job.run.write_unit_table(unit, "counts", pa.table(columns, run_schema("counts")))
    test = np.flatnonzero(slides.split[inputs.positions] == "test")
    ids = [slides.slide_ids[k] for k in inputs.positions[test]]
    _commit_predictions(job, unit, ids, inputs.fold.labels[test], classify(inputs.data, test))


def _run_counts_unit(job: TrainingJob, unit: Unit, slides: UnitSlides) -> None:
    """Train, test and commit a classifier on the class counts of the same fold's patch network."""
    from her2batch.models.heads import head_probabilities, majority_vote, save_head
    from her2batch.training.fit_counts import fit_count_classifier

    patch_unit = Unit(methods.PATCH_TASK, methods.patch_network(job.training), unit.input, unit.fold)
    table = job.run.read_unit_table(patch_unit, "counts").to_pydict()
    by_id = dict(zip(table["slide_id"], table["features"], strict=True))
    features = np.array([by_id[slide_id] for slide_id in slides.slide_ids], np.float64)
    train, test = np.flatnonzero(np.isin(slides.split, ["train", "val"])), slides.rows("test")
    n = len(job.training.task(unit.task).classes)
    if unit.method == "majority-vote":
        p = majority_vote(features[test])
    else:
        settings = methods.method_settings(unit.method, "counts", job.training)
        assert isinstance(settings, CountsSettings)
        patients = {row["slide_id"]: row["patient_id"] for row in job.run.read("labels").to_pylist()}
        groups = [patients[slides.slide_ids[k]] for k in train]
        head = fit_count_classifier(
            unit.method, features[train], slides.labels[train], groups, n, settings, job.training.seed
        )
        with atomic_write(job.run.unit(unit) / "model.skops") as file:
            save_head(head, file)
        p = head_probabilities(head, features[test], n) if len(test) else np.empty((0, n), np.float32)
    _commit_predictions(job, unit, [slides.slide_ids[k] for k in test], slides.labels[test], p)


Classify = Callable[[Any, Rows], NDArray[np.float32]]
"""Function from pixels and rows to class probabilities, (n, classes)."""


def _classifier(job: TrainingJob, unit: Unit, inputs: _TrainingData, fitted: FitResult, device: str) -> Classify:
    """Return a classifier with the trained network. Its weights are saved only for the final fold, for the bundle."""
    from her2batch.training import fit_image

    settings = methods.method_settings(unit.method, methods.method_kind(unit.method, unit.input), job.training)
    assert isinstance(settings, ImageSettings)
    if unit.fold == FINAL_FOLD:
        _save_weights(job.run.unit(unit) / "model.safetensors", fitted.weights)
    n = inputs.fold.n_classes
    shape = (n, inputs.data.shape[1], settings.size)
    network = fit_image.trained_network(unit.method, fitted.weights, *shape, device, settings.ordinal)
    normalization = network_spec(unit.method).normalization
    return partial(fit_image.predict_images, network, n_classes=n, device=device, normalization=normalization)


def tissue_patches(job: TrainingJob, input_name: str, slide_id: str) -> Iterator[NDArray[np.uint8]]:
    """Yield batches of a slide's usable tissue patches with equalized contrast: (n, 224, 224, 3) uint8.

    input_name: their resolution, a key of PATCH_INPUTS.  They are read from the run's cache if it has them, otherwise
    from the slide's pyramid.
    """
    from her2batch.pipeline.patch_grid import plan_patches, read_patches
    from her2batch.slides.pyramid import Pyramid  # not at the top: training on embeddings does not need these
    from her2batch.training.image_data import load_images
    from her2batch.vision.patches import apply_clahe, usable_patches

    cached = job.run.cache(input_name) / f"{slide_id}.tissue.npy"
    if cached.is_file():
        yield load_images(cached)
        return
    table = read_patient_tiles(job.cohort, slide_id)
    tiles = np.stack([table.column(name).to_numpy() for name in ("x", "y", "size")], axis=1).astype(np.int32)
    with Pyramid(job.cohort.pyramid(slide_id)) as slide:
        mpp, per_edge = PATCH_INPUTS[input_name], methods.patches_per_edge(job.training, input_name)
        grid = plan_patches(slide.info, job.plan, tiles, table.column("tissue").to_numpy(), mpp, per_edge)
        for batch in read_patches(slide, grid):
            if (good := usable_patches(batch.pixels)).any():
                yield apply_clahe(batch.pixels[good])


def _save_weights(path: Path, weights: dict[str, Any]) -> None:
    from safetensors.torch import save

    with atomic_write(path) as file:
        file.write_bytes(save({key: weight.contiguous() for key, weight in weights.items()}))


def _attention_table(job: TrainingJob, ids: Sequence[str], attention: Sequence[NDArray[np.float32]]) -> pa.Table:
    """Return the attention of test slides, by the numbers of their tiles in the table `tiles`."""
    n = [len(values) for values in attention]
    own = (patient_tiles_of(job.cohort, slide_id) for slide_id in ids)
    tiles = [
        np.arange(count) if counts is None else np.flatnonzero(counts) for count, counts in zip(n, own, strict=True)
    ]
    columns = {
        "slide_id": np.repeat(np.array(ids, object), n),
        "tile": np.concatenate(tiles) if n else np.empty(0, int),
        "attention": np.concatenate(attention) if n else np.empty(0, np.float32),
    }
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(run_schema("attention"))


def _commit_predictions(
    job: TrainingJob, unit: Unit, ids: Sequence[str], labels: NDArray[Any], p: NDArray[np.float32]
) -> None:
    task, n = job.training.task(unit.task), len(ids)
    truth, predicted = _texts(task, labels, p)
    columns = {
        "task": [unit.task] * n, "method": [unit.method] * n, "input": [unit.input] * n, "fold": [unit.fold] * n,
        "slide_id": list(ids), "truth": truth, "p": [row.tolist() for row in p], "predicted": predicted,
    }  # fmt: skip
    job.run.commit(unit, with_tasks(pa.table(columns, run_schema("predictions")), [task]))


def _texts(task: Task, labels: NDArray[Any], p: NDArray[np.float32]) -> tuple[list[str], list[str]]:
    """Return truth and prediction of slides as text: classes, or numbers, of which `p`, (n, 1), has the predicted."""
    if task.is_number:
        return [str(float(label)) for label in labels], [f"{float(row[0]):.4g}" for row in p]
    return [task.classes[k] for k in labels], [task.classes[int(row.argmax())] for row in p]
