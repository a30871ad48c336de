"""Tiles on a device serve the measurements and the networks, wherever they came from."""

import numpy as np
import pytest
import torch

from her2batch.models.device_measurements.measure_tiles import DIFFERENCE_BOUND
from her2batch.models.device_measurements.tile_batch import DeviceTileBatch, tiles_for_network
from her2batch.vision.membrane import TileBatch
from her2batch.vision.stain import Stains
from tests.vision.test_membrane import rings

PIXELS = np.stack([rings(0.5)[:64, :64], np.full((64, 64, 3), 7, np.uint8)])
STAINS = Stains((240.0, 240.0, 240.0), nuclei=0.15)
REFERENCE = TileBatch(PIXELS, 0.5, STAINS)


@pytest.mark.parametrize("tiles", [PIXELS, torch.from_numpy(PIXELS)], ids=["on the host", "on the device"])
def test_a_batch_gives_what_the_reference_gives(tiles: np.ndarray | torch.Tensor) -> None:
    batch = DeviceTileBatch(tiles, 0.5, STAINS, "cpu")
    assert len(batch) == len(REFERENCE) == 2
    assert np.array_equal(batch.pixels, PIXELS)
    assert np.array_equal(batch.tensor.numpy(), PIXELS)
    assert np.array_equal(batch.grey_range, REFERENCE.grey_range)
    assert batch.grey_range[1] == 0
    assert np.abs(batch.features - REFERENCE.features).max() < DIFFERENCE_BOUND
    assert batch.features is batch.features


def test_a_network_gets_the_tiles_from_where_they_lie() -> None:
    on_device = DeviceTileBatch(PIXELS, 0.5, STAINS, "cpu")
    assert tiles_for_network(on_device) is on_device.tensor
    assert tiles_for_network(REFERENCE) is PIXELS


def test_tiles_that_may_not_be_changed_are_copied() -> None:
    fixed = PIXELS.copy()
    fixed.flags.writeable = False
    assert np.array_equal(DeviceTileBatch(fixed, 0.5, STAINS, "cpu").tensor.numpy(), PIXELS)
