"""Random numbers of a run: one independent stream for each purpose, from the seed of the run."""

from __future__ import annotations

import numpy as np


def random_stream(seed: int, *keys: int) -> np.random.Generator:
    """Return an independent random generator for every (seed, keys): SFC64, seeded through SeedSequence."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *keys])))
