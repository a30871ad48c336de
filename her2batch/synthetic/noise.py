"""Periodic noise from which grain, staining, fibres and the sensor of synthetic slides take their irregularity."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Map = NDArray[np.float32]

SENSOR_NOISE = np.float32(0.1)
"""σ of the noise of a grey value, divided by the value's square root: 1.6 on white background, as on real scans."""

NOISE_PX = 768
"""Edge of the periodic noise, px: at least a painted block and its margins."""


class NoiseFields(NamedTuple):
    """Periodic noise, (2 · NOISE_PX, 2 · NOISE_PX) float32, σ 1; two periods wide, so that any window is a view.

    grain: specks of 0.3 µm.  mottle: patches of 1.6 µm, but uniform in 0–1.  drift_x, drift_y: swirls of 5 µm.
    sensor: (…, …, 3), single px, σ SENSOR_NOISE.  fibre: (4 · NOISE_PX, 4 · NOISE_PX) uint8, streaks along x, mean 96,
    σ 48.
    """

    grain: Map
    mottle: Map
    drift_x: Map
    drift_y: Map
    sensor: Map
    fibre: NDArray[np.uint8]


def make_noise_fields(rng: np.random.Generator, mpp: float) -> NoiseFields:
    """Draw the noise of a slide."""
    grain, mottle, drift_x, drift_y = (_periodic_noise(rng, um / mpp, um / mpp) for um in (0.3, 1.6, 5.0, 5.0))
    ripple = _periodic_noise(rng, 0.8 / mpp, 0.8 / mpp)
    drift_x, drift_y = (
        drift_x + np.float32(0.14) * ripple,
        drift_y + np.float32(0.14) * np.roll(ripple, NOISE_PX // 2, 1),
    )
    fibre = np.clip(96 + 48 * _periodic_noise(rng, 6.0 / mpp, 0.36 / mpp), 0, 255).astype(np.uint8)
    sensor = SENSOR_NOISE * rng.standard_normal((NOISE_PX, NOISE_PX, 3), np.float32)
    grain, mottle, drift_x, drift_y = (np.tile(one, (2, 2)) for one in (grain, ndtr(mottle), drift_x, drift_y))
    return NoiseFields(grain, mottle, drift_x, drift_y, np.tile(sensor, (2, 2, 1)), np.tile(fibre, (4, 4)))


def _periodic_noise(rng: np.random.Generator, sigma_x: float, sigma_y: float) -> Map:
    """Return smooth periodic noise: (NOISE_PX, NOISE_PX) float32, mean 0, σ 1."""
    noise = rng.standard_normal((NOISE_PX, NOISE_PX), np.float32)
    rim = int(3 * max(sigma_x, sigma_y)) + 1
    padded = np.pad(noise, rim, mode="wrap")
    smooth = cv2.GaussianBlur(padded, (0, 0), sigma_x, sigmaY=sigma_y)[rim:-rim, rim:-rim]
    return np.asarray((smooth - smooth.mean()) / smooth.std(), np.float32)
