"""Tiles of one slide on a device: one copy of their pixels serves the measurements and the networks."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from her2batch.models.device_measurements.measure_tiles import grey_range, measure_tiles_on_device
from her2batch.vision.membrane import TileBatch
from her2batch.vision.stain import Stains


class DeviceTileBatch(TileBatch):
    """Tiles that lie on the host, on a device, or on both; they are copied when they are first needed on the other."""

    def __init__(self, tiles: NDArray[np.uint8] | torch.Tensor, mpp: float, stains: Stains, device: str) -> None:
        """tiles: (n, t, t, 3) uint8 at mpp µm/px.  device: on which they are measured."""
        self.mpp, self.stains, self.precomputed, self._device = mpp, stains, None, device
        self._n_tiles = len(tiles)
        if isinstance(tiles, torch.Tensor):
            self.__dict__["tensor"] = tiles
        else:
            self.__dict__["pixels"] = tiles

    def __len__(self) -> int:
        return self._n_tiles

    @cached_property
    def tensor(self) -> torch.Tensor:
        """The tiles on the device: (n, t, t, 3) uint8."""
        return copy_to_device(self.pixels, self._device)

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:  # type: ignore[override]  # computed where it is needed
        """The tiles on the host: (n, t, t, 3) uint8."""
        return self.tensor.cpu().numpy()

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """Features of the tiles, (n, len(FEATURES)) float32, computed on the device at most once."""
        return measure_tiles_on_device(self.tensor, self.mpp, self.stains).cpu().numpy()

    @property
    def grey_range(self) -> NDArray[np.uint8]:
        """Difference between the largest and the smallest value of each tile, computed on the device: (n,) uint8."""
        return grey_range(self.tensor).cpu().numpy()


def copy_to_device(pixels: NDArray[np.uint8], device: str) -> torch.Tensor:
    """Copy pixels to a device: an array as it is where the device is the CPU. uint8 is a quarter of float32."""
    tiles = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    if torch.device(device).type != "cuda":
        return tiles
    return tiles.pin_memory().to(device, non_blocking=True)


def tiles_for_network(batch: TileBatch) -> NDArray[np.uint8] | torch.Tensor:
    """Return the tiles of a batch where they lie: on the device, if they are needed there anyway."""
    return batch.tensor if isinstance(batch, DeviceTileBatch) else batch.pixels
