"""The extent of tissue and artefacts on a synthetic slide, and smooth noise, all from generators seeded by keys."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np

from her2batch.synthetic.noise import Map

Artefact = Literal["pen", "fold", "blur", "bubble"]
ARTEFACTS: tuple[Artefact, ...] = ("pen", "fold", "blur", "bubble")


def rng_for(seed: int, *key: str | int) -> np.random.Generator:
    """Return the random generator of a key (a slide, a patient), independent of the order of calls."""
    digest = hashlib.sha256(repr(key).encode()).digest()[:8]
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Map:
    """Return smooth noise: (h, w) float32, mean 0, σ 1."""
    noise = cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-6), np.float32)


def tissue_outline(rng: np.random.Generator, shape: tuple[int, int], um: float, pieces: int) -> Map:
    """Return one to three adjacent pieces of tissue: (h, w) float32, approximate distance inside the outline in µm.

    Each piece is an ellipse whose radius varies with the angle (harmonics 2 to 7).
    """
    h, w = shape
    y, x = np.mgrid[:h, :w].astype(np.float32)
    wide = w >= h
    long, across = (x, y) if wide else (y, x)
    length, breadth = (w, h) if wide else (h, w)
    ends = np.cumsum(np.r_[0.0, rng.dirichlet([12.0] * pieces)]) * length
    out = np.full(shape, -np.inf, np.float32)
    for start, end in pairwise(ends):
        radii = (end - start) * rng.uniform(0.38, 0.43), breadth * rng.uniform(0.36, 0.42)
        dx = (long - (start + end) / 2) / radii[0]
        dy = (across - breadth / 2 - rng.uniform(-0.03, 0.03) * breadth) / radii[1]
        angle, radius = np.arctan2(dy, dx), np.ones(shape)
        for k in range(2, 8):
            radius += rng.normal(0, 0.16 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        out = np.maximum(out, ((radius - np.hypot(dx, dy)) * min(radii) * um).astype(np.float32))
    return out


def artefact_outline(name: Artefact, rng: np.random.Generator, tissue: Map, um: float) -> Map:
    """Return the extent of an artefact: (h, w) float32, µm inside its outline, on the tissue's grid of `um` µm/px."""
    h, w = tissue.shape
    inside = np.argwhere(tissue > 0.3 * tissue.max())
    cy, cx = inside[rng.integers(len(inside))].astype(float)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    if name in ("blur", "bubble"):
        radius = um * min(h, w) * (rng.uniform(0.16, 0.24) if name == "blur" else rng.uniform(0.07, 0.12))
        return np.asarray(radius - um * np.hypot((x - cx) * rng.uniform(0.8, 1.25), y - cy), np.float32)
    if name == "fold":
        angle, half = rng.uniform(0, np.pi), rng.uniform(14, 26)
        along = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) * um
        off = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) * um + 25 * np.sin(along / rng.uniform(80, 160))
        return np.asarray(np.minimum(half - np.abs(off), 0.35 * um * min(h, w) - np.abs(along)), np.float32)
    return _pen_stroke(rng, (cx, cy), tissue.shape, um)


def _pen_stroke(rng: np.random.Generator, centre: tuple[float, float], shape: tuple[int, ...], um: float) -> Map:
    """Return the extent of a pen stroke, an arc around the centre: (h, w) float32, µm inside its outline."""
    h, w = shape
    radius, start = min(h, w) * rng.uniform(0.2, 0.35), rng.uniform(0, 2 * np.pi)
    angles = start + np.linspace(0, rng.uniform(1.5, 4.5), 60)
    wobble = 1 + 0.12 * np.sin(2.3 * angles + start)
    points = np.stack([centre[0] + radius * wobble * np.cos(angles), centre[1] + radius * wobble * np.sin(angles)], 1)
    canvas = np.full((h, w), 255, np.uint8)
    cv2.polylines(canvas, [np.round(points).astype(np.int32)], False, 0, 1)
    half = min(rng.uniform(60, 100), 0.09 * um * min(h, w))
    return np.asarray(half - um * cv2.distanceTransform(canvas, cv2.DIST_L2, 5), np.float32)
