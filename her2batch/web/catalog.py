"""The cohort as the web server reads it: rows and predictions cached in memory, and open pyramids.

The data of a slide is cached under the hashes of its files in its row: a slide that was processed again is read again,
and a table that no row names is ignored.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.assessment import Assessment, assess_slide
from her2batch.errors import InputError, StoreError
from her2batch.models.membrane_rule import slide_shares
from her2batch.slides.codecs import encode_jpeg
from her2batch.slides.pyramid import Pyramid
from her2batch.slides.slide import Box
from her2batch.store import reviews
from her2batch.store.cohort import RETIRED, Cohort, Row, tables_of
from her2batch.store.labels import stored_labels
from her2batch.store.pieces.control_runs import flag_failed_runs
from her2batch.store.pieces.patient_tiles import patient_tiles_of
from her2batch.store.row_cache import SETTLED_NS
from her2batch.store.run_log import finished_times
from her2batch.tasks import GUIDELINE_RULES
from her2batch.vision.membrane import MEMBRANE_COLUMNS
from her2batch.web.cell_overlay import outlines_in_view
from her2batch.web.deepzoom import DeepZoom, deep_zoom_of, deep_zoom_tile
from her2batch.web.listing import summarize_slide

MAX_AGE_S = 2.0
"""Largest age of the cached rows, s."""

MAX_OPEN_PYRAMIDS = 12
"""Pyramids that stay open, with their thumbnails: 3 MB each."""

SMALL_THUMBNAIL_PX = 160
"""Long edge of the thumbnails in the list, px."""

MAX_SMALL_THUMBNAILS = 5000
"""Small thumbnails that are kept in memory, about 4 kB each."""

READ_THREADS = 8


@dataclass
class _OpenPyramid:
    """An open pyramid. Its read buffer is used by one thread at a time."""

    slide: Pyramid
    deep_zoom: DeepZoom
    thumbnail: NDArray[np.uint8] | None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Catalog:
    """Thread-safe, cached read access to one cohort."""

    def __init__(self, cohort: Cohort) -> None:
        """Raises StoreError when there is no cohort."""
        cohort.check()
        self.cohort = cohort
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._rows: dict[str, Row] = {}
        self._predictions: dict[str, tuple[tuple[str, ...], list[Row]]] = {}
        self._reviews: tuple[Any, list[Row]] = (None, [])
        self._labels: tuple[Any, dict[str, Row]] = ("not read yet", {})
        self._checked_at = -MAX_AGE_S
        self._changed_at: int | None = None  # mtime of the folder of rows, ns
        self._summaries: tuple[Any, list[Row]] = (None, [])
        self._summarized: dict[str, tuple[tuple[Any, ...], Row]] = {}
        self._finished: tuple[Any, dict[str, datetime]] = (None, {})
        self._small: dict[tuple[str, str], bytes] = {}
        self._open: OrderedDict[tuple[str, str], _OpenPyramid] = OrderedDict()

    # -- rows and tables -------------------------------------------------------------------------------------------

    def rows(self) -> dict[str, Row]:
        """Return the row of every slide: slide_id → row."""
        with self._lock:
            if time.monotonic() - self._checked_at > MAX_AGE_S:
                changed_at = self._stable_mtime()
                if changed_at is None or changed_at != self._changed_at:
                    self._rows = flag_failed_runs(self.cohort, self.cohort.rows())
                    self._read_predictions()
                self._checked_at, self._changed_at = time.monotonic(), changed_at
            return self._rows

    def _stable_mtime(self) -> int | None:
        """Return when a row was last written to the folder of rows, ns.

        None if that is unknown, or so recent that another write could have the same time stamp.
        """
        if self.cohort.remote or not self.cohort.slides.is_dir():
            return None
        mtime_ns = self.cohort.slides.stat().st_mtime_ns
        return mtime_ns if time.time_ns() - mtime_ns > SETTLED_NS else None

    def invalidate(self) -> None:
        """Read the rows again on the next access."""
        with self._lock:
            self._checked_at, self._changed_at = -MAX_AGE_S, None

    def row(self, slide_id: str) -> Row:
        """Return the row of a slide. Raises InputError for an id that is not in the cohort."""
        row = self.rows().get(slide_id)
        if row is None:
            raise InputError("there is no such slide in the cohort")
        return row

    def predictions(self, slide_id: str) -> list[Row]:
        """Return all predictions for a slide, each with its bundle; those of the membrane rule first."""
        self.rows()
        return self._predictions.get(slide_id, ((), []))[1]

    def reviews(self) -> list[Row]:
        """Return all reviews that were not erased, in order."""
        with self._lock:
            stamp = reviews.reviews_stamp(self.cohort)
            if stamp != self._reviews[0] or self.cohort.remote:
                self._reviews = (stamp, reviews.unerased_reviews(reviews.read_reviews(self.cohort)))
            return self._reviews[1]

    def labels(self) -> dict[str, Row]:
        """Return the labels that the cohort was given last: slide_id → row. Empty without, or when they are damaged."""
        location = self.cohort.labels
        if self.cohort.remote:
            stamp: Any = time.monotonic() // MAX_AGE_S
        else:
            stamp = location.stat().st_mtime_ns if location.exists() else None
        with self._lock:
            if stamp != self._labels[0]:
                with suppress(StoreError):
                    self._labels = (stamp, stored_labels(self.cohort))
            return self._labels[1]

    def assessment(self, slide_id: str) -> Assessment:
        """Return the assessment of a slide. Raises InputError for an id that is not in the cohort."""
        entries = [review for review in self.reviews() if review["slide_id"] == slide_id]
        return assess_slide(self.row(slide_id), self.predictions(slide_id), self.labels().get(slide_id), entries)

    def slide_summaries(self) -> list[Row]:
        """Return every slide as the list shows it. Computed again when a row, a label or a review changes."""
        rows, entries, labels = self.rows(), self.reviews(), self.labels()
        source = self._summaries[0]
        if source is None or any(a is not b for a, b in zip(source, (rows, entries, labels), strict=True)):
            self._summaries = ((rows, entries, labels), self._summarize_slides(rows, entries, labels))
        return self._summaries[1]

    def _summarize_slides(self, rows: dict[str, Row], entries: list[Row], labels: dict[str, Row]) -> list[Row]:
        """Return the summary of every slide.

        Summaries of slides whose row, predictions, label and reviews are the same are kept: a verdict changes one
        slide, and the others of a large cohort are not assessed again.
        """
        of_slide = reviews.reviews_by_slide(entries)
        if self._finished[0] is not rows:
            self._finished = (rows, finished_times(self.cohort))
        summarized: dict[str, tuple[tuple[Any, ...], Row]] = {}
        for slide_id, row in rows.items():
            predictions, label = self._predictions.get(slide_id, ((), []))[1], labels.get(slide_id)
            reviews_of_slide = of_slide.get(slide_id, [])
            source = (row, predictions, label, len(reviews_of_slide))
            known = self._summarized.get(slide_id)
            if known is None or any(a is not b for a, b in zip(known[0], source, strict=True)):
                found = assess_slide(row, predictions, label, reviews_of_slide)
                known = (source, summarize_slide(row, predictions, found, self._finished[1].get(slide_id)))
            summarized[slide_id] = known
        self._summarized = summarized
        return [summary for _, summary in summarized.values()]

    def case_slides(self, slide_id: str) -> list[Row]:
        """Return the summaries of the other slides of the same patient."""
        patient = self.row(slide_id)["patient_id"]
        own = (slide for slide in self.slide_summaries() if patient is not None and slide["patient_id"] == patient)
        return [slide for slide in own if slide["slide_id"] != slide_id]

    def shares(self, slide_id: str) -> dict[str, float] | None:
        """Return the membrane shares that the membrane rule uses; None without tiles."""
        table = self.table("membrane", slide_id)
        own = patient_tiles_of(self.cohort, slide_id) if self.row(slide_id)["control_mm2"] else None
        table = table if own is None or table is None else table.filter(pa.array(own))
        if table is None or not len(table):
            return None
        return slide_shares({name: table[name].to_numpy() for name in MEMBRANE_COLUMNS})

    def table(self, name: str, slide_id: str) -> pa.Table | None:
        """Return a table of a slide, or None if its row does not name it."""
        return self.cohort.read(name, slide_id) if self.table_file(name, slide_id) is not None else None

    def table_file(self, name: str, slide_id: str) -> Path | None:
        """Return the file of a table of a slide, or None if its row does not name it."""
        location = self.cohort.table(name, slide_id)
        named = {file["path"] for file in self.row(slide_id)["files"]}
        return location if self._relative(location) in named else None

    def table_names(self, slide_id: str, kind: str) -> list[str]:
        """Return the names of a slide's tables of one kind, without the kind: BUNDLE for 'attention/BUNDLE'."""
        return [name.partition("/")[2] for name in tables_of(self.row(slide_id), kind)]

    def _read_predictions(self) -> None:
        """Read the predictions of new and changed slides. The caller holds the lock."""
        start = self.cohort.table("predictions", "x").relative_to(self.cohort.root).as_posix().rpartition("/")[0] + "/"
        changed = {}
        for slide_id, row in self._rows.items():
            files = sorted((file["path"], file["sha256"]) for file in row["files"] if file["path"].startswith(start))
            key = tuple(sha for _, sha in files)
            if self._predictions.get(slide_id, (None,))[0] != key:
                changed[slide_id] = (key, [path.removeprefix(start).rpartition("/")[0] for path, _ in files])
        with ThreadPoolExecutor(READ_THREADS) as pool:
            rows = pool.map(lambda item: self._read_bundles(item[0], item[1][1]), changed.items())
            self._predictions |= {
                slide_id: (key, own) for (slide_id, (key, _)), own in zip(changed.items(), rows, strict=True)
            }
        for gone in self._predictions.keys() - self._rows.keys():
            del self._predictions[gone]

    def _read_bundles(self, slide_id: str, bundles: list[str]) -> list[Row]:
        """Return the predictions of these bundles for a slide, those of the membrane rule first."""
        tables = ((bundle, self.cohort.read(f"predictions/{bundle}", slide_id)) for bundle in bundles)
        predictions = [{"bundle": bundle, **row} for bundle, table in tables for row in table.to_pylist()]
        rules = list(GUIDELINE_RULES)

        def place(row: Row) -> tuple[int, bool]:
            bundle = row["bundle"]
            return rules.index(bundle) if bundle in rules else len(rules), row["task"] != "her2-4way"

        return sorted(predictions, key=place)

    # -- images ----------------------------------------------------------------------------------------------------

    def has_pyramid(self, row: Row) -> bool:
        """Return whether a slide has a pyramid. It has none if it failed or if retention deleted the pyramid."""
        return row["status"] == "done" and RETIRED not in (row["flags"] or ())

    def has_controls(self, row: Row) -> bool:
        """Return whether a slide has a piece that does not count, or that may be a control."""
        return row["control_mm2"] is not None or "control-suspected" in (row["flags"] or ())

    def deep_zoom(self, slide_id: str) -> DeepZoom:
        """Return the Deep Zoom geometry of a slide. Raises InputError without a pyramid, SlideError if damaged."""
        return self._open_pyramid(slide_id).deep_zoom

    def tile(self, slide_id: str, level: int, column: int, row: int) -> bytes:
        """Return a Deep Zoom tile as JPEG. Raises InputError, SlideError; ValueError if there is no such tile."""
        pyramid = self._open_pyramid(slide_id)
        with pyramid.lock:
            return deep_zoom_tile(pyramid.slide, pyramid.thumbnail, pyramid.deep_zoom, level, column, row)

    def cell_outlines(self, slide_id: str, box: Box) -> dict[str, list[Any]]:
        """Return the outlines of the cells in a box: cell, and outline, a flat list of x, y, … (level-0 px).

        Raises InputError without a pyramid, SlideError if it is damaged, ValueError for a box that is too large.
        """
        pyramid, plan = self._open_pyramid(slide_id), self.cohort.plan()
        with pyramid.lock:
            return outlines_in_view(self.cohort.table("cells", slide_id), pyramid.slide, box, plan.mpp)

    def thumbnail(self, slide_id: str) -> bytes:
        """Return the thumbnail of a slide as JPEG. Raises InputError if there is none."""
        location = self.cohort.thumbnail(slide_id)
        if self._relative(location) not in {file["path"] for file in self.row(slide_id)["files"]}:
            raise InputError("this slide has no thumbnail")
        return location.read_bytes()

    def small_thumbnail(self, slide_id: str) -> bytes:
        """Return the thumbnail with a long edge of at most SMALL_THUMBNAIL_PX as JPEG. Raises InputError."""
        key = (slide_id, str(self.row(slide_id)["sha256"]))
        with self._lock:
            if key in self._small:
                return self._small[key]
        image = self._decode_thumbnail(slide_id)
        if image is None:
            raise InputError("this slide has no thumbnail")
        scale = min(1.0, SMALL_THUMBNAIL_PX / max(image.shape[:2]))
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        jpeg = encode_jpeg(np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), 80)
        with self._lock:
            self._small[key] = jpeg
            while len(self._small) > MAX_SMALL_THUMBNAILS:
                self._small.pop(next(iter(self._small)))
        return jpeg

    def _open_pyramid(self, slide_id: str) -> _OpenPyramid:
        row = self.row(slide_id)
        if not self.has_pyramid(row):
            raise InputError("this slide has no pyramid")
        key = (slide_id, row["sha256"] + row["plan_id"])
        with self._opening:
            if key not in self._open:
                slide = Pyramid(self.cohort.pyramid(slide_id))
                self._open[key] = _OpenPyramid(slide, deep_zoom_of(slide.info), self._decode_thumbnail(slide_id))
                while len(self._open) > MAX_OPEN_PYRAMIDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]

    def _decode_thumbnail(self, slide_id: str) -> NDArray[np.uint8] | None:
        try:
            jpeg = np.frombuffer(self.thumbnail(slide_id), np.uint8)
        except InputError:
            return None
        return np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB), np.uint8)

    def _relative(self, location: Any) -> str:
        """Return a location relative to the cohort's folder, as rows name files."""
        return str(location.relative_to(self.cohort.root).as_posix())
