"""Notes of networks that got fewer tiles at once than is recorded, because the memory ran out.

A note belongs to the call on a slide during which it is made, not to the network, which serves several calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_notes: ContextVar[list[str] | None] = ContextVar("notes of smaller batches", default=None)


@contextmanager
def collect_smaller_batches() -> Iterator[list[str]]:
    """Give a list to which the networks that this thread runs meanwhile add their notes, each once."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note_smaller_batch(size: int, recorded: int, device: str) -> None:
    """Note that a network got `size` tiles at once in place of `recorded`. Without a collector nothing happens."""
    notes = _notes.get()
    text = f"a network got {size} tiles at once in place of {recorded}: the memory of {device} ran out"
    if notes is not None and text not in notes:
        notes.append(text)
