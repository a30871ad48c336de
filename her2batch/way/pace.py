"""How far a run is, and how long the rest will take: by what its slides took so far, with the doubt that is in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

ENOUGH = 3
"""Finished slides from which a run speaks of time."""

DOUBT = 1.645
"""Standard errors to either side: nine of ten runs end between the two."""


@dataclass(frozen=True)
class Tally:
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
class Pace:
    """Seconds of work a byte of slide takes, from the slides that have ended. workers: that work side by side."""

    workers: int
    _costs: list[tuple[int, float]] = field(default_factory=list)  # bytes, seconds of work

    def add(self, size: int, seconds: float) -> None:
        """A slide has ended.  size: bytes of its files.  seconds: of work in all its calls."""
        if size > 0:
            self._costs.append((size, seconds))

    def left(self, slides: int, size: int) -> tuple[float, float] | None:
        """Seconds that so many slides of so many bytes in all will take, at the least and at the most.

        The cost of a byte is the ratio of two sums; its standard error, and the scatter of the slides that are left
        round it, are those of the residuals (Cochran, Sampling Techniques, 3rd ed., 6.4).
        """
        if slides == 0:
            return 0.0, 0.0
        n = len(self._costs)
        if n < ENOUGH:
            return None
        total = sum(one for one, _ in self._costs)
        rate = sum(seconds for _, seconds in self._costs) / total
        scatter = math.sqrt(sum((seconds - rate * one) ** 2 for one, seconds in self._costs) / (n - 1))
        of_rate = scatter * math.sqrt(n) / total
        error = math.hypot(of_rate * size, scatter * math.sqrt(slides))
        at_once = min(self.workers, slides)
        low, high = rate * size - DOUBT * error, rate * size + DOUBT * error
        return max(0.0, low) / at_once, high / at_once
