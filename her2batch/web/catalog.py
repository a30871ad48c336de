"""A cohort as the web page reads it: rows and predictions kept in memory, open pyramids, all as new as the store is.

What is kept of a slide is kept under the hashes that its row gives its files: a slide that was done again is read
again, and a table that no row names is not seen.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.models.membrane_rule import slide_shares
from her2batch.slides.pyramid import Pyramid
from her2batch.store import reviews
from her2batch.store.cohort import RETIRED, Cohort, Row
from her2batch.store.row_cache import SETTLED_NS
from her2batch.vision.membrane import MEMBRANE_COLUMNS
from her2batch.web.deepzoom import DeepZoom, deep_zoom_of, deep_zoom_tile
from her2batch.web.listing import summarize_slide

MAX_AGE_S = 2.0
"""How old what is shown may be."""

MAX_OPEN_PYRAMIDS = 12
"""Pyramids that stay open, with their pictures: 3 MB each."""

READ_THREADS = 8


@dataclass
class _OpenPyramid:
    """A pyramid that is looked at. Its buffer is one thread's at a time."""

    slide: Pyramid
    zoom: DeepZoom
    picture: NDArray[np.uint8] | None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Catalog:
    """One cohort, for any number of threads."""

    def __init__(self, cohort: Cohort) -> None:
        """Raises StoreError when there is no cohort."""
        cohort.check()
        self.cohort = cohort
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._rows: dict[str, Row] = {}
        self._predictions: dict[str, tuple[tuple[str, ...], list[Row]]] = {}
        self._reviews: tuple[Any, list[Row]] = (None, [])
        self._looked = -MAX_AGE_S
        self._changed: int | None = None  # when a row was last put into the folder, by its file system's clock
        self._lines: tuple[Any, list[Row]] = (None, [])
        self._open: OrderedDict[tuple[str, str], _OpenPyramid] = OrderedDict()

    # -- what is known ---------------------------------------------------------------------------------------------

    def rows(self) -> dict[str, Row]:
        """Every slide: id → its row."""
        with self._lock:
            if time.monotonic() - self._looked > MAX_AGE_S:
                changed = self._settled()
                if changed is None or changed != self._changed:
                    self._rows = self.cohort.rows()
                    self._read_predictions()
                self._looked, self._changed = time.monotonic(), changed
            return self._rows

    def _settled(self) -> int | None:
        """When a row was last put into its folder; None where that can't be told, or is so near that more may follow
        within one tick of the file system's clock.
        """  # fmt: skip
        if self.cohort.remote or not self.cohort.slides.is_dir():
            return None
        changed = self.cohort.slides.stat().st_mtime_ns
        return changed if time.time_ns() - changed > SETTLED_NS else None

    def stale(self) -> None:
        """Something was written: look again at once."""
        with self._lock:
            self._looked, self._changed = -MAX_AGE_S, None

    def row(self, slide_id: str) -> Row:
        """One slide's row. Raises InputError for an id that the store does not know, whatever it is."""
        row = self.rows().get(slide_id)
        if row is None:
            raise InputError("there is no such slide in the cohort")
        return row

    def predictions(self, slide_id: str) -> list[Row]:
        """All that is predicted of a slide, each with its bundle; the membrane rule's first."""
        self.rows()
        return self._predictions.get(slide_id, ((), []))[1]

    def reviews(self) -> list[Row]:
        """Every entry that still says something, in order."""
        with self._lock:
            stamp = reviews.reviews_stamp(self.cohort)
            if stamp != self._reviews[0] or self.cohort.remote:
                self._reviews = (stamp, reviews.unerased_reviews(reviews.read_reviews(self.cohort)))
            return self._reviews[1]

    def lines(self) -> list[Row]:
        """Every slide as the list shows it. Made anew when a row or a review is."""
        rows, entries = self.rows(), self.reviews()
        if self._lines[0] is None or self._lines[0][0] is not rows or self._lines[0][1] is not entries:
            verdicts = {one["slide_id"]: one for one in entries}
            lines = [summarize_slide(row, self.predictions(one), verdicts.get(one)) for one, row in rows.items()]
            self._lines = ((rows, entries), lines)
        return self._lines[1]

    def shares(self, slide_id: str) -> dict[str, float] | None:
        """The membrane figures that the rule judged; None without tiles."""
        table = self.table("membrane", slide_id)
        if table is None or not len(table):
            return None
        return slide_shares({name: table[name].to_numpy() for name in MEMBRANE_COLUMNS})

    def table(self, name: str, slide_id: str) -> pa.Table | None:
        """A slide's table, if its row names it."""
        place = self.cohort.table(name, slide_id)
        named = {file["path"] for file in self.row(slide_id)["files"]}
        return self.cohort.read(name, slide_id) if self._inside(place) in named else None

    def named(self, slide_id: str, kind: str) -> list[str]:
        """Names of a slide's tables of a kind, without the kind: of 'attention/BUNDLE' the bundle."""
        start = self.cohort.table(kind, slide_id).relative_to(self.cohort.root).as_posix().rpartition("/")[0] + "/"
        files = (file["path"] for file in self.row(slide_id)["files"])
        return sorted(path.removeprefix(start).rpartition("/")[0] for path in files if path.startswith(start))

    def _read_predictions(self) -> None:
        """Read those that are new. Under the lock."""
        start = self.cohort.table("predictions", "x").relative_to(self.cohort.root).as_posix().rpartition("/")[0] + "/"
        todo = {}
        for slide_id, row in self._rows.items():
            files = sorted((one["path"], one["sha256"]) for one in row["files"] if one["path"].startswith(start))
            key = tuple(sha for _, sha in files)
            if self._predictions.get(slide_id, (None,))[0] != key:
                todo[slide_id] = (key, [path.removeprefix(start).rpartition("/")[0] for path, _ in files])
        with ThreadPoolExecutor(READ_THREADS) as pool:
            found = pool.map(lambda one: (one[0], one[1][0], self._said(one[0], one[1][1])), todo.items())
            self._predictions |= {slide_id: (key, rows) for slide_id, key, rows in found}
        for gone in self._predictions.keys() - self._rows.keys():
            del self._predictions[gone]

    def _said(self, slide_id: str, bundles: list[str]) -> list[Row]:
        tables = ((bundle, self.cohort.read(f"predictions/{bundle}", slide_id)) for bundle in bundles)
        found = [{"bundle": bundle, **row} for bundle, table in tables for row in table.to_pylist()]
        return sorted(found, key=lambda one: (one["bundle"] != "membrane", one["task"] != "her2-4way"))

    # -- pictures --------------------------------------------------------------------------------------------------

    def has_pyramid(self, row: Row) -> bool:
        """Whether there is a pyramid to look at: not of a failed slide, nor where it was let go."""
        return row["status"] == "done" and RETIRED not in (row["flags"] or ())

    def zoom(self, slide_id: str) -> DeepZoom:
        """A slide in the viewer's terms. Raises InputError without a pyramid, SlideError for a damaged one."""
        return self._opened(slide_id).zoom

    def tile(self, slide_id: str, level: int, column: int, row: int) -> bytes:
        """A tile of the viewer as JPEG. Raises InputError, SlideError; ValueError where there is no such tile."""
        found = self._opened(slide_id)
        with found.lock:
            return deep_zoom_tile(found.slide, found.picture, found.zoom, level, column, row)

    def thumbnail(self, slide_id: str) -> bytes:
        """A slide's overview picture as JPEG. Raises InputError where there is none."""
        place = self.cohort.thumbnail(slide_id)
        if self._inside(place) not in {file["path"] for file in self.row(slide_id)["files"]}:
            raise InputError("there is no picture of this slide")
        return place.read_bytes()

    def _opened(self, slide_id: str) -> _OpenPyramid:
        row = self.row(slide_id)
        if not self.has_pyramid(row):
            raise InputError("there is no pyramid of this slide")
        key = (slide_id, row["sha256"] + row["plan_id"])
        with self._opening:
            if key not in self._open:
                slide = Pyramid(self.cohort.pyramid(slide_id))
                self._open[key] = _OpenPyramid(slide, deep_zoom_of(slide.info), self._picture(slide_id))
                while len(self._open) > MAX_OPEN_PYRAMIDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]

    def _picture(self, slide_id: str) -> NDArray[np.uint8] | None:
        try:
            data = np.frombuffer(self.thumbnail(slide_id), np.uint8)
        except InputError:
            return None
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)

    def _inside(self, place: Any) -> str:
        return str(place.relative_to(self.cohort.root).as_posix())
