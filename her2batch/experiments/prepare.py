"""Preparation of a training run: labels, folds, and the caches that all units read.

All input is checked here, before any training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from her2batch.errors import InputError, SlideError
from her2batch.exchange.annotations import find_annotations, read_annotations
from her2batch.experiments.given_folds import given_folds, inner_parts, split_by_given
from her2batch.experiments.units import TrainingJob, annotated_patch_tables, tissue_patches
from her2batch.files.atomic import atomic_write
from her2batch.files.parquet import write_parquet
from her2batch.models.nets import locate_initial_weights
from her2batch.pipeline.patch_grid import read_patches
from her2batch.runtime.doctor import check_torchvision
from her2batch.runtime.parallel import map_unordered
from her2batch.runtime.ray_session import RaySession
from her2batch.settings import ImageSettings
from her2batch.slides.pyramid import Pyramid
from her2batch.store import reviews
from her2batch.store.label_sheets.stored import LABELS_SCHEMA, stored_label_table
from her2batch.store.labels import (
    NOT_IN_COHORT,
    apply_reviews,
    check_labels,
    has_details,
    label_notes,
    label_slides,
    read_labels,
    reader_truths,
)
from her2batch.store.tables.runs import run_schema
from her2batch.store.training_run import encoder_folder, with_tasks
from her2batch.tasks import (
    DETAIL_TASK,
    HER2_TASKS,
    IHC_SCORES,
    PATCH_INPUTS,
    PATCH_PX,
    THUMBNAIL_INPUTS,
    further_columns,
)
from her2batch.training import bag_data, folds, image_data
from her2batch.training.methods import PATCH_TASK, UnitPlan, method_kind, method_settings, patches_per_edge
from her2batch.training.readers.targets import check_readers
from her2batch.training.recipes.random_streams import random_stream
from her2batch.vision.patches import apply_clahe, label_patches, usable_patches
from her2batch.vision.tile_grid import MAX_UPSAMPLING, TileGrid, plan_overlapping_tiles

Rows = Mapping[str, Mapping[str, Any]]


class MissingPatchClassError(InputError):
    """The annotated regions give no patch of some class at one resolution.  input_name: of that resolution."""

    def __init__(self, input_name: str, message: str, path: Path, remedy: str) -> None:
        super().__init__(message, path, remedy)
        self.input_name = input_name


def check_libraries(job: TrainingJob, work: UnitPlan) -> None:
    """Check that image networks can be trained and their weights are there, if any is left to train.

    Every fold would fail with the same message otherwise. Raises WeightsError.
    """
    units = [unit for unit in work.of("patch", "image") if not job.run.is_done(unit)]
    if units:
        check_torchvision()
    for method, input_name in sorted({(unit.method, unit.input) for unit in units}):
        settings = method_settings(method, method_kind(method, input_name), job.training)
        assert isinstance(settings, ImageSettings)
        locate_initial_weights(method, settings.size, settings.pretrained)


def prepare_run(
    job: TrainingJob,
    work: UnitPlan,
    labels: Path | None,
    annotations: Path | None,
    session: RaySession | None,
    columns: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write labels, excluded slides, folds and caches of a run.

    labels: a label sheet; None: the labels given to the ingest.  columns: of the sheet, name → header.
    Raises InputError for unusable input, and when the labels or folds of a resumed run have changed.
    """
    rows = job.cohort.rows()
    label_table, reviewed = load_labels(job, labels, columns)
    labelled, excluded, split = assign_folds(job, work, label_table, rows)
    readings = _task_readings(job, label_table, labelled)
    if not job.training.shuffle_labels:
        check_readers(job.training, readings)
    changing = {"folds": split, "labels": labelled}
    if len(readings) or job.run.table("readings").is_file():
        changing["readings"] = readings
    for name, table in changing.items():
        if job.run.table(name).is_file() and not job.run.read(name).equals(table):
            raise InputError(
                f"the {name} of this run have changed since it began", job.run.root, "choose another --out"
            )
    job.run.write("excluded", excluded)
    if job.training.reviews:
        job.run.write("reviews", reviewed)
    for name, table in changing.items():
        job.run.write(name, table)
    _fill_caches(job, work, labelled, annotations, rows, session)


