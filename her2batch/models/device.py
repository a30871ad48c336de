"""Run an image network: copy pixels to the device, normalise them, choose batches that fit, give repeatable results.

Without a precision in the plan: on CUDA autocast to bfloat16; on the CPU float32, although bfloat16 doubles the speed
of networks where the CPU has it (ViT-L 1.3 → 2.7 images/s, EfficientNet-Lite0 30 → 64): a cohort that is computed or
resumed on several CPU types would contain two precisions. A plan that names one has it on every device, or is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from her2batch.errors import InputError
from her2batch.models.attention import product_dtype
from her2batch.models.device_measurements.tile_batch import copy_to_device
from her2batch.models.execution.batch_size import BatchSizes, find_batch, is_out_of_memory, memory_of
from her2batch.models.execution.smaller_batches import note_smaller_batch

Precision = Literal["float32", "bfloat16"]

SUB_BATCH: Final = {"cuda": 128, "cpu": 8}
"""Tiles of a forward pass, where no cohort records another number. Fixed, because the last bits of a result depend on
it. On a CPU it is always this one."""


@dataclass(frozen=True)
class Normalization:
    """The input of a network. mean, std: of RGB in 0–1.  px: edge; None: any.  resize: interpolation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    px: int | None = None
    resize: str = "bilinear"


def best_device() -> str:
    """Return 'cuda' where torch finds a GPU, else 'cpu'. A Ray worker finds only a GPU that Ray assigned to it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_number(device: str) -> int | None:
    """Return the number of the GPU that a device is; None for the CPU."""
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return None
    return torch.cuda.current_device() if chosen.index is None else chosen.index


def to_channels_last(network: nn.Module, device: str | torch.device) -> nn.Module:
    """Move a network to a device, its weights in the layout in which convolutions are fastest."""
    move: Any = network.to  # some versions of torch do not declare the argument
    moved: nn.Module = move(device, memory_format=torch.channels_last)
    return moved


def set_deterministic(device: str) -> None:
    """Set up this process for repeatable results: deterministic kernels, one CPU thread, no TF32.

    Call it before a network is loaded. One thread, because sums are split by the number of threads, and the plain loop
    must give the bytes of an actor.  Raises ValueError when the device does not exist.
    """
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{device} was requested, and torch finds no GPU")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; without it no determinism
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms also loads a compiler: 2 s a process
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def check_precision(precision: Precision | None, device: str) -> None:
    """Refuse bfloat16 on a device that computes it slower than float32, or not at all. Raises InputError."""
    if precision == "bfloat16" and product_dtype(device) != torch.bfloat16:
        kind = "graphics card" if torch.device(device).type == "cuda" else "processor"
        what = f"this {kind} has no instructions for bfloat16, the precision of the plan"
        raise InputError(what, None, "give --precision float32, or use a machine that has them")


def run_network(
    net: torch.nn.Module,
    pixels: NDArray[np.uint8] | torch.Tensor,
    normalization: Normalization,
    device: str,
    finish: Callable[[torch.Tensor], torch.Tensor],
    precision: Precision | None = None,
    batch: int | None = None,
) -> NDArray[np.float32]:
    """Run pixels, (n, h, w, 3) uint8, through a network and `finish`: (n, d) float32. n ≥ 1.

    pixels: an array, or a tensor on the network's device, of which no px is copied.
    precision: of the network's products; None: float32 on the CPU, bfloat16 on a GPU that has it.  batch: tiles of a
    forward pass; None: SUB_BATCH.  When the device runs out of memory, the batch is halved, with a note for the run log
    (`collect_smaller_batches`). Raises MemoryError when one tile is too many.
    """
    size = whole = batch or SUB_BATCH[torch.device(device).type]
    out: list[torch.Tensor] = []
    start = 0
    while start < len(pixels):
        try:
            out.append(_run_batch(net, pixels[start : start + size], normalization, device, finish, precision))
            start += size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise MemoryError(f"{device} cannot hold one tile of this network") from error
            size //= 2
            note_smaller_batch(size, whole, device)
            torch.cuda.empty_cache()
    return torch.cat(out).cpu().numpy()


def settle_batch(
    network: str,
    net: torch.nn.Module,
    tile: int,
    normalization: Normalization,
    device: str,
    precision: Precision | None,
    batches: BatchSizes | None,
) -> int | None:
    """Return how many tiles a network gets at once in a cohort, found and recorded at its first use on a GPU.

    network: its name.  tile: edge of the tiles, px.  batches: the cohort's record.  None on a CPU and without a record.
    Raises StoreError for a record that is damaged.
    """
    memory = memory_of(device, batches.share) if batches is not None else None
    if batches is None or memory is None:
        return None

    def run(count: int) -> torch.Tensor:
        tiles = torch.zeros((count, tile, tile, 3), dtype=torch.uint8, device=device)
        return _run_batch(net, tiles, normalization, device, lambda out: out, precision)

    dtype = precision or ("bfloat16" if _uses_bfloat16(device) else "float32")
    return batches.settle(f"{network}-{dtype}", lambda: find_batch(run, memory))


def _uses_bfloat16(device: str) -> bool:
    """Return whether networks run in bfloat16 on a device where the plan names no precision."""
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()


@torch.inference_mode()
def _run_batch(
    net: torch.nn.Module,
    pixels: NDArray[np.uint8] | torch.Tensor,
    normalization: Normalization,
    device: str,
    finish: Callable[[torch.Tensor], torch.Tensor],
    precision: Precision | None,
) -> torch.Tensor:
    kind = torch.device(device).type
    tiles = pixels if isinstance(pixels, torch.Tensor) else copy_to_device(pixels, device)
    x = tiles.permute(0, 3, 1, 2).float().div_(255)  # (n, 3, h, w) over (n, h, w, 3): channels_last as it lies
    px, mode = normalization.px, normalization.resize
    if px is not None and x.shape[-2:] != (px, px):
        x = torch.nn.functional.interpolate(x, (px, px), mode=mode, antialias=True).clamp_(0, 1)
    mean = torch.tensor(normalization.mean, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(normalization.std, device=x.device).view(1, 3, 1, 1)
    x = x.sub_(mean).div_(std)
    halved = _uses_bfloat16(device) if precision is None else precision == "bfloat16"
    with torch.autocast(kind, torch.bfloat16, enabled=halved):
        return finish(net(x)).float()
