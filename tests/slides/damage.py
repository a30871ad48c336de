"""Ways in which a file comes to harm, seeded."""

from collections.abc import Iterator

import numpy as np


def holed(data: bytes, size: int, times: int, seed: int) -> Iterator[bytes]:
    """Copies with `size` zero bytes somewhere: what a partial copy leaves."""
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(data) - size, times).tolist():
        yield data[:at] + bytes(size) + data[at + size :]


def cut(data: bytes, times: int, seed: int) -> Iterator[bytes]:
    """Copies that end somewhere."""
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(data), times).tolist():
        yield data[:at]


def zero_tailed(data: bytes, times: int, seed: int) -> Iterator[bytes]:
    """Copies of the right size whose end was never written."""
    for short in cut(data, times, seed):
        yield short.ljust(len(data), b"\0")
