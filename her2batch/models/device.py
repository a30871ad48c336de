"""Running a network over tiles: uint8 to the device, normalised there, in batches that fill it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from her2batch.errors import SlideError

BATCH = {"cuda": 256, "cpu": 16}
"""Tiles a pass. One slide's batches are always cut the same way, whatever else runs: bytes depend on their shape."""


class Runner:
    """A frozen network on a device: (n, h, w, 3) uint8 → (n, d) float32.

    On a GPU: bf16 autocast, channels-last, pinned and non-blocking copies; a batch that does not fit is halved. On a
    CPU: float32 on one thread, so that every CPU of a kind gives the same bytes.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        device: str,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        pool: Callable[[torch.Tensor], torch.Tensor] = lambda out: out,
    ) -> None:
        self._device = torch.device(device if device != "cuda" or torch.cuda.is_available() else "cpu")
        self._net = net.eval().requires_grad_(False).to(self._device, memory_format=torch.channels_last)
        self._mean = torch.tensor(mean, device=self._device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(std, device=self._device).view(1, 3, 1, 1) * 255
        self._pool = pool
        self._batch = BATCH[self._device.type]
        if self._device.type == "cpu":
            torch.set_num_threads(1)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One row a tile."""
        parts: list[torch.Tensor] = []
        start = 0
        while start < len(pixels):
            part = pixels[start : start + self._batch]
            try:
                parts.append(self._forward(part))
            except torch.cuda.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                if self._batch == 1:
                    raise SlideError("out-of-memory", "", "one tile does not fit the GPU") from error
                self._batch //= 2
                continue
            start += len(part)
        return torch.cat(parts).cpu().numpy() if parts else np.empty((0, 0), np.float32)

    @torch.inference_mode()
    def _forward(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        raw = torch.from_numpy(np.ascontiguousarray(pixels))
        gpu = self._device.type == "cuda"
        if gpu:
            raw = raw.pin_memory()
        batch = raw.to(self._device, non_blocking=gpu).permute(0, 3, 1, 2)  # (n, 3, h, w), channels last in memory
        batch = (batch.float() - self._mean) / self._std
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=gpu):
            out = self._pool(self._net(batch))
        return out.float()
