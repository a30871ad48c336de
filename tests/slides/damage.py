"""Seeded damage of files."""

from collections.abc import Iterator

import numpy as np


def copies_with_hole(data: bytes, size: int, times: int, seed: int) -> Iterator[bytes]:
    """Yield copies with `size` zero bytes at random positions, as left by an interrupted copy."""
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(data) - size, times).tolist():
        yield data[:at] + bytes(size) + data[at + size :]


def truncated_copies(data: bytes, times: int, seed: int) -> Iterator[bytes]:
    """Yield copies that end at random positions."""
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(data), times).tolist():
        yield data[:at]


def copies_with_zeroed_end(data: bytes, times: int, seed: int) -> Iterator[bytes]:
    """Yield copies of full size whose end is zeros, as if it was never written."""
    for short in truncated_copies(data, times, seed):
        yield short.ljust(len(data), b"\0")
