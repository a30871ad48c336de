"""What a run needs before its first unit: labels, folds, and caches that all units read.

Everything that can be wrong with what was given is said here, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError, SlideError
from her2batch.exchange.annotations import find_annotations, read_annotations
from her2batch.experiments.units import TrainingJob, annotated_patch_tables, tissue_patches
from her2batch.files.atomic import atomic_write
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.pipeline.patch_grid import pixels_of
from her2batch.runtime.doctor import check_torchvision
from her2batch.runtime.parallel import map_unordered
from her2batch.runtime.ray_session import RaySession
from her2batch.slides.pyramid import Pyramid
from her2batch.store import reviews
from her2batch.store.labels import LABELS_SCHEMA, apply_reviews, check_labels, label_slides, read_labels
from her2batch.store.schemas import run_schema
from her2batch.store.training_run import encoder_folder
from her2batch.tasks import HER2_TASKS, IHC_SCORES, PATCH_INPUTS, PATCH_PX, THUMBNAIL_INPUTS
from her2batch.training import bag_data, folds, image_data
from her2batch.training.fit_loop import random_stream
from her2batch.training.methods import PATCH_TASK, UnitPlan
from her2batch.vision.patches import apply_clahe, label_patches, usable_patches
from her2batch.vision.tile_grid import MAX_UPSAMPLING, TileGrid
from her2batch.vision.tile_grid import plan_tiles as plan_grid

Rows = Mapping[str, Mapping[str, Any]]


def check_libraries(job: TrainingJob, work: UnitPlan) -> None:
    """Refuse to start where image networks are still to be trained and can't be. Raises WeightsError, once."""
    if any(not job.run.is_done(unit) for unit in work.of("patch", "image")):
        check_torchvision()


def prepare_run(
    job: TrainingJob, work: UnitPlan, labels: Path | None, annotations: Path | None, session: RaySession | None
) -> None:
    """Write labels, excluded slides and folds to the run, and its caches.

    labels: a CSV or TCGA table; None: those given to the ingest.  Raises InputError for anything that can't be used,
    and when a run that is taken up again meets other labels than it began with.
    """
    rows = job.cohort.rows()
    table, verdicts = load_labels(job, labels)
    labelled, excluded, split = assign_folds(job, work, table, rows)
    for name, now in (("folds", split), ("labels", labelled)):
        if job.run.table(name).is_file() and not job.run.read(name).equals(now):
            raise InputError(f"its {name} have changed since it began", job.run.root, "train into another --out")
    job.run.write("excluded", excluded)
    if job.training.reviews:
        job.run.write("reviews", verdicts)
    job.run.write("folds", split)
    job.run.write("labels", labelled)
    _fill_caches(job, work, labelled, annotations, rows, session)


def load_labels(job: TrainingJob, path: Path | None) -> tuple[pa.Table, pa.Table]:
    """The labels that were given, now or to the ingest, checked against the cohort; with `reviews`, verdicts over them.

    Returns the labels, and what became of each verdict (REVIEWED).  Raises InputError.
    """
    rows = job.cohort.rows()
    entries = reviews.read_reviews(job.cohort) if job.training.reviews else []
    if path is not None:
        table = read_labels(path, rows)
    elif job.cohort.labels.is_file():
        table = read_parquet(job.cohort.labels)
    elif entries:
        table = LABELS_SCHEMA.empty_table()
    else:
        raise InputError("has no labels", job.cohort.root, "give --labels CSV")
    check_labels(table, rows, path or job.cohort.labels)
    return apply_reviews(table, entries, rows)


