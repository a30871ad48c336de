"""Summary of a night: one line of JSON for the scheduler that accounts for every file. It contains no patient data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from her2batch.assessment import Assessment
from her2batch.errors import STOPPED
from her2batch.files.locations import free_bytes
from her2batch.store.cohort import Cohort, Row
from her2batch.store.outcome_counts import OutcomeCounts
from her2batch.tasks import CLASSES

INTERNAL_ERROR = "fault"
"""`error` of a night that an internal error ended."""

HELD_EXIT_CODE = 4
"""Exit code of a night whose report is held back."""


@dataclass
class NightSummary:
    """Counts, times and sizes of a night, without names of slides, patients or files."""

    night: str
    started: str
    ended: str = ""
    seconds: float = 0.0
    seen: int = 0
    done: int = 0
    failed: int = 0
    deferred: int = 0
    duplicate: int = 0
    ignored: int = 0
    fresh: int = 0  # done or failed in this night
    scored: int = 0
    not_scored: int = 0
    calibration: str | None = None  # id of the calibration that was used
    calibrated: int = 0  # slides that it predicted in this night
    not_calibrated: int = 0  # slides whose tables it could not read
    outside_calibration: int = 0  # of the calibrated ones, those that it does not apply to: their rule's result stands
    outside_causes: dict[str, int] = field(default_factory=dict)  # slides by why it does not apply
    calibrations_failed: int = 0  # that could not be used at all, although the settings name them
    sent: int = 0  # results that the laboratory information system has accepted in this night
    not_sent: int = 0  # results that it does not have yet
    review: int = 0
    conflicts: int = 0
    controls_failed: int = 0  # control tissues of this night that did not score as expected
    alarms: int = 0
    retired: int = 0
    tiles: int = 0
    source_bytes: int = 0
    store_bytes: int = 0
    free_bytes: int | None = None
    written_bytes: int = 0  # by this night
    disk_low: bool = False  # less is free than the settings ask for
    deferred_seconds: tuple[float, float] | None = None  # estimate for the deferred slides, least and most
    failures: dict[str, int] = field(default_factory=dict)  # by code
    classes: dict[str, int] = field(default_factory=dict)  # slides of this night by their result; `ISH needed` apart
    held: bool = False
    stopped: bool = False
    error: str | None = None  # class of the error that ended the night early: its message may name a file
    reason: str | None = None  # why it ended early, in a sentence that names no file

    @property
    def adds_up(self) -> bool:
        """Whether every file that was seen has an outcome."""
        return OutcomeCounts.of(self).adds_up

    @property
    def exit_code(self) -> int:
        """0, or 1 internal error or missing files, 2 other error, 130 stopped, 4 held back, 3 some failed."""
        if self.error is not None:
            return 1 if self.error == INTERNAL_ERROR else 2
        if self.stopped:
            return STOPPED
        if not self.adds_up:
            return 1
        if self.held:
            return HELD_EXIT_CODE
        return 3 if self.failed or self.not_scored or self.not_calibrated or self.not_sent else 0

    def to_json(self) -> str:
        """Return the summary as one line of JSON."""
        return json.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the JSON line."""
        return {**asdict(self), "adds_up": self.adds_up, "exit_code": self.exit_code}


def counts_equation(night: NightSummary) -> str:
    """Return the counts of a night as text, such as "seen 6 = 1 done + 1 failed + …"."""
    return OutcomeCounts.of(night).equation


def count_error_codes(failures: Iterable[Row]) -> dict[str, int]:
    """Count the failed slides by error code."""
    return dict(sorted(Counter(str(row["error_code"]) for row in failures).items()))


def count_results(assessments: Iterable[Assessment]) -> dict[str, int]:
    """Count slides by their result: the IHC scores, `ISH needed` for 2+ without an ISH result, `ER positive` and so on.

    A slide without a result is not counted; numbers are counted as `TASK predicted`.
    """
    counts: Counter[str] = Counter()
    for found in assessments:
        if found.needs_ish:
            counts["ISH needed"] += 1
        elif found.result is not None:
            task = found.task or ""
            prefix = "" if found.derived else f"{task.upper() if task in CLASSES else task} "
            number = found.main is not None and not found.main.get("classes", True)
            counts[f"{prefix}{'predicted' if number else found.result}"] += 1
    return dict(sorted(counts.items()))


def disk_usage(cohort: Cohort, rows: Mapping[str, Row]) -> tuple[int, int | None]:
    """Return the bytes of all committed files, and the free bytes of the disk (None if unknown)."""
    used = sum(file["bytes"] for row in rows.values() for file in row["files"] or ())
    return used, free_bytes(cohort.root)