def _task_readings(job: TrainingJob, labels: pa.Table, labelled: pa.Table) -> pa.Table:
    """Return the classes that readers give the labelled slides, the table `readings` of a run; empty without readers.

    A control run with shuffled labels has none: readers would tell the true ones.
    """
    rows: list[dict[str, Any]] = []
    own = labelled.to_pylist() if not job.training.shuffle_labels else []
    for task in sorted({row["task"] for row in own}):
        slides = {row["slide_id"] for row in own if row["task"] == task}
        rows += reader_truths(labels, job.training.task(task), slides)
    return pa.Table.from_pylist(rows, run_schema("readings"))


def load_labels(
    job: TrainingJob, path: Path | None, columns: Mapping[str, str] = MappingProxyType({})
) -> tuple[pa.Table, pa.Table]:
    """Read the labels, check them, and apply reviews if the settings say so. What a person should know is noted.

    Returns the labels, and the effect of each review (REVIEWED).  Raises InputError.  See `read_checked_labels`.
    """
    rows = job.cohort.rows()
    table = read_checked_labels(job, path, columns)
    job.run.write_notes("labels", label_notes(table, rows))
    return apply_reviews(table, reviews.read_reviews(job.cohort) if job.training.reviews else [], rows)


def read_checked_labels(
    job: TrainingJob, path: Path | None, columns: Mapping[str, str] = MappingProxyType({})
) -> pa.Table:
    """Read the labels of a run and check them; nothing is written.

    path: of a label sheet; None: the labels given to the ingest.  columns: of the sheet, name → header.
    Of the labels that were given to the ingest, those of slides that the cohort does not have are excluded later.
    Raises InputError.
    """
    further = further_columns(job.training.task(name) for name in job.training.tasks)
    if path is not None:
        table = read_labels(path, job.cohort, columns, further)
    elif job.cohort.labels.is_file():
        table = stored_label_table(job.cohort)
        if further:
            what = f"do not have the column {further[0]}, which a task reads: an ingest keeps its own columns only"
            raise InputError(what, job.cohort.labels, "give --labels FILE")
    elif job.training.reviews and reviews.read_reviews(job.cohort):
        table = LABELS_SCHEMA.empty_table()
    else:
        raise InputError("the cohort has no labels", job.cohort.root, "give --labels CSV")
    check_labels(table, job.cohort.rows(), path or job.cohort.labels, partly=path is None)
    return table


def assign_folds(job: TrainingJob, work: UnitPlan, table: pa.Table, rows: Rows) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return labels, excluded slides and folds of all tasks.

    The HER2 tasks share one assignment of folds, made on the finest label. The patch network is trained once for all
    three tasks; with shared folds, it is never trained on a slide that is tested.
    """
    tasks = sorted({unit.task for unit in work.units})
    settings = job.training
    labelled, excluded, split = [], [], []
    her2: dict[str, int] | None = None
    given = given_folds(settings, job.folds_file, table, rows)
    for task in tasks:
        good, bad = label_task_slides(job, task, table, rows, given)
        inner = None
        if given is not None:
            fold = np.array([given[slide_id] for slide_id in good["slide_id"].to_pylist()], np.int32)
            by_ring = settings.folds_by is None and settings.folds > 2
            inner = None if by_ring else inner_parts(good, settings.seed)
        elif task in HER2_TASKS:
            her2 = her2 or _assign_her2_folds(job, table, rows)
            fold = np.array([her2[slide_id] for slide_id in good["slide_id"].to_pylist()], np.int32)
        else:
            fold = folds.assign_patients(
                good["stratum"].to_pylist(), good["patient_id"].to_pylist(), settings.folds, settings.seed
            )
        labelled.append(good.append_column("task", pa.array([task] * len(good))))
        excluded.append(bad)
        known = settings.task(task)
        split += [
            folds.cross_validation_splits(known, good, fold, settings.folds, inner),
            folds.final_split(known, good, fold if inner is None else inner),
        ]
    names = run_schema("labels").names
    together = pa.concat_tables([table.select(names) for table in labelled]).cast(run_schema("labels"))
    return (
        with_tasks(together, map(settings.task, tasks)),
        pa.concat_tables(excluded),
        pa.concat_tables(split),
    )


def label_task_slides(
    job: TrainingJob, task: str, table: pa.Table, rows: Rows, given: Mapping[str, int] | None = None
) -> tuple[pa.Table, pa.Table]:
    """Return the labelled and the excluded slides of a task. Raises InputError if they are too few for the folds.

    given: slide_id → fold; slides without one are excluded.
    """
    good, bad = label_slides(table, job.training.task(task), rows, job.training.keep_contradictions)
    there = bad.filter(pc.not_equal(bad["reason"], NOT_IN_COHORT))
    if not good.num_rows and set(there["reason"].to_pylist()) == {"other-stain"}:
        what = f"{task} applies to none of the {there.num_rows} slides: {there['words'][0]}"
        raise InputError(what, None, "correct the column stain of the labels, or leave the task out")
    if given is not None:
        good, bad = split_by_given(good, bad, given, task, job.training.folds_by is not None)
    if job.training.shuffle_labels:
        good = folds.shuffle_labels(good, job.training.seed)
    folds.check_labelled(job.training.task(task), good, job.training.folds)
    return good, bad


def _assign_her2_folds(job: TrainingJob, table: pa.Table, rows: Rows) -> dict[str, int]:
    """Return slide → fold for all HER2 tasks, balanced in the finest label and in each task's classes."""
    labelled = label_slides(table, PATCH_TASK, rows, job.training.keep_contradictions)[0]
    ids = labelled["slide_id"].to_pylist()
    task_classes = []
    tasks = [task for task in HER2_TASKS if task != DETAIL_TASK or has_details(table)]
    for task in tasks:
        good = label_slides(table, task, rows, job.training.keep_contradictions)[0]
        truth = dict(zip(good["slide_id"].to_pylist(), good["truth"].to_pylist(), strict=True))
        task_classes.append([truth.get(slide_id, "") for slide_id in ids])
    strata, patients = labelled["stratum"].to_pylist(), labelled["patient_id"].to_pylist()
    fold = folds.assign_patients(strata, patients, job.training.folds, job.training.seed, task_classes)
    return dict(zip(ids, fold.tolist(), strict=True))


