"""One unit of a run: one fold of one method, from the run's tables and caches to its committed predictions. No Ray.

What a unit computes depends on the run's settings and its own name alone, so that it does not matter where, when, how
often or beside what it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.files.atomic import atomic_write
from her2batch.files.parquet import read_parquet
from her2batch.settings import CountsSettings, ImageSettings, MilSettings, Plan, Training
from her2batch.store.cohort import Cohort
from her2batch.store.schemas import run_schema
from her2batch.store.training_run import FINAL_FOLD, TrainingRun, Unit, encoder_folder
from her2batch.tasks import CLASSES, IHC_SCORES, PATCH_INPUTS
from her2batch.training import methods

if TYPE_CHECKING:
    from her2batch.training.fit_loop import FitResult, Fold, Progress

Rows = NDArray[np.int64]

EpochCallback = Callable[["Progress"], None]
"""Called after every epoch; what it raises ends the unit."""


@dataclass(frozen=True)
class TrainingJob:
    """What every unit of a run shares."""

    run: TrainingRun
    cohort: Cohort
    plan: Plan
    training: Training


@dataclass(frozen=True)
class UnitSlides:
    """A unit's slides. labels, split: (n,), by position of slide_ids."""

    slide_ids: tuple[str, ...]
    labels: Rows
    split: NDArray[np.str_]

    def rows(self, split: str) -> Rows:
        """Positions of the slides of one split."""
        return np.flatnonzero(self.split == split)


def run_unit(job: TrainingJob, unit: Unit, device: str = "cpu", watch: EpochCallback = lambda _: None) -> str:
    """Train, test and commit one unit; returns its name. A unit that is committed already is left alone.

    Raises InputError for a cache or table that is damaged, FloatingPointError for a loss that is no number.
    """
    if job.run.is_done(unit):
        return unit.name
    part = unit_slides(job.run, unit)
    job.run.unit(unit).mkdir(parents=True, exist_ok=True)
    kind = methods.method_kind(unit.method, unit.input)
    if kind == "counts":
        _run_counts_unit(job, unit, part)
        return unit.name
    lesson = _training_data(job, unit, part)
    fitted = _fit(job, unit, lesson, device, watch, job.run.checkpoint(unit))
    if not _is_writer():
        return unit.name
    tests = {"mil": _test_mil, "image": _test_image, "patch": _test_patch}
    tests[kind](job, unit, part, lesson, fitted, device)
    return unit.name


def _is_writer() -> bool:
    """Whether this process writes: of several that train one network together, the first alone."""
    import torch

    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not there or torch.distributed.get_rank() == 0


def train_only(job: TrainingJob, unit: Unit, device: str, watch: EpochCallback, checkpoint: Path) -> Progress:
    """Train a unit without its test part: what a search does. Raises as run_unit does."""
    return _fit(job, unit, _training_data(job, unit, unit_slides(job.run, unit)), device, watch, checkpoint).progress


def unit_slides(run: TrainingRun, unit: Unit) -> UnitSlides:
    """The unit's slides with their labels and splits, in order of slide_id."""
    labels = run.read("labels").to_pylist()
    truth = {one["slide_id"]: one["label"] for one in labels if one["task"] == unit.task}
    folds = run.read("folds")
    here = pa.compute.and_(pa.compute.equal(folds["task"], unit.task), pa.compute.equal(folds["fold"], unit.fold))
    rows = folds.filter(here).sort_by("slide_id").to_pylist()
    ids = tuple(one["slide_id"] for one in rows)
    return UnitSlides(ids, np.array([truth[one] for one in ids], np.int64), np.array([one["split"] for one in rows]))


@dataclass(frozen=True)
class _TrainingData:
    """What a unit trains on. data: bags, or pixels (n, e, e, 3).  fill: round pictures.  at: position in the data of
    each of the part's slides; of patches, the position in the part of each patch's slide.
    """  # fmt: skip

    fold: Fold
    data: Any
    at: Rows
    fill: NDArray[np.uint8] | None = None


def _training_data(job: TrainingJob, unit: Unit, part: UnitSlides) -> _TrainingData:
    from her2batch.training import bag_data, image_data

    kind = methods.method_kind(unit.method, unit.input)
    if kind == "patch":
        return _patch_data(job, unit, part)
    data: Any
    if kind == "mil":
        data = bag_data.open_bags(job.run.cache(f"{encoder_folder(unit.input)}.arrow"))
        ids, fill = data.slide_ids, None
    else:
        shown = image_data.open_thumbnails(job.run.cache(f"{unit.input}.npy"))
        ids, data, fill = shown.slide_ids, shown.pixels, shown.fills
    place = {one: k for k, one in enumerate(ids)}
    at = np.array([place[one] for one in part.slide_ids], np.int64)
    labels = np.full(len(ids), -1, np.int64)
    labels[at] = part.labels
    return _TrainingData(_make_fold(job, unit, labels, at[part.rows("train")], at[part.rows("val")]), data, at, fill)