def assign_folds(job: TrainingJob, work: UnitPlan, table: pa.Table, rows: Rows) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Labels, excluded slides and folds of all tasks. The HER2 tasks share one assignment, made on the finest label.

    So nothing leaks from patch training, which is done once for all three, into any slide's evaluation.
    """
    tasks = sorted({unit.task for unit in work.units})
    settings = job.training
    labelled, excluded, split = [], [], []
    her2: dict[str, int] | None = None
    for task in tasks:
        good, bad = label_task_slides(job, task, table, rows)
        if task in HER2_TASKS:
            her2 = her2 or _assign_her2_folds(job, table, rows)
            of = np.array([her2[one] for one in good["slide_id"].to_pylist()], np.int32)
        else:
            of = folds.assign_patients(
                good["stratum"].to_pylist(), good["patient_id"].to_pylist(), settings.folds, settings.seed
            )
        labelled.append(good.append_column("task", pa.array([task] * len(good))))
        excluded.append(bad)
        split += [folds.cross_validation_splits(task, good, of, settings.folds), folds.final_split(task, good, of)]
    names = run_schema("labels").names
    return (
        pa.concat_tables([one.select(names) for one in labelled]).cast(run_schema("labels")),
        pa.concat_tables(excluded),
        pa.concat_tables(split),
    )


def label_task_slides(job: TrainingJob, task: str, table: pa.Table, rows: Rows) -> tuple[pa.Table, pa.Table]:
    """Labelled and excluded slides of a task. Raises InputError when the folds can't be made of them."""
    good, bad = label_slides(table, task, rows, job.training.keep_contradictions)
    if job.training.shuffle_labels:
        good = folds.shuffle_labels(good, job.training.seed)
    folds.check_labelled(task, good, job.training.folds)
    return good, bad


def _assign_her2_folds(job: TrainingJob, table: pa.Table, rows: Rows) -> dict[str, int]:
    """Slide → fold, for all HER2 tasks: even in the finest label and in each task's classes."""
    every = label_slides(table, PATCH_TASK, rows, job.training.keep_contradictions)[0]
    ids = every["slide_id"].to_pylist()
    also = []
    for task in HER2_TASKS:
        good = label_slides(table, task, rows, job.training.keep_contradictions)[0]
        truth = dict(zip(good["slide_id"].to_pylist(), good["truth"].to_pylist(), strict=True))
        also.append([truth.get(one, "") for one in ids])
    strata, patients = every["stratum"].to_pylist(), every["patient_id"].to_pylist()
    of = folds.assign_patients(strata, patients, job.training.folds, job.training.seed, also)
    return dict(zip(ids, of.tolist(), strict=True))


# -- caches ----------------------------------------------------------------------------------------------------


def _fill_caches(
    job: TrainingJob,
    work: UnitPlan,
    labelled: pa.Table,
    annotations: Path | None,
    rows: Rows,
    session: RaySession | None,
) -> None:
    """Bags, thumbnails and patches that the units read; what is there already stays."""
    by_task: dict[str, list[str]] = {}
    for one in labelled.to_pylist():
        by_task.setdefault(one["task"], []).append(one["slide_id"])

    def slides(given: str) -> list[str]:
        return sorted({one for unit in work.units if unit.input == given for one in by_task[unit.task]})

    for encoder in work.inputs("mil"):
        name = encoder_folder(encoder)
        bag_data.gather_bags(job.cohort, encoder, name, slides(encoder), job.run.cache(f"{name}.arrow"))
    for given in work.inputs("image"):
        edge = THUMBNAIL_INPUTS[given]
        image_data.gather_thumbnails(job.cohort, rows, slides(given), edge, job.run.cache(f"{given}.npy"))
    if inputs := work.inputs("patch"):
        _cache_patches(job, by_task[PATCH_TASK], inputs, annotations, session)


def _cache_patches(
    job: TrainingJob,
    slide_ids: Sequence[str],
    inputs: Sequence[str],
    annotations: Path | None,
    session: RaySession | None,
) -> None:
    """Annotated patches of every annotated slide; with a limit on patches, tissue patches of every slide too."""
    if annotations is None:
        what = "patch methods need annotated regions"
        raise InputError(what, None, "give --annotations FOLDER with SLIDE.geojson files, as QuPath exports them")
    files = find_annotations(annotations.absolute(), slide_ids)
    items = [(one, files.get(one), given) for given in inputs for one in slide_ids]
    for item, result in map_unordered(session, partial(_cache_slide_patches, job), items):
        if isinstance(result, SlideError):
            raise InputError(f"slide {item[0]}: {result.what}", result.path, result.remedy) from result
        if isinstance(result, Exception):
            raise result
    none = run_schema("patches").empty_table()
    tables = {
        given: pa.concat_tables([none, *annotated_patch_tables(job, given, slide_ids).values()]) for given in inputs
    }
    job.run.write("patches", pa.concat_tables(list(tables.values())))
    for given, table in tables.items():
        if missing := [one for one in IHC_SCORES if one not in table["truth"].to_pylist()]:
            what = f"no patch of class {', '.join(missing)} at {given.removeprefix('patches-')} resolution"
            remedy = "annotate regions of every class, named 0, 1+, 2+, 3+, wider than a patch; or try another --input"
            raise InputError(what, annotations, remedy)


