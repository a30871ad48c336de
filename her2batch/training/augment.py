"""Augmentation: flips, rotation by any angle, scale and shift in one resampling; optional changes of the colours.

Brightness and contrast change stained tissue and background alike. The density of the stains is another way to change
colours: p = b · (p₀ / b)^d, with the background b of the image, multiplies the optical density −log(p₀ / b) of each
colour by d and leaves the background as it is (Beer-Lambert; Tellez et al., Med. Image Anal. 2019). It is mild, because
the intensity of the stain is what is scored.

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

OF_COLOUR: Final = 0.5
"""Part of the jitter of stain density that is drawn for each colour on its own; all of it is drawn for all at once."""


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of n images.

    turn: (n, 2, 2), from a px of the result to its position in the source, both from the centre.  shift: (n, 2), x and
    y, in parts of the edge.  gain, offset: (n,), value → gain · value + offset.  density: (n, 3), factors of the
    optical density of red, green and blue; None: 1.
    """

    turn: NDArray[np.float64]
    shift: NDArray[np.float64]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]
    density: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.gain)

    def of(self, rows: NDArray[np.int64]) -> Augmentation:
        """Return the augmentation of some of the images."""
        density = None if self.density is None else self.density[rows]
        return Augmentation(self.turn[rows], self.shift[rows], self.gain[rows], self.offset[rows], density)


def draw_augmentations(n: int, rng: np.random.Generator, settings: ImageSettings) -> Augmentation:
    """Draw the augmentation of n images. Brightness multiplies, contrast stretches about mid-grey, up to ± jitter."""
    angle, scale = rng.uniform(0, 2 * np.pi, n), rng.uniform(*SCALE, n)
    flip = rng.choice((-1.0, 1.0), (n, 2))  # of x, of y
    shift = rng.uniform(-SHIFT, SHIFT, (n, 2))
    brightness, contrast = rng.uniform(1 - settings.jitter, 1 + settings.jitter, (2, n))
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    if settings.right_angles > 0:
        quarter, only_right = rng.integers(4, size=n), rng.random(n) < settings.right_angles
        cos = np.where(only_right, np.array([1, 0, -1, 0])[quarter], cos)
        sin = np.where(only_right, np.array([0, 1, 0, -1])[quarter], sin)
        shift[only_right] = 0
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1) * flip[:, None]
    gain, offset = brightness * contrast, brightness * (1 - contrast) * 127.5
    return Augmentation(turn, shift, gain, offset, _draw_density(n, rng, settings.stain_jitter))


def _draw_density(n: int, rng: np.random.Generator, jitter: float) -> NDArray[np.float64] | None:
    """Draw factors of the optical density, (n, 3): one of all colours times one of each colour. None without jitter."""
    if jitter == 0:
        return None
    own = jitter * OF_COLOUR
    return np.asarray(rng.uniform(1 - jitter, 1 + jitter, (n, 1)) * rng.uniform(1 - own, 1 + own, (n, 3)))


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
        if augmentation.density is not None:
            cv2.LUT(out[k], _density_table(augmentation.density[k], colours[k]), out[k])
        gain, offset = augmentation.gain[k], augmentation.offset[k]
        if gain != 1 or offset != 0:
            table = np.clip(np.rint(np.arange(256) * gain + offset), 0, 255).astype(np.uint8)
            cv2.LUT(out[k], table, out[k])
    return out


def _density_table(density: NDArray[np.float64], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the new value of every value of each colour: (256, 1, 3)."""
    white = np.maximum(background, 1).astype(np.float64)
    values = white * (np.arange(256)[:, None] / white) ** density
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)[:, None]


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
    if augmentation.density is not None:
        white = background.clamp(min=1)
        density = torch.from_numpy(augmentation.density).float().to(device)[:, :, None, None]
        x = (white * (x / white) ** density).round_()
    gain, offset = (
        torch.from_numpy(values).float().to(device)[:, None, None, None]
        for values in (augmentation.gain, augmentation.offset)
    )
    return x.mul_(gain).add_(offset).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