def _patch_data(job: TrainingJob, unit: Unit, part: UnitSlides) -> _TrainingData:
    """Annotated patches of the part's slides, each in the split of its slide."""
    from her2batch.training import image_data

    tables = annotated_patch_tables(job, unit.input, part.slide_ids)
    found = image_data.open_stack([job.run.cache(unit.input) / f"{one}.npy" for one in tables])
    place = {one: k for k, one in enumerate(part.slide_ids)}
    labels = np.array(
        [IHC_SCORES.index(one) for table in tables.values() for one in table["truth"].to_pylist()], np.int64
    )
    of = np.repeat([place[one] for one in tables], np.diff(found.starts))
    train, val = (np.flatnonzero(part.split[of] == split) for split in ("train", "val"))
    return _TrainingData(_make_fold(job, unit, labels, train, val), found, of, np.full(3, 240, np.uint8))


def annotated_patch_tables(job: TrainingJob, given: str, slide_ids: Sequence[str]) -> dict[str, pa.Table]:
    """The annotated patches of those slides that have some, in their order: rows of the run's table `patches`."""
    paths = {one: job.run.cache(given) / f"{one}.parquet" for one in slide_ids}
    return {one: read_parquet(path) for one, path in paths.items() if path.is_file()}


def _make_fold(job: TrainingJob, unit: Unit, labels: Rows, train: Rows, val: Rows) -> Fold:
    from her2batch.training.fit_loop import Fold

    # the same start for every fold of a method: what differs between folds is their slides
    return Fold(labels, train, val, len(CLASSES[unit.task]), job.training.seed)


def _fit(
    job: TrainingJob, unit: Unit, lesson: _TrainingData, device: str, watch: EpochCallback, checkpoint: Path
) -> FitResult:
    from her2batch.models.device import set_deterministic
    from her2batch.training import fit_image, fit_mil

    set_deterministic(device)
    settings = methods.method_settings(unit.method, methods.method_kind(unit.method, unit.input), job.training)
    if isinstance(settings, MilSettings):
        return fit_mil.fit_mil_network(unit.method, lesson.data, lesson.fold, settings, device, checkpoint, watch)
    assert isinstance(settings, ImageSettings)
    return fit_image.fit_image_network(
        unit.method, lesson.data, lesson.fold, settings, device, lesson.fill, checkpoint, watch
    )


def _test_mil(
    job: TrainingJob, unit: Unit, part: UnitSlides, lesson: _TrainingData, fitted: FitResult, device: str
) -> None:
    """Predictions of the test slides, and the attention of each of their tiles."""
    from her2batch.models.mil_registry import build_mil_network
    from her2batch.training.fit_mil import predict_bags

    _save_weights(job.run.unit(unit) / "model.safetensors", fitted.weights)
    settings = methods.method_settings(unit.method, "mil", job.training)
    assert isinstance(settings, MilSettings)
    net = build_mil_network(unit.method, lesson.data.dim, lesson.fold.n_classes, settings)
    net.load_state_dict(fitted.weights)
    test = part.rows("test")
    p, attention = predict_bags(net.to(device).eval(), lesson.data, lesson.at[test], lesson.fold.n_classes, device)
    ids = [part.slide_ids[k] for k in test]
    job.run.write_unit_table(unit, "attention", _attention_table(ids, attention))
    _commit_predictions(job, unit, ids, part.labels[test], p)


def _test_image(
    job: TrainingJob, unit: Unit, part: UnitSlides, lesson: _TrainingData, fitted: FitResult, device: str
) -> None:
    classify = _classifier(job, unit, lesson, fitted, device)
    test = part.rows("test")
    p = classify(lesson.data, lesson.at[test])
    _commit_predictions(job, unit, [part.slide_ids[k] for k in test], part.labels[test], p)


def _test_patch(
    job: TrainingJob, unit: Unit, part: UnitSlides, lesson: _TrainingData, fitted: FitResult, device: str
) -> None:
    """Predictions of the annotated patches of the test slides; and the counts of every slide's tissue patches."""
    from her2batch.models.heads import count_features

    classify = _classifier(job, unit, lesson, fitted, device)
    features = []
    for slide_id in part.slide_ids:
        batches = [classify(pixels, np.arange(len(pixels))) for pixels in tissue_patches(job, unit.input, slide_id)]
        features.append(count_features(np.concatenate([np.empty((0, 4), np.float32), *batches])).tolist())
    columns = {"slide_id": list(part.slide_ids), "features": features}
    job.run.write_unit_table(unit, "counts", pa.table(columns, run_schema("counts")))
    test = np.flatnonzero(part.split[lesson.at] == "test")
    ids = [part.slide_ids[k] for k in lesson.at[test]]
    _commit_predictions(job, unit, ids, lesson.fold.labels[test], classify(lesson.data, test))


