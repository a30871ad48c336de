"""How far a run is, and how long the rest will take: by what its slides took so far, with the doubt that is in it."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

import numpy as np

ENOUGH = 3
"""Finished slides from which a run speaks of time."""

DOUBT = 1.645
"""Standard errors to either side: nine of ten runs end between the two."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run is. source_bytes, of_bytes: of the slides that have ended, and of all that are known.

    left: seconds, at the least and at the most; None while nobody can know.
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
    """Seconds of work a byte of slide takes, from the slides that have ended. workers: that work side by side."""

    workers: int
    _bytes: array[float] = field(default_factory=lambda: array("d"))  # of each slide
    _seconds: array[float] = field(default_factory=lambda: array("d"))  # of work

    def add(self, size: int, seconds: float) -> None:
        """A slide has ended.  size: bytes of its files.  seconds: of work in all its calls."""
        if size > 0:
            self._bytes.append(size)
            self._seconds.append(seconds)

    def left(self, slides: int, size: int) -> tuple[float, float] | None:
        """Seconds that so many slides of so many bytes in all will take, at the least and at the most.

        The cost of a byte is the ratio of two sums; its standard error, and the scatter of the slides that are left
        round it, are those of the residuals (Cochran, Sampling Techniques, 3rd ed., 6.4).
        """
        if slides == 0:
            return 0.0, 0.0
        n = len(self._bytes)
        if n < ENOUGH:
            return None
        sizes, seconds = np.frombuffer(self._bytes), np.frombuffer(self._seconds)  # asked for after every slide
        total = float(sizes.sum())
        rate = float(seconds.sum()) / total
        scatter = math.sqrt(float(((seconds - rate * sizes) ** 2).sum()) / (n - 1))
        of_rate = scatter * math.sqrt(n) / total
        error = math.hypot(of_rate * size, scatter * math.sqrt(slides))
        at_once = min(self.workers, slides)
        low, high = rate * size - DOUBT * error, rate * size + DOUBT * error
        return max(0.0, low) / at_once, high / at_once
