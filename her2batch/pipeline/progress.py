"""Progress of a run, and the remaining time with its uncertainty, from the durations of the slides that have ended."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

import numpy as np

MIN_FINISHED = 3
"""Least finished slides for which a remaining time is given."""

CONFIDENCE_Z = 1.645
"""Standard errors to either side of the estimate: nine of ten runs end within them."""


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run.

    ended, failed: number of slides.  of: number of all known slides.  source_bytes, of_bytes: of the slides that have
    ended, and of all known slides.  left: remaining seconds, least and most; None while too few slides have ended.
    """

    ended: int = 0
    failed: int = 0
    of: int = 0
    tiles: int = 0
    source_bytes: int = 0
    of_bytes: int = 0
    left: tuple[float, float] | None = None


@dataclass
class RemainingTime:
    """Estimates the remaining time from the seconds of work that a byte of slide has taken.  workers: in parallel."""

    workers: int
    _bytes: array[float] = field(default_factory=lambda: array("d"))  # of each slide
    _seconds: array[float] = field(default_factory=lambda: array("d"))  # of work

    def add(self, size: int, seconds: float) -> None:
        """Add a slide that has ended.  size: bytes of its files.  seconds: of work in all its calls."""
        if size > 0:
            self._bytes.append(size)
            self._seconds.append(seconds)

    def left(self, slides: int, size: int) -> tuple[float, float] | None:
        """Seconds that the remaining slides will take, least and most.  size: bytes of all of them.

        The cost of a byte is the ratio of two sums. Its standard error, and the scatter of the remaining slides around
        it, follow from the residuals (Cochran, Sampling Techniques, 3rd ed., 6.4).
        """
        if slides == 0:
            return 0.0, 0.0
        n = len(self._bytes)
        if n < MIN_FINISHED:
            return None
        sizes, seconds = np.frombuffer(self._bytes), np.frombuffer(self._seconds)  # called after every slide
        total = float(sizes.sum())
        rate = float(seconds.sum()) / total
        scatter = math.sqrt(float(((seconds - rate * sizes) ** 2).sum()) / (n - 1))
        of_rate = scatter * math.sqrt(n) / total
        error = math.hypot(of_rate * size, scatter * math.sqrt(slides))
        at_once = min(self.workers, slides)
        low, high = rate * size - CONFIDENCE_Z * error, rate * size + CONFIDENCE_Z * error
        return max(0.0, low) / at_once, high / at_once
