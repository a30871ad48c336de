"""Lens, sensor and tone curve of the scanner of synthetic slides."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.synthetic.noise import Map

FINE_PX, WIDE_PX = 0.9, 2.2
"""σ of the lens's blur, and of the blur that sharpening subtracts."""

SHARPENING = 0.5
"""Weight of the scanner's sharpening."""


def soft_edge(inside: Map, width: float) -> Map:
    """Return a ramp from 0 to 1 over `width`, ½ where `inside` is 0."""
    return np.asarray(np.clip(inside / np.float32(width) + np.float32(0.5), 0, 1), np.float32)


def blur_and_sharpen(stain: Map, blur_px: float = 0.0) -> Map:
    """Imitate lens and scanner: a slight blur, then sharpening, which leaves pale rims.  blur_px: σ of more blur."""
    fine, wide = (cv2.GaussianBlur(stain, (0, 0), float(np.hypot(sigma, blur_px))) for sigma in (FINE_PX, WIDE_PX))
    return np.asarray(cv2.addWeighted(fine, 1 + SHARPENING, wide, -SHARPENING, 0), np.float32)


def to_rgb(od: Map, sensor: Map, black: float = 0.0, gamma: float = 1.0) -> NDArray[np.uint8]:
    """Convert optical density to grey values with photon noise, whose σ grows with the square root of the light.

    black, gamma: the scanner's tone curve: the share of full light that becomes black, then the exponent.
    """
    root = cv2.exp(od * np.float32(-np.log(10) / 2))
    light = root * (root + sensor)
    if (black, gamma) == (0.0, 1.0):
        return np.asarray(cv2.convertScaleAbs(light), np.uint8)
    stretched = np.maximum(light / np.float32(255) - np.float32(black), 0) / np.float32(1 - black)
    return np.asarray(cv2.convertScaleAbs(cv2.pow(stretched, gamma), alpha=255), np.uint8)
