"""Ways in which a file comes to harm, seeded."""

from collections.abc import Iterator

import numpy as np


def copies_with_hole(data: bytes, size: int, times: int, seed: int) -> Iterator[bytes]:
    """Copies with `size` zero bytes somewhere: what a partial copy leaves."""
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(data) - size, times).tolist():
        yield data[:at] + bytes(size) + data[at + size :]


def truncated_copies(data: bytes, times: int, seed: int) -> Iterator[bytes]:
    """Copies that end somewhere."""
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(data), times).tolist():
        yield data[:at]


def copies_with_zeroed_end(data: bytes, times: int, seed: int) -> Iterator[bytes]:
    """Copies of the right size whose end was never written."""
    for short in truncated_copies(data, times, seed):
        yield short.ljust(len(data), b"\0")