def _cache_slide_patches(job: TrainingJob, item: tuple[str, Path | None, str], _: str) -> None:
    """One slide's patches at one resolution, into the cache."""
    slide_id, path, given = item
    folder = job.run.cache(given)
    if path is not None and not (folder / f"{slide_id}.parquet").is_file():
        pixels, table = cut_annotated_patches(job, slide_id, path, given)
        if len(table):
            image_data.save_images(pixels, folder / f"{slide_id}.npy")
            with atomic_write(folder / f"{slide_id}.parquet") as part:
                write_parquet(table, part)
    limit = job.training.patches_per_slide
    if limit is not None and not (folder / f"{slide_id}.tissue.npy").is_file():
        every = [np.asarray(one) for one in tissue_patches(job, given, slide_id)]
        found = np.concatenate([np.empty((0, PATCH_PX, PATCH_PX, 3), np.uint8), *every])
        image_data.save_images(found[_sample_patches(len(found), job, slide_id)], folder / f"{slide_id}.tissue.npy")


def cut_annotated_patches(
    job: TrainingJob, slide_id: str, path: Path, given: str
) -> tuple[NDArray[np.uint8], pa.Table]:
    """Annotated patches of a slide, equalised, (n, 224, 224, 3) uint8; and their rows of the run's table `patches`.

    As the paper has it (2.3): at least 5 % of a patch inside the annotation, at most 70 % white and 20 % black.
    """
    regions, _ = read_annotations(path)
    mpp = PATCH_INPUTS[given]
    pixels, tiles = np.empty((0, PATCH_PX, PATCH_PX, 3), np.uint8), np.empty((0, 3), np.int32)
    labels, shares = np.empty(0, np.int8), np.empty(0, np.float32)
    with Pyramid(job.cohort.pyramid(slide_id)) as slide:
        info = slide.info
        assert info.mpp is not None
        if info.mpp <= MAX_UPSAMPLING * mpp:
            every = plan_grid(info.width, info.height, info.mpp, mpp, PATCH_PX)
            labels, shares = label_patches([(IHC_SCORES.index(one.score), one.shape) for one in regions], every)
            chosen = np.flatnonzero(labels >= 0)
            chosen = chosen[_sample_patches(len(chosen), job, slide_id)]
            tiles, labels, shares = every[chosen], labels[chosen], shares[chosen]
            pixels = np.empty((len(tiles), PATCH_PX, PATCH_PX, 3), np.uint8)
            for batch in pixels_of(slide, TileGrid(mpp, PATCH_PX, tiles)):
                pixels[batch.rows] = batch.pixels
    good = usable_patches(pixels) if len(pixels) else np.empty(0, bool)
    n = int(good.sum())
    columns = {
        "slide_id": [slide_id] * n, "resolution": [given.removeprefix("patches-")] * n,
        **{name: tiles[good, k] for k, name in enumerate(("x", "y", "size"))},
        "truth": [IHC_SCORES[k] for k in labels[good]], "share": shares[good],
    }  # fmt: skip
    return apply_clahe(pixels[good]), pa.table(columns, run_schema("patches"))


def _sample_patches(n: int, job: TrainingJob, slide_id: str) -> NDArray[np.int64]:
    """Positions of the patches that are used: all, or as many as the limit allows, drawn at random."""
    limit = job.training.patches_per_slide
    if limit is None or n <= limit:
        return np.arange(n)
    draw = random_stream(job.training.seed, *slide_id.encode())
    return np.sort(draw.choice(n, limit, replace=False))
