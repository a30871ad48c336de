"""A bundle over a cohort that is ingested: predictions from the tables, without touching the slides again.

What a bundle's networks need and the tables lack (classes of patches and thumbnails) is computed from the store's own
pyramids and pictures, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from her2batch.errors import STOPPED, Her2BatchError, InputError
from her2batch.files.locations import to_location
from her2batch.models.bundle import Bundle, ModelEntry, check_fits, load, read_bundle
from her2batch.models.nets import Classifier
from her2batch.models.predictor import BundlePredictor, SlideFeatures
from her2batch.pipeline.patch_grid import patch_grid, pixels_of
from her2batch.pipeline.results import encoder_folder, patch_probabilities, patch_rows, prediction_tables
from her2batch.runtime.parallel import map_unordered
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Plan, Resources
from her2batch.slides.pyramid import Pyramid
from her2batch.store import schemas
from her2batch.store.cohort import RETIRED, Cohort, Row
from her2batch.tasks import PATCH_INPUTS, THUMBNAIL_INPUTS
from her2batch.vision.patches import clahe, usable_patches
from her2batch.vision.thumbnail import crop_to_tissue, decode_jpeg

SHARE = 16
"""Slides of one call: a head takes milliseconds a slide, a call to Ray as long."""

ProgressCallback = Callable[[int, int], None]


@dataclass
class ScoreSummary:
    """What became of the cohort's slides."""

    bundle: Bundle
    already: int = 0
    scored: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """0 all done · 3 some failed · 130 stopped."""
        return STOPPED if self.stopped else 3 if self.failures else 0


def score(
    root: Path,
    folder: Path,
    resources: Resources,
    report: ProgressCallback = lambda *_: None,
    session: RaySession | None = None,
) -> ScoreSummary:
    """Score every slide of a cohort that this bundle has not scored yet.

    session: one that is open already; None: its own.  Raises InputError, StoreError.
    """
    cohort, bundle = Cohort(to_location(root)), read_bundle(folder.absolute())
    plan = cohort.plan()
    check_fits(bundle, plan, {name.split("/", 1)[1] for name in cohort.names() if name.startswith("embeddings/")})
    BundlePredictor(bundle)  # a head that can't be loaded is said now, not a thousand times
    found = ScoreSummary(bundle)
    with cohort.lock():
        cohort.remember()
        rows = [row for row in cohort.rows().values() if row["status"] == "done"]
        if not rows:
            raise InputError("holds no slide that is done", cohort.root, "ingest slides first")
        todo = [row for row in rows if not _scored(cohort, row, bundle)]
        found.already = len(rows) - len(todo)
        shares = [tuple(todo[k : k + SHARE]) for k in range(0, len(todo), SHARE)]
        with _session(resources, shares, session) as here:
            for share, result in map_unordered(here, partial(_score, cohort, bundle, plan), shares, gpus=1.0):
                found.failures |= {row["slide_id"]: str(result) for row in share} if _bad(result) else result
                report(found.already + _ended(share, found), len(rows))
            found.stopped = here is not None and here.stopped.is_set()
        cohort.remember()
    return found


def _ended(share: tuple[Row, ...], found: ScoreSummary) -> int:
    found.scored += sum(row["slide_id"] not in found.failures for row in share)
    return found.scored + len(found.failures)


def _bad(result: Any) -> bool:
    return isinstance(result, Exception)


@contextmanager
def _session(
    resources: Resources, shares: list[tuple[Row, ...]], given: RaySession | None
) -> Iterator[RaySession | None]:
    if resources.workers == 0 or not shares or given is not None:
        yield given if resources.workers != 0 else None
        return
    with connect(resources) as session:
        yield session


def _scored(cohort: Cohort, row: Row, bundle: Bundle) -> bool:
    place = cohort.table(f"predictions/{bundle.id}", row["slide_id"]).relative_to(cohort.root).as_posix()
    return any(file["path"] == place for file in row["files"])


def _score(cohort: Cohort, bundle: Bundle, plan: Plan, rows: tuple[Row, ...], device: str) -> dict[str, str]:
    """Some slides, in a worker; slide → why it could not be scored."""
    judge, nets = _loaded(bundle, device)
    failures = {}
    reads_patches = any(one.kind == "patch" for one in bundle.info.models)
    for row in rows:
        if reads_patches and RETIRED in row["flags"]:
            what = "its pyramid was let go, and this bundle reads patches"
            failures[row["slide_id"]] = (
                f"{row['slide_id']}: {what}; remove its row in tables/slides and ingest it again"
            )
            continue
        try:
            cohort.add(row, score_slide(cohort, plan, judge, nets, row))
        except (Her2BatchError, pa.ArrowInvalid, OSError, KeyError) as error:
            failures[row["slide_id"]] = f"{row['slide_id']}: {error}; run her2batch verify, then ingest again"
    return failures