# -- caches ----------------------------------------------------------------------------------------------------


def _fill_caches(
    job: TrainingJob,
    work: UnitPlan,
    labelled: pa.Table,
    annotations: Path | None,
    rows: Rows,
    session: RaySession | None,
) -> None:
    """Write the bags, thumbnails and patches that the units read. Existing caches are kept."""
    by_task: dict[str, list[str]] = {}
    for row in labelled.to_pylist():
        by_task.setdefault(row["task"], []).append(row["slide_id"])

    def slides(input_name: str) -> list[str]:
        tasks = {unit.task for unit in work.units if unit.input == input_name}
        return sorted({slide_id for task in tasks for slide_id in by_task[task]})

    for encoder in work.inputs("mil"):
        name = encoder_folder(encoder)
        bag_data.gather_bags(job.cohort, encoder, name, slides(encoder), job.run.cache(f"{name}.arrow"))
    for input_name in work.inputs("image"):
        edge = THUMBNAIL_INPUTS[input_name]
        image_data.gather_thumbnails(job.cohort, rows, slides(input_name), edge, job.run.cache(f"{input_name}.npy"))
    if inputs := work.inputs("patch"):
        _cache_patches(job, by_task[PATCH_TASK], inputs, annotations, rows, session)


def _cache_patches(
    job: TrainingJob,
    slide_ids: Sequence[str],
    inputs: Sequence[str],
    annotations: Path | None,
    rows: Rows,
    session: RaySession | None,
) -> None:
    """Cut annotated patches of every annotated slide; with a limit on patches, also tissue patches of every slide."""
    if annotations is None:
        what = "patch methods need annotated regions"
        raise InputError(what, None, "give --annotations FOLDER with SLIDE.geojson files, as QuPath exports them")
    matches = find_annotations(annotations.absolute(), {slide_id: row["path"] for slide_id, row in rows.items()})
    files = matches.found
    job.run.write_notes("annotations", matches.notes)
    if not files.keys() & set(slide_ids):
        what = f"none of the {len(slide_ids)} labelled slides has annotations, but {len(files)} other slides have"
        raise InputError(what, annotations, "annotate slides that have labels")
    items = [(slide_id, files.get(slide_id), input_name) for input_name in inputs for slide_id in slide_ids]
    for item, result in map_unordered(session, partial(_cache_slide_patches, job), items):
        if isinstance(result, SlideError):
            raise InputError(f"slide {item[0]}: {result.message}", result.path, result.remedy) from result
        if isinstance(result, Exception):
            raise result
    empty = run_schema("patches").empty_table()
    tables = {
        input_name: pa.concat_tables([empty, *annotated_patch_tables(job, input_name, slide_ids).values()])
        for input_name in inputs
    }
    job.run.write("patches", pa.concat_tables(list(tables.values())))
    for input_name, table in tables.items():
        if missing := [score for score in IHC_SCORES if score not in table["truth"].to_pylist()]:
            what = f"no patch of class {', '.join(missing)} at {input_name.removeprefix('patches-')} resolution"
            remedy = "annotate regions of every class, named 0, 1+, 2+, 3+, wider than a patch; or try another --input"
            raise MissingPatchClassError(input_name, what, annotations, remedy)


