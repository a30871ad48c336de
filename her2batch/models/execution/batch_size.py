"""Tiles that a network gets at once on a GPU: found within the free memory, then the same for all slides of a cohort.

The last bits of a result depend on the number of tiles of its forward pass. Free memory differs between machines and
nights, so that a cohort records the number of each network when it is first used, and keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from her2batch.errors import StoreError
from her2batch.files.first_write import write_first

MAX_BATCH: Final = 256
"""Tiles that the models get at once (`tile_reader.TILES_PER_BATCH`): a network cannot get more."""

PROBED: Final = 8
"""Tiles of the smaller of the two batches whose memory is measured; the other has twice as many."""

RESERVE_BYTES: Final = 2 << 30
"""Memory that is left free: for tiles that are decoded ahead, and for what fragmentation costs."""


class Memory(Protocol):
    """Memory of a device, bytes."""

    def peak(self, work: Callable[[], object]) -> int:
        """Return the most that is allocated at once while `work` runs."""

    def free(self) -> int:
        """Return what this process may still allocate."""

    def release(self) -> None:
        """Give back what is reserved and not used."""


@dataclass(frozen=True)
class GpuMemory:
    """Memory of a GPU as torch reports it.  share: of the whole that this process may use."""

    device: str
    share: float = 1.0

    def peak(self, work: Callable[[], object]) -> int:
        """Return the most that torch has allocated at once while `work` ran."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.max_memory_allocated(self.device))

    def free(self) -> int:
        """Return the smaller of what is free on the GPU and what is left of this process's share."""
        free, total = torch.cuda.mem_get_info(self.device)
        allocated = torch.cuda.memory_allocated(self.device)
        unused = torch.cuda.memory_reserved(self.device) - allocated  # of torch's cache, which it uses first
        return int(min(free + unused, total * self.share - allocated))

    def release(self) -> None:
        """Give back torch's cache."""
        torch.cuda.empty_cache()


def memory_of(device: str, share: float) -> Memory | None:
    """Return the memory of a GPU; None for the CPU, on which the number of tiles does not follow the memory."""
    return GpuMemory(device, share) if torch.device(device).type == "cuda" else None


def largest_batch(tile_bytes: float, free_bytes: int, most: int = MAX_BATCH, reserve: int = RESERVE_BYTES) -> int:
    """Return the largest power of two of tiles, at most `most`, whose memory is free beside the reserve; at least 1.

    tile_bytes: that one tile more takes in a forward pass.
    """
    size = 1
    while 2 * size <= most and 2 * size * tile_bytes <= free_bytes - reserve:
        size *= 2
    return size


def find_batch(run: Callable[[int], object], memory: Memory, most: int = MAX_BATCH) -> int:
    """Return how many tiles a network may get at once: measured on two small batches, then tried.

    run: runs the network on as many tiles. Raises what it raises, but for memory that ran out.
    """
    try:
        run(PROBED)  # loads kernels and their workspaces, which stay
        small, large = (memory.peak(lambda n=n: run(n)) for n in (PROBED, 2 * PROBED))  # type: ignore[misc]
        size = largest_batch(max(0, large - small) / PROBED, memory.free(), most)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size = PROBED // 2
    while size > 1:
        memory.release()
        try:
            run(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
        else:
            break
    memory.release()
    return size


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out. torch has a class for this error on GPUs, only a message for it on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@dataclass(frozen=True)
class BatchSizes:
    """The record of a cohort: network → tiles that it gets at once on GPUs.

    folder: of the record, one file for each network.  share: of a GPU's memory that this process may use.
    """

    folder: Path
    share: float = 1.0

    def settle(self, network: str, find: Callable[[], int]) -> int:
        """Return the recorded number of a network; `find` it where there is none, and record it.

        The first of several processes that record one wins. Raises StoreError for a record that is damaged.
        """
        path = self.folder / f"{network.replace(':', '-').replace('/', '-')}.json"
        text = path.read_text("utf-8") if path.exists() else write_first(path, json.dumps({"tiles": find()}))
        try:
            values: Any = json.loads(text)
            size = int(values["tiles"])
        except (ValueError, KeyError, TypeError) as error:
            remedy = "restore it from a backup, or remove it: then results of further slides may have other last bits"
            raise StoreError("does not state how many tiles a network gets at once", path, remedy) from error
        if size < 1:
            raise StoreError(f"states {size} tiles at once", path, "restore it from a backup, or remove it")
        return size
