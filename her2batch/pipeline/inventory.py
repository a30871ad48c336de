"""Inventory of the scan folder against the cohort: which slides an ingest has to process.

Every file gets an outcome, and finished slides are skipped. A second run compares names, sizes and times of change
only. A file is opened, to find out what it is, when it is new or has changed. It is read here, to hash it, in two
cases: its size equals that of another file, so that it could be a copy, or it has changed since the last run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from her2batch.errors import StoreError, printable_path
from her2batch.exchange.regions import RegionFolder
from her2batch.pipeline.resume.plan_change import match_plan
from her2batch.pipeline.resume.seen_files import SeenFiles
from her2batch.settings import Plan
from her2batch.slides.discover import MISSING, DiscoveredSlides, FileProbe, SlideFiles, discover_slides
from her2batch.store.cohort import Cohort, Row, write_row
from her2batch.store.erase import erased_digests
from her2batch.store.label_sheets.book import LABEL_COLUMNS, LabelBook
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.row_cache import SETTLED_NS

TRANSIENT_ERRORS = frozenset({"unstable", "gone", "store-write"})
"""Error codes whose cause may be gone by the next run, which then processes the slide again without --retry-failed."""


@dataclass(frozen=True)
class SlideJob:
    """One slide to process.  sha256: None where its files have not been read.  patient_id and what follows: labels.

    regions, regions_sha256: file of the regions to which its tiles are restricted.  controls, controls_sha256: file of
    its annotated controls.
    encoders: to add to a finished slide from its pyramid, which `source` then is; empty: process the slide files.
    """

    slide_id: str
    source: SlideFiles
    sha256: str | None
    patient_id: str | None = None
    stain: str | None = None
    her2_detail: str | None = None
    encoders: tuple[str, ...] = ()
    regions: Path | None = None
    regions_sha256: str | None = None
    controls: Path | None = None
    controls_sha256: str | None = None


@dataclass
class PendingSlides:
    """Slides by their ids, and the bytes of all their files, kept up to date as slides come and go."""

    slides: dict[str, SlideJob] = field(default_factory=dict)
    bytes: int = 0

    def add(self, job: SlideJob) -> None:
        """Add a slide; it replaces one with the same id."""
        self.remove(job.slide_id)
        self.slides[job.slide_id] = job
        self.bytes += job.source.bytes

    def remove(self, slide_id: str) -> None:
        """Remove a slide, if it is there."""
        if (old := self.slides.pop(slide_id, None)) is not None:
            self.bytes -= old.source.bytes


@dataclass
class Inventory:
    """The files of the scan folder, and what each is to the cohort.

    Paths are those of the intake table.  jobs: slides to process.  outcomes: path → todo, current, duplicate, ignored
    or deferred.  entries: path → row of the intake table.  probes: path → what the file was when it was opened.
    erased: paths of slides that were removed from the cohort and must not come back; no table has them.  unreachable:
    number of slides of a scan folder that has no slides now.
    """

    jobs: list[SlideJob] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    entries: dict[str, Row] = field(default_factory=dict)
    probes: dict[str, FileProbe] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    unreachable: int = 0
    pseudonymizer: Pseudonymizer = field(default_factory=Pseudonymizer)

    @property
    def seen(self) -> int:
        """Number of slides and other files in the scan folder."""
        return len(self.outcomes)

    @property
    def current(self) -> list[str]:
        """Ids of the slides that are finished and have not changed."""
        return [self.entries[path]["slide_id"] for path, outcome in self.outcomes.items() if outcome == "current"]

    @property
    def duplicates(self) -> int:
        """Number of copies of other slides."""
        return self._count("duplicate")

    @property
    def archived(self) -> int:
        """Number of finished slides whose files have left the scan folder."""
        return sum(entry["outcome"] == "archived" for entry in self.entries.values())

    @property
    def ignored(self) -> int:
        """Number of files that are no slides."""
        return self._count("ignored")

    @property
    def deferred(self) -> int:
        """Number of slides that are left to the next run."""
        return self._count("deferred")

    @property
    def missing(self) -> list[str]:
        """Slides that a QuPath project or a manifest lists and that are not there, with the reason."""
        ignored = (self.entries.get(path) for path, outcome in self.outcomes.items() if outcome == "ignored")
        listed = [entry for entry in ignored if entry is not None and entry["reason"].startswith(MISSING)]
        return [f"{entry['path']}: {entry['reason'].removeprefix(f'{MISSING}: ')}" for entry in listed]

    def _count(self, outcome: str) -> int:
        return sum(found == outcome for found in self.outcomes.values())

    def save(self, cohort: Cohort) -> None:
        """Write the intake table and the probes, so that the next run opens new and changed files only."""
        cohort.write_intake(self.pseudonymizer.convert_times(self.entries.values()))
        settled = time.time_ns() - SETTLED_NS
        known = {path: probe for path, probe in self.probes.items() if path not in self.erased}
        probes = [{"path": path, **probe._asdict()} for path, probe in known.items() if probe.mtime_ns < settled]
        cohort.write_probes(self.pseudonymizer.convert_times(probes))


def take_inventory(
    scans: Path,
    cohort: Cohort,
    plan: Plan,
    pseudonymizer: Pseudonymizer,
    labels: Mapping[str, Row],
    retry_failed: bool = False,
    regions: Path | None = None,
    controls: Path | None = None,
) -> Inventory:
    """Compare a scan folder with a cohort. regions, controls: folders of annotations."""
    updater = InventoryUpdater(scans, cohort, plan, pseudonymizer, labels, retry_failed, regions, controls)
    updater.admit(updater.discover())
    return updater.inventory


class InventoryUpdater:
    """An inventory to which files are added: all at once, or one by one as a scanner finishes them.

    rows: of the cohort's slides, by id.  all_jobs: every slide that was to be processed.  pending: those that have not
    ended.  redo: ids of finished slides to process again.
    """

    def __init__(
        self,
        scans: Path,
        cohort: Cohort,
        plan: Plan,
        pseudonymizer: Pseudonymizer,
        labels: Mapping[str, Row],
        retry_failed: bool = False,
        regions: Path | None = None,
        controls: Path | None = None,
    ) -> None:
        """A scan folder that does not exist has no files."""
        scans = scans.resolve() if ".." in scans.parts else scans.absolute()  # else the same file has two names
        self.cohort, self._scans, self._plan, self._pseudonymizer = cohort, scans, plan, pseudonymizer
        self._labels, self._retry_failed = labels, retry_failed
        self.regions, self.controls = RegionFolder(regions), RegionFolder(controls)
        self.rows, self._damaged, self._sizes = cohort.rows(), cohort.damaged_slides(), cohort.object_sizes()
        intake = pseudonymizer.convert_times(_read_intake(cohort))
        self._seen_files = SeenFiles(intake, self.rows, pseudonymizer, erased_digests(cohort))
        self.all_jobs, self.pending, self.redo = PendingSlides(), PendingSlides(), set[str]()
        self._moved: dict[str, str] = {}
        self._any_slide = False
        self.inventory = Inventory(
            entries=self._seen_files.entries,
            probes=_read_probes(cohort, pseudonymizer),
            erased=self._seen_files.erased,
            pseudonymizer=pseudonymizer,
        )

    def discover(self) -> DiscoveredSlides:
        """Search the scan folder. A file that has not changed since an earlier search is not opened."""
        if not self._scans.exists():
            return DiscoveredSlides([], [], {})
        found = discover_slides(self._scans, self.cohort.root, self.inventory.probes, self._pseudonymizer.path)
        self.inventory.probes |= found.probes
        self._any_slide = bool(found.slides)
        self._seen_files.note_present([*(slide.path for slide in found.slides), *(file.path for file in found.ignored)])
        return found

    def note_absent(self) -> None:
        """Mark slides whose files have left the scan folder, by the last search of it.

        Where the folder has no slides at all, they are not said to have left: its share may not be mounted.
        """
        if self._any_slide:
            self._seen_files.note_absent(self._is_in_folder)
        else:
            self.inventory.unreachable = self._seen_files.note_lost_folder(self._is_in_folder)

    def _is_in_folder(self, path: str) -> bool:
        """Whether a path of the intake table is in the scan folder; with pseudonyms every path counts as one."""
        return self._pseudonymizer.key is not None or Path(path).is_relative_to(printable_path(self._scans))

    def write_moved_paths(self) -> list[str]:
        """Write the new paths of finished slides whose files were moved; returns their ids.

        Rows of slides that wait for encoders are left for a later call. Call it under the lock only.
        """
        ready = {slide_id: path for slide_id, path in self._moved.items() if slide_id not in self.pending.slides}
        for slide_id, path in ready.items():
            row: Row = {**self.cohort.read("slides", slide_id).to_pylist()[0], "path": path}
            write_row(self.cohort, row)
            self.rows[slide_id] = row
            del self._moved[slide_id]
        return sorted(ready)

    def register(self, found: DiscoveredSlides) -> None:
        """Give every slide its id, by which labels meet it, without an outcome yet."""
        self._seen_files.note_slides(found.slides)
        if isinstance(self._labels, LabelBook):
            self._labels.add_files(found.slides, self._seen_files.entries)
        for source in found.slides:
            entry = self._seen_files.entries.get(self._pseudonymizer.path(source.path))
            if entry is not None and entry["outcome"] == "slide":
                self.regions.add_slide(entry["slide_id"], source.path)
                self.controls.add_slide(entry["slide_id"], source.path)

    def reload_rows(self) -> None:
        """Read the cohort's rows again after they were changed."""
        self.rows.clear()
        self.rows.update(self.cohort.rows())
        self._damaged, self._sizes = self.cohort.damaged_slides(), self.cohort.object_sizes()

    def admit(self, found: DiscoveredSlides) -> list[SlideJob]:
        """Give every file its outcome; returns the slides to process."""
        for file in found.ignored:
            self._seen_files.note_ignored(file)
            self.inventory.outcomes[self._pseudonymizer.path(file.path)] = "ignored"
        self.register(found)
        jobs = [job for source in found.slides if (job := self._job_for(source)) is not None]
        self.inventory.jobs += jobs
        self.add_jobs(jobs)
        return jobs

    def _job_for(self, source: SlideFiles) -> SlideJob | None:
        path = self._pseudonymizer.path(source.path)
        entry = self._seen_files.entries.get(path)
        if entry is None:
            if path in self._seen_files.erased:
                self.inventory.outcomes[path] = "ignored"
            return None
        row = self.rows.get(entry["slide_id"])
        if entry["outcome"] == "duplicate":
            self.inventory.outcomes[path] = "duplicate"
        elif row and row["slide_id"] not in self._damaged | self.redo and self._is_current(row, entry, source):
            self.inventory.outcomes[path] = "current"
            if self._has_moved(row, source):
                self._moved[row["slide_id"]] = printable_path(source.path)
        else:
            self.inventory.outcomes[path] = "todo"
            label = self._labels.get(entry["slide_id"], {})
            columns: dict[str, Any] = {name: label.get(name) for name in LABEL_COLUMNS}
            columns["regions"], columns["regions_sha256"] = self.regions.file_of(entry["slide_id"])
            columns["controls"], columns["controls_sha256"] = self.controls.file_of(entry["slide_id"])
            return SlideJob(entry["slide_id"], source, entry["sha256"], **columns)
        return None

    def _is_current(self, row: Row, entry: Row, source: SlideFiles) -> bool:
        annotated = (self.regions.file_of(row["slide_id"])[1], self.controls.file_of(row["slide_id"])[1])
        if (row["regions"], row["controls"]) != annotated:
            return False
        if not _is_current(row, entry, self._plan, self._retry_failed):
            return False
        if row["status"] == "failed":  # one whose file was renamed is tried again: its error names the file
            return not self._has_moved(row, source)
        return self.cohort.files_present(row, self._sizes)

    def _has_moved(self, row: Row, source: SlideFiles) -> bool:
        """Whether a slide's row has another path than its file. Rows of a pseudonymized cohort have none."""
        return row["path"] not in (None, printable_path(source.path))

    def is_settled(self, source: SlideFiles) -> bool:
        """Whether a file has not changed since its slide was finished, or since it was found to be a copy."""
        return self._seen_files.is_settled(source)

    def add_jobs(self, jobs: list[SlideJob]) -> None:
        """Note jobs that come from no file of the scan folder: encoders to add to finished slides."""
        for job in jobs:
            self.all_jobs.add(job)
            self.pending.add(job)

    def record_result(self, job: SlideJob, row: Row) -> None:
        """Note that a slide's row is committed. Its digest is kept, so that a copy that comes later is found."""
        self.rows[row["slide_id"]] = row
        waiting = self.pending.slides.get(row["slide_id"])
        if waiting is not None and waiting.source.stat_key == job.source.stat_key:  # else it has changed again
            self.pending.remove(row["slide_id"])
        if not job.encoders:
            self._seen_files.set_digest(self._pseudonymizer.path(job.source.path), row["sha256"])

    def defer(self, source: SlideFiles, why: str) -> None:
        """Leave a slide to the next run."""
        path = self._pseudonymizer.path(source.path)
        self._seen_files.note_deferred(source, self._pseudonymizer.reason(why))
        self.inventory.outcomes[path] = "deferred"


def _read_intake(cohort: Cohort) -> list[Row]:
    """The intake table; empty where it is damaged, for it can be made again from the files and the rows."""
    try:
        return cohort.read_intake()
    except StoreError:
        return []


def _read_probes(cohort: Cohort, pseudonymizer: Pseudonymizer) -> dict[str, FileProbe]:
    """What earlier runs found in the files that they opened, by path in the intake table."""
    return {
        row["path"]: FileProbe(row["rules"], row["bytes"], row["mtime_ns"], row["kind"], tuple(row["belongs"]))
        for row in pseudonymizer.convert_times(cohort.read_probes())
    }


def _is_current(row: Row, entry: Row, plan: Plan, retry_failed: bool) -> bool:
    """Whether a slide's row is the result of this file and this plan."""
    match = match_plan(plan, row)
    if entry["sha256"] != row["sha256"] or match is None or not match.is_current:
        return False
    if row["status"] == "failed":
        return not retry_failed and row["error_code"] not in TRANSIENT_ERRORS
    return True
