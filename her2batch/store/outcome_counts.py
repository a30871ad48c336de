"""Outcomes of the files of a scan folder. Each file has one: seen = done + failed + deferred + duplicate + ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

OUTCOMES: Final = ("done", "failed", "deferred", "duplicate", "ignored")


class Summary(Protocol):
    """Any summary with a count of each outcome: of an ingest, a cohort or a night."""

    seen: int
    done: int
    failed: int
    deferred: int
    duplicate: int
    ignored: int


@dataclass(frozen=True)
class OutcomeCounts:
    """Number of files seen, and of those with each outcome."""

    seen: int
    done: int
    failed: int
    deferred: int
    duplicate: int
    ignored: int

    @classmethod
    def of(cls, summary: Summary) -> OutcomeCounts:
        """The counts of a summary."""
        return cls(summary.seen, *(getattr(summary, outcome) for outcome in OUTCOMES))

    @property
    def adds_up(self) -> bool:
        """Whether every file that was seen has an outcome. If not, a file was lost."""
        return self.seen == self.done + self.failed + self.deferred + self.duplicate + self.ignored

    @property
    def equation(self) -> str:
        """The counts as text: "seen 15 = 9 done + 1 failed + 2 deferred + 3 duplicate + 0 ignored"."""
        sign = "=" if self.adds_up else "≠"
        return f"seen {self.seen} {sign} " + " + ".join(f"{getattr(self, outcome)} {outcome}" for outcome in OUTCOMES)