def _cache_slide_patches(job: TrainingJob, item: tuple[str, Path | None, str], _: str) -> None:
    """Write the patches of one slide at one resolution to the cache."""
    slide_id, path, input_name = item
    folder = job.run.cache(input_name)
    if path is not None and not (folder / f"{slide_id}.parquet").is_file():
        pixels, table = cut_annotated_patches(job, slide_id, path, input_name)
        if len(table):
            image_data.save_images(pixels, folder / f"{slide_id}.npy")
            with atomic_write(folder / f"{slide_id}.parquet") as file:
                write_parquet(table, file)
    limit = job.training.patches_per_slide
    if limit is not None and not (folder / f"{slide_id}.tissue.npy").is_file():
        batches = [np.asarray(batch) for batch in tissue_patches(job, input_name, slide_id)]
        patches = np.concatenate([np.empty((0, PATCH_PX, PATCH_PX, 3), np.uint8), *batches])
        sample = _sample_patches(len(patches), job, slide_id)
        image_data.save_images(patches[sample], folder / f"{slide_id}.tissue.npy")


def cut_annotated_patches(
    job: TrainingJob, slide_id: str, path: Path, input_name: str
) -> tuple[NDArray[np.uint8], pa.Table]:
    """Return a slide's annotated patches with equalized contrast, (n, 224, 224, 3) uint8, and their rows of `patches`.

    At least 5 % of a patch is annotated, at most 70 % is white and at most 20 % black.  Source: paper, 2.3.
    """
    regions, _ = read_annotations(path)
    mpp = PATCH_INPUTS[input_name]
    pixels, tiles = np.empty((0, PATCH_PX, PATCH_PX, 3), np.uint8), np.empty((0, 3), np.int32)
    labels, shares = np.empty(0, np.int8), np.empty(0, np.float32)
    with Pyramid(job.cohort.pyramid(slide_id)) as slide:
        info = slide.info
        assert info.mpp is not None
        if info.mpp <= MAX_UPSAMPLING * mpp:
            per_edge = patches_per_edge(job.training, input_name)
            grid = plan_overlapping_tiles(info.width, info.height, info.mpp, mpp, PATCH_PX, per_edge)
            shapes = [(IHC_SCORES.index(region.score), region.shape) for region in regions]
            labels, shares = label_patches(shapes, grid)
            sample = np.flatnonzero(labels >= 0)
            sample = sample[_sample_patches(len(sample), job, slide_id)]
            tiles, labels, shares = grid[sample], labels[sample], shares[sample]
            pixels = np.empty((len(tiles), PATCH_PX, PATCH_PX, 3), np.uint8)
            for batch in read_patches(slide, TileGrid(mpp, PATCH_PX, tiles)):
                pixels[batch.rows] = batch.pixels
    good = usable_patches(pixels) if len(pixels) else np.empty(0, bool)
    n = int(good.sum())
    columns = {
        "slide_id": [slide_id] * n, "resolution": [input_name.removeprefix("patches-")] * n,
        **{name: tiles[good, k] for k, name in enumerate(("x", "y", "size"))},
        "truth": [IHC_SCORES[k] for k in labels[good]], "share": shares[good],
    }  # fmt: skip
    return apply_clahe(pixels[good]), pa.table(columns, run_schema("patches"))


def _sample_patches(n: int, job: TrainingJob, slide_id: str) -> NDArray[np.int64]:
    """Return the positions of the patches to use: all, or a random sample if there are more than the limit."""
    limit = job.training.patches_per_slide
    if limit is None or n <= limit:
        return np.arange(n)
    generator = random_stream(job.training.seed, *slide_id.encode())
    return np.sort(generator.choice(n, limit, replace=False))