Nets = dict[tuple[str, str, str, str], Classifier]


@lru_cache(maxsize=1)
def _kept(path: str, device: str) -> tuple[BundlePredictor, Nets]:
    bundle = read_bundle(Path(path))
    wanted = [one for one in bundle.info.models if one.kind in ("patch", "thumbnail")]
    return BundlePredictor(bundle), {_key(one): load(bundle, one, device) for one in wanted}


def _loaded(bundle: Bundle, device: str) -> tuple[BundlePredictor, Nets]:
    """The bundle's models, loaded once a worker."""
    return _kept(str(bundle.path), device)


def _key(entry: ModelEntry) -> tuple[str, str, str, str]:
    return entry.kind, entry.task, entry.method, entry.input


def score_slide(cohort: Cohort, plan: Plan, judge: BundlePredictor, nets: Nets, row: Row) -> dict[str, pa.Table]:
    """The tables that a bundle adds to one committed slide."""
    slide_id, bundle = row["slide_id"], judge.bundle
    added: dict[str, pa.Table] = {}
    wanted = {one.input for one in bundle.info.models if one.kind == "mil"}
    embeddings = {name: _vectors(cohort, name, slide_id) for name in sorted(wanted)}
    tiles = cohort.read("tiles", slide_id)
    thumbnails = _thumbnails(cohort, row, tiles, nets)
    if thumbnails:
        names = ("task", "method", "input")
        rows = [{"slide_id": slide_id, **dict(zip(names, key, strict=True)), "p": p} for key, p in thumbnails.items()]
        added[f"thumbnails/{bundle.id}"] = pa.Table.from_pylist(rows, schemas.schema("thumbnails"))
    parts = {key[3]: _patches(cohort, plan, row, tiles, key[3], net) for key, net in nets.items() if key[0] == "patch"}
    if parts:
        added[f"patches/{bundle.id}"] = pa.concat_tables(list(parts.values()))
    patches = {name: patch_probabilities(part) for name, part in parts.items()}
    nets_say = {key: np.array(p, np.float32) for key, p in thumbnails.items()}
    evidence = SlideFeatures(row["stain"], tuple(row["flags"]), embeddings, patches, nets_say)
    return added | prediction_tables(judge, evidence, slide_id, row["patient_id"])


def _vectors(cohort: Cohort, encoder: str, slide_id: str) -> Any:
    column = cohort.read(f"embeddings/{encoder_folder(encoder)}", slide_id).column("embedding").combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def _corners(tiles: pa.Table) -> Any:
    return np.stack([tiles.column(name).to_numpy() for name in ("x", "y", "size")], axis=1).astype(np.int32)


def _thumbnails(cohort: Cohort, row: Row, tiles: pa.Table, nets: Nets) -> dict[tuple[str, str, str], list[float]]:
    found = {}
    for (kind, task, method, given), net in nets.items():
        if kind != "thumbnail":
            continue
        picture = decode_jpeg(cohort.thumbnail(row["slide_id"]).read_bytes())
        edge = THUMBNAIL_INPUTS[given]
        pixels, _ = crop_to_tissue(picture, _corners(tiles), row["width"], row["height"], edge)
        found[task, method, given] = net(pixels[None])[0].tolist()
    return found


def _patches(cohort: Cohort, plan: Plan, row: Row, tiles: pa.Table, given: str, net: Classifier) -> pa.Table:
    """Classes of a slide's tissue patches at one resolution, read from its pyramid."""
    with Pyramid(cohort.pyramid(row["slide_id"])) as slide:
        one = patch_grid(slide.info, plan, _corners(tiles), tiles.column("tissue").to_numpy(), PATCH_INPUTS[given])
        rows, found = [np.empty(0, np.int64)], [np.empty((0, 4), np.float32)]
        for batch in pixels_of(slide, one):
            good = usable_patches(batch.pixels)
            rows.append(batch.rows[good])
            found.append(net(clahe(batch.pixels[good])))
    at, p = np.concatenate(rows), np.concatenate(found)
    order = np.argsort(at, kind="stable")
    return patch_rows(row["slide_id"], given, one.tiles[at[order]], p[order])
