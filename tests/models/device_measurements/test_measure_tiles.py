"""Features measured with torch equal those of the reference: on real and random tiles, and where there is no tissue."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from her2batch.models.device_measurements import measure_tiles as on_device
from her2batch.models.device_measurements.measure_tiles import DIFFERENCE_BOUND, grey_range, measure_tiles_on_device
from her2batch.vision.membrane import FEATURES, measure_tiles
from her2batch.vision.stain import DAB, HAEMATOXYLIN, Stains, fit_stain_vectors
from tests.vision.real import CORES
from tests.vision.test_membrane import rings

WHITE = (240.0, 240.0, 240.0)
STAINS = Stains(WHITE, nuclei=0.15)

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"}
"""Operations of torch whose result the host needs, so that it waits for the device."""


def differences(pixels: NDArray[np.uint8], mpp: float, stains: Stains = STAINS) -> NDArray[np.float32]:
    found = measure_tiles_on_device(torch.from_numpy(pixels), mpp, stains)
    assert found.dtype == torch.float32
    return np.abs(found.numpy() - measure_tiles(pixels, mpp, stains))


def random_tiles(seed: int, edge: int) -> NDArray[np.uint8]:
    """Return tiles of random stains: spots of haematoxylin and DAB, noise, and in places pen or black padding."""
    rng = np.random.default_rng(seed)
    coarse = rng.gamma(0.7, 0.35, (2, 2, edge // 4, edge // 4)).repeat(4, axis=2).repeat(4, axis=3)
    od = (
        coarse[0][..., None] * HAEMATOXYLIN
        + coarse[1][..., None] * DAB
        + rng.normal(0, 0.01, (2, *coarse.shape[2:], 1))
    )
    pixels = np.clip(240 * 10**-od, 0, 255).round().astype(np.uint8)
    at, kind = rng.integers(0, edge // 2), seed % 3
    if kind:
        pixels[:, at : at + edge // 3, : edge // 2] = ((25, 55, 170), (0, 0, 0))[kind - 1]
    return pixels


@pytest.mark.parametrize("name", CORES)
def test_features_of_real_tissue_equal_the_reference(real_data: Path, name: str) -> None:
    core = cv2.imread(str(real_data / "her2_cores" / CORES[name]), cv2.IMREAD_REDUCED_COLOR_2)[..., ::-1]
    middle = core.shape[0] // 2, core.shape[1] // 2
    pixels = np.stack([core[middle[0] :, middle[1] - shift :][:224, :224] for shift in (-300, 0, 300)])
    stains = fit_stain_vectors(pixels, WHITE, 0.5)
    assert differences(pixels, 0.5, stains).max() < DIFFERENCE_BOUND


@given(st.integers(0, 10_000), st.sampled_from([64, 96]), st.sampled_from([0.25, 0.5, 1.0]))
@settings(deadline=None, max_examples=15, derandomize=True)
def test_features_of_random_tiles_equal_the_reference(seed: int, edge: int, mpp: float) -> None:
    gaps = differences(random_tiles(seed, edge), mpp)
    assert gaps.max() < max(DIFFERENCE_BOUND, 2 / edge**2)  # two px on the other side of a threshold


@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0])
def test_features_under_pen_equal_the_reference(mpp: float) -> None:
    tile = rings(0.5)
    tile[100:150, 60:90] = (25, 55, 170)
    assert differences(tile[None], mpp).max() < DIFFERENCE_BOUND


def test_tiles_of_one_colour_equal_the_reference() -> None:
    colours = [(0, 0, 0), (255, 255, 255), (240, 240, 240), (1, 1, 1), (120, 60, 20), (25, 55, 170), (255, 0, 0)]
    pixels = np.ones((len(colours), 64, 64, 3), np.uint8) * np.array(colours, np.uint8)[:, None, None]
    assert differences(pixels, 0.5).max() < DIFFERENCE_BOUND
    assert grey_range(torch.from_numpy(pixels)).tolist() == [0, 0, 0, 0, 100, 145, 255]


def test_tiles_smaller_than_a_window_equal_the_reference() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert differences(pixels, 0.1).max() < DIFFERENCE_BOUND


def test_no_tiles_have_no_features() -> None:
    assert measure_tiles_on_device(torch.empty((0, 32, 32, 3), dtype=torch.uint8), 0.5, STAINS).shape == (
        0,
        len(FEATURES),
    )


def test_a_tile_has_the_same_features_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.from_numpy(np.concatenate([random_tiles(seed, 64) for seed in range(3)]))
    whole = measure_tiles_on_device(pixels, 0.5, STAINS)
    monkeypatch.setattr(on_device, "PX_PER_PASS", 2 * 64 * 64)
    assert torch.equal(measure_tiles_on_device(pixels, 0.5, STAINS), whole)


def operations(work: Callable[[], object]) -> set[str]:
    """Return the names of torch's operations that a function runs."""
    with torch.autograd.profiler.profile() as profile:
        work()
    return {event.name.removeprefix("aten::") for event in profile.function_events}


def test_nothing_waits_for_the_device() -> None:
    pixels = torch.from_numpy(random_tiles(1, 64))
    assert operations(lambda: bool(pixels[0, 0, 0, 0] > 0)) & WAITING  # such an operation would be seen
    names = operations(lambda: measure_tiles_on_device(pixels, 0.5, STAINS))
    assert len(names) > 10
    assert not names & WAITING
