"""Outcome of an ingest: what became of every file of the scan folder, and of the slides that were finished before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from her2batch.errors import STOPPED
from her2batch.pipeline.calibration.apply import CalibratedSlides
from her2batch.pipeline.growth.added_encoders import AddedEncoders
from her2batch.pipeline.inventory import Inventory
from her2batch.pipeline.pieces.tma_cores import CoreNotes
from her2batch.store.cohort import Row
from her2batch.store.label_sheets.book import LabelsReport
from her2batch.store.outcome_counts import OUTCOMES, OutcomeCounts

COUNTS = ("seen", *OUTCOMES, "already", "tiles", "stopped")
"""Fields of a summary that the last entry of the run log contains."""


@dataclass
class IngestSummary:
    """Outcome of an ingest.

    seen to ignored: numbers of files, by outcome.  already: of the done and failed slides, those of an earlier run.
    left: seconds that the deferred slides will take, least and most.  slides, failures: rows of all slides of the scan
    folder, and of those that failed.  skipped: parts that need a bundle.  fresh: ids of the slides that this run ended.
    relabelled: ids of the finished slides to which the labels gave another patient, stain or sub-score.  missing:
    slides that a QuPath project or a manifest lists and that are not there, each with the reason.  labels: what became
    of the labels; None without labels.  unused_regions: files of regions that belong to no slide.  cores: of tissue
    microarrays; None without a map.  added: encoders that were added to finished slides.  moved: ids of finished slides
    whose files were moved or renamed.  archived: number of finished slides whose files have left the scan folder.
    unreachable: number of slides of a scan folder that has no slides at all now.  calibrated: what a calibration
    predicted; None without one.
    """

    cohort: Path
    seen: int = 0
    done: int = 0
    failed: int = 0
    deferred: int = 0
    duplicate: int = 0
    ignored: int = 0
    already: int = 0
    tiles: int = 0
    seconds: float = 0.0
    stopped: bool = False
    left: tuple[float, float] | None = None
    run: str = ""
    failures: list[Row] = field(default_factory=list)
    slides: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused_regions: list[str] = field(default_factory=list)
    cores: CoreNotes | None = None
    labels: LabelsReport | None = None
    added: AddedEncoders = field(default_factory=AddedEncoders)
    moved: list[str] = field(default_factory=list)
    archived: int = 0
    unreachable: int = 0
    calibrated: CalibratedSlides | None = None

    @property
    def adds_up(self) -> bool:
        """Whether every file that was seen has an outcome."""
        return OutcomeCounts.of(self).adds_up

    @property
    def exit_code(self) -> int:
        """0 all done · 1 a slide has no outcome · 3 some failed or are missing · 130 stopped."""
        if self.stopped:
            return STOPPED
        if not self.adds_up:
            return 1
        uncalibrated = self.calibrated is not None and self.calibrated.failures
        return 3 if self.failed or self.missing or self.added.failures or uncalibrated else 0


def count_slides(summary: IngestSummary, inventory: Inventory, rows: Mapping[str, Row]) -> None:
    """Count the slides of the scan folder by their rows, as they are on disk."""
    summary.seen, summary.deferred = inventory.seen, inventory.deferred
    summary.duplicate, summary.ignored = inventory.duplicates, inventory.ignored
    summary.already = len(inventory.current)
    summary.missing = inventory.missing
    summary.archived, summary.unreachable = inventory.archived, inventory.unreachable
    for path, outcome in inventory.outcomes.items():
        row = rows.get(inventory.entries[path]["slide_id"]) if outcome in ("todo", "current") else None
        if row is None:
            continue
        summary.slides.append(row)
        summary.tiles += row["n_tiles"] or 0
        if row["status"] == "done":
            summary.done += 1
        else:
            summary.failed += 1
            summary.failures.append(row)


def ingest_result(
    summary: IngestSummary, counts: Iterable[Any], not_scorable: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """The result of an ingest as plain values.

    counts: dataclasses, predictions of slides that this run finished.  not_scorable: reason, in words → number of these
    slides that have no class.
    """
    keys = ("slide_id", "path", "error_code", "error")
    fields = ("seen", *OUTCOMES, "already", "moved", "archived", "unreachable", "tiles", "seconds", "skipped")
    return {
        "cohort": str(summary.cohort),
        **{name: getattr(summary, name) for name in fields},
        "failures": [{key: row[key] for key in keys} for row in summary.failures],
        "missing": summary.missing,
        "unused_regions": summary.unused_regions,
        "cores": summary.cores._asdict() if summary.cores is not None else None,
        "added": summary.added.as_json(),
        "predictions": [asdict(count) for count in counts],
        "not_scorable": dict(not_scorable),
        "labels": asdict(summary.labels) if summary.labels is not None else None,
        "calibration": summary.calibrated.as_json() if summary.calibrated is not None else None,
        "exit_code": summary.exit_code,
    }