def _run_counts_unit(job: TrainingJob, unit: Unit, part: UnitSlides) -> None:
    """A classifier on the counts that the fold's own patch net gave."""
    from her2batch.models.heads import head_probabilities, majority_vote, save_head
    from her2batch.training.fit_counts import fit_count_classifier

    net = Unit(methods.PATCH_TASK, methods.PATCH_NET, unit.input, unit.fold)
    table = job.run.read_unit_table(net, "counts").to_pydict()
    by_id = dict(zip(table["slide_id"], table["features"], strict=True))
    features = np.array([by_id[one] for one in part.slide_ids], np.float64)
    train, test = np.flatnonzero(np.isin(part.split, ["train", "val"])), part.rows("test")
    n = len(CLASSES[unit.task])
    if unit.method == "majority-vote":
        p = majority_vote(features[test])
    else:
        settings = methods.method_settings(unit.method, "counts", job.training)
        assert isinstance(settings, CountsSettings)
        patients = {one["slide_id"]: one["patient_id"] for one in job.run.read("labels").to_pylist()}
        groups = [patients[part.slide_ids[k]] for k in train]
        head = fit_count_classifier(
            unit.method, features[train], part.labels[train], groups, n, settings, job.training.seed
        )
        with atomic_write(job.run.unit(unit) / "model.skops") as file:
            save_head(head, file)
        p = head_probabilities(head, features[test], n) if len(test) else np.empty((0, n), np.float32)
    _commit_predictions(job, unit, [part.slide_ids[k] for k in test], part.labels[test], p)


Classify = Callable[[Any, Rows], NDArray[np.float32]]


def _classifier(job: TrainingJob, unit: Unit, lesson: _TrainingData, fitted: FitResult, device: str) -> Classify:
    """What classifies rows of pixels with the trained network. Its weights are kept for the bundle alone."""
    from her2batch.training import fit_image

    settings = methods.method_settings(unit.method, methods.method_kind(unit.method, unit.input), job.training)
    assert isinstance(settings, ImageSettings)
    if unit.fold == FINAL_FOLD:
        _save_weights(job.run.unit(unit) / "model.safetensors", fitted.weights)
    n = lesson.fold.n_classes
    net = fit_image.trained_network(unit.method, fitted.weights, n, lesson.data.shape[1], settings.size, device)
    return partial(fit_image.predict_images, net, n_classes=n, device=device)


def tissue_patches(job: TrainingJob, given: str, slide_id: str) -> Iterator[NDArray[np.uint8]]:
    """A slide's tissue patches at a resolution, equalised, no white or black ones: (n, 224, 224, 3) uint8 a batch.

    From the run's cache where there is one, else from the slide's pyramid.
    """
    from her2batch.pipeline.patch_grid import patch_grid, pixels_of
    from her2batch.slides.pyramid import Pyramid  # here, for a worker that trains on embeddings needs none of these
    from her2batch.training.image_data import load_images
    from her2batch.vision.patches import apply_clahe, usable_patches

    kept = job.run.cache(given) / f"{slide_id}.tissue.npy"
    if kept.is_file():
        yield load_images(kept)
        return
    table = job.cohort.read("tiles", slide_id)
    tiles = np.stack([table.column(name).to_numpy() for name in ("x", "y", "size")], axis=1).astype(np.int32)
    with Pyramid(job.cohort.pyramid(slide_id)) as slide:
        grid = patch_grid(slide.info, job.plan, tiles, table.column("tissue").to_numpy(), PATCH_INPUTS[given])
        for batch in pixels_of(slide, grid):
            if (good := usable_patches(batch.pixels)).any():
                yield apply_clahe(batch.pixels[good])


def _save_weights(path: Path, weights: dict[str, Any]) -> None:
    from safetensors.torch import save

    with atomic_write(path) as part:
        part.write_bytes(save({key: one.contiguous() for key, one in weights.items()}))


def _attention_table(ids: Sequence[str], attention: Sequence[NDArray[np.float32]]) -> pa.Table:
    n = [len(one) for one in attention]
    columns = {
        "slide_id": np.repeat(np.array(ids, object), n),
        "tile": np.concatenate([np.arange(one) for one in n]) if n else np.empty(0, int),
        "attention": np.concatenate(attention) if n else np.empty(0, np.float32),
    }
    return pa.table({name: pa.array(one) for name, one in columns.items()}).cast(run_schema("attention"))


def _commit_predictions(job: TrainingJob, unit: Unit, ids: Sequence[str], labels: Rows, p: NDArray[np.float32]) -> None:
    words = CLASSES[unit.task]
    n = len(ids)
    columns = {
        "task": [unit.task] * n, "method": [unit.method] * n, "input": [unit.input] * n, "fold": [unit.fold] * n,
        "slide_id": list(ids), "truth": [words[k] for k in labels], "p": [one.tolist() for one in p],
        "predicted": [words[int(one.argmax())] for one in p],
    }  # fmt: skip
    job.run.commit(unit, pa.table(columns, run_schema("predictions")))
