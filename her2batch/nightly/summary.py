"""What a night comes down to: one line for the scheduler, with the proof that nothing vanished. No patient data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from her2batch.errors import STOPPED
from her2batch.files.locations import free_bytes
from her2batch.store.cohort import Cohort, Row
from her2batch.store.outcome_counts import OutcomeCounts

INTERNAL_ERROR = "fault"
"""What stopped a night that had a fault of ours."""

HELD_EXIT_CODE = 4
"""Exit code of a night whose report is held back."""


@dataclass
class NightSummary:
    """Counts, times and sizes of a night: nothing here names a slide, a patient or a file."""

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
    fresh: int = 0  # of the done and failed: in this night
    scored: int = 0
    not_scored: int = 0
    review: int = 0
    conflicts: int = 0
    alarms: int = 0
    retired: int = 0
    tiles: int = 0
    source_bytes: int = 0
    store_bytes: int = 0
    free_bytes: int | None = None
    deferred_seconds: tuple[float, float] | None = None  # what the deferred slides will take, at least and at most
    failures: dict[str, int] = field(default_factory=dict)  # by code
    held: bool = False
    stopped: bool = False
    error: str | None = None  # the kind of what ended the night before its report: its words may name a file

    @property
    def adds_up(self) -> bool:
        """Whether every file that was seen has an outcome."""
        return OutcomeCounts.of(self).adds_up

    @property
    def exit_code(self) -> int:
        """1 a fault · 2 another error · 130 stopped · 1 a slide vanished · 4 held back · 3 some failed · 0."""
        if self.error is not None:
            return 1 if self.error == INTERNAL_ERROR else 2
        if self.stopped:
            return STOPPED
        if not self.adds_up:
            return 1
        if self.held:
            return HELD_EXIT_CODE
        return 3 if self.failed or self.not_scored else 0

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(self.facts())

    def facts(self) -> dict[str, Any]:
        """What the line says."""
        return {**asdict(self), "adds_up": self.adds_up, "exit_code": self.exit_code}


def counts_equation(night: NightSummary) -> str:
    """The counts of a night as text, such as "seen 6 = 1 done + 1 failed + …"."""
    return OutcomeCounts.of(night).equation


def count_error_codes(failures: Iterable[Row]) -> dict[str, int]:
    """How many slides failed with each code."""
    return dict(sorted(Counter(str(row["error_code"]) for row in failures).items()))


def disk_usage(cohort: Cohort, rows: Mapping[str, Row]) -> tuple[int, int | None]:
    """Bytes of all committed files, and bytes that are free; None where nobody can say."""
    used = sum(file["bytes"] for row in rows.values() for file in row["files"] or ())
    return used, free_bytes(cohort.root)
