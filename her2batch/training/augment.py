"""Augmentation: flips, rotation by any angle, scale and shift in one resampling; optional brightness and contrast.

Drawing and applying are separate: NumPy draws on any machine, OpenCV applies on the CPU, torch on a GPU. On one core
OpenCV transforms 3,300 images/s of 224 px and 750 of 512 px, about as many as a GPU trains on, whose core is needed for
other work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from her2batch.settings import ImageSettings

Pixels = NDArray[np.uint8]

SCALE: Final = (0.9, 1.1)
SHIFT: Final = 0.05
"""Largest shift, in parts of the edge (methods.md §5)."""


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of n images.

    turn: (n, 2, 2), from a px of the result to its position in the source, both from the centre.  shift: (n, 2), x and
    y, in parts of the edge.  gain, offset: (n,), value → gain · value + offset.
    """

    turn: NDArray[np.float64]
    shift: NDArray[np.float64]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.gain)

    def of(self, rows: NDArray[np.int64]) -> Augmentation:
        """Return the augmentation of some of the images."""
        return Augmentation(self.turn[rows], self.shift[rows], self.gain[rows], self.offset[rows])


def draw_augmentations(n: int, rng: np.random.Generator, settings: ImageSettings) -> Augmentation:
    """Draw the augmentation of n images. Brightness multiplies, contrast stretches about mid-grey, up to ± jitter."""
    angle, scale = rng.uniform(0, 2 * np.pi, n), rng.uniform(*SCALE, n)
    flip = rng.choice((-1.0, 1.0), (n, 2))  # of x, of y
    shift = rng.uniform(-SHIFT, SHIFT, (n, 2))
    brightness, contrast = rng.uniform(1 - settings.jitter, 1 + settings.jitter, (2, n))
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1) * flip[:, None]
    return Augmentation(turn, shift, brightness * contrast, brightness * (1 - contrast) * 127.5)


def augment(pixels: Pixels, rng: np.random.Generator, settings: ImageSettings, fill: NDArray[np.uint8]) -> Pixels:
    """Augment images, (n, e, e, 3) uint8, at random. fill: (n, 3) or (3,), the colour outside the images."""
    return apply_augmentations(pixels, draw_augmentations(len(pixels), rng, settings), fill)


def apply_augmentations(pixels: Pixels, augmentation: Augmentation, fill: NDArray[np.uint8]) -> Pixels:
    """Apply an augmentation to images, (n, e, e, 3) uint8, with bilinear interpolation."""
    n, edge = pixels.shape[:2]
    middle = (edge - 1) / 2
    origin = middle + edge * augmentation.shift - augmentation.turn.sum(2) * middle  # where (0, 0) of the result lies
    matrices = np.concatenate([augmentation.turn, origin[:, :, None]], axis=2)
    colours = np.broadcast_to(fill, (n, 3))
    out = np.empty_like(pixels)
    for k in range(n):
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        colour = [float(value) for value in colours[k]]
        cv2.warpAffine(pixels[k], matrices[k], (edge, edge), out[k], flags, cv2.BORDER_CONSTANT, colour)
        gain, offset = augmentation.gain[k], augmentation.offset[k]
        if gain != 1 or offset != 0:
            table = np.clip(np.rint(np.arange(256) * gain + offset), 0, 255).astype(np.uint8)
            cv2.LUT(out[k], table, out[k])
    return out


def apply_augmentations_on_device(pixels: torch.Tensor, augmentation: Augmentation, fill: torch.Tensor) -> torch.Tensor:
    """Apply an augmentation to a torch batch: (n, e, e, 3) uint8 → the same shape, dtype and device.

    fill: (n, 3) uint8.  Differs from OpenCV, which has fixed-point weights, by one grey level where an image is smooth.
    """
    edge, device = pixels.shape[1], pixels.device
    scale = 2 * edge / (edge - 1)  # from parts of the edge to −1 … 1 between the centres of the outer px
    shift = augmentation.shift * scale
    theta = torch.from_numpy(np.concatenate([augmentation.turn, shift[:, :, None]], axis=2)).float().to(device)
    grid = torch.nn.functional.affine_grid(theta, [len(pixels), 3, edge, edge], align_corners=True)
    background = fill.float()[:, :, None, None]
    x = pixels.permute(0, 3, 1, 2).float() - background  # grid_sample fills the outside with 0
    x = (torch.nn.functional.grid_sample(x, grid, "bilinear", "zeros", align_corners=True) + background).round_()
    gain, offset = (
        torch.from_numpy(values).float().to(device)[:, None, None, None]
        for values in (augmentation.gain, augmentation.offset)
    )
    return x.mul_(gain).add_(offset).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
