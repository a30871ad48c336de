"""Augmentation: flips, rotation by any angle, scale, shift, all in one resampling; brightness and contrast if wanted.

What is drawn and what it does are two things: NumPy draws on any machine, OpenCV applies it on the CPU, torch on a GPU.
On a core OpenCV moves 3,300 pictures/s of 224 px, 750 of 512 px: about as many as a GPU trains on, whose core has other
things to do.
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
"""Of the edge (methods.md §5)."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to n pictures. turn: (n, 2, 2), where a px of the result lies in the source, from their centres.

    shift: (n, 2), x and y, in parts of the edge.  gain, offset: (n,), value → gain · value + offset.
    """

    turn: NDArray[np.float64]
    shift: NDArray[np.float64]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.gain)

    def of(self, rows: NDArray[np.int64]) -> Augmentation:
        """Those of some of the pictures."""
        return Augmentation(self.turn[rows], self.shift[rows], self.gain[rows], self.offset[rows])


def draw_augmentations(n: int, draw: np.random.Generator, settings: ImageSettings) -> Augmentation:
    """Random moves of n pictures. Brightness multiplies, contrast stretches about mid-grey, each by up to ± jitter."""
    angle, scale = draw.uniform(0, 2 * np.pi, n), draw.uniform(*SCALE, n)
    flip = draw.choice((-1.0, 1.0), (n, 2))  # of x, of y
    shift = draw.uniform(-SHIFT, SHIFT, (n, 2))
    brightness, contrast = draw.uniform(1 - settings.jitter, 1 + settings.jitter, (2, n))
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1) * flip[:, None]
    return Augmentation(turn, shift, brightness * contrast, brightness * (1 - contrast) * 127.5)


def augment(pixels: Pixels, draw: np.random.Generator, settings: ImageSettings, fill: NDArray[np.uint8]) -> Pixels:
    """Pictures (n, e, e, 3) uint8, moved at random. fill: (n, 3) or (3,), the colour of what comes in from outside."""
    return apply_augmentations(pixels, draw_augmentations(len(pixels), draw, settings), fill)


def apply_augmentations(pixels: Pixels, moves: Augmentation, fill: NDArray[np.uint8]) -> Pixels:
    """Pictures (n, e, e, 3) uint8 after these moves, bilinear."""
    n, edge = pixels.shape[:2]
    middle = (edge - 1) / 2
    origin = middle + edge * moves.shift - moves.turn.sum(2) * middle  # where (0, 0) of the result lies
    matrices = np.concatenate([moves.turn, origin[:, :, None]], axis=2)
    colours = np.broadcast_to(fill, (n, 3))
    out = np.empty_like(pixels)
    for k in range(n):
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        colour = [float(one) for one in colours[k]]
        cv2.warpAffine(pixels[k], matrices[k], (edge, edge), out[k], how, cv2.BORDER_CONSTANT, colour)
        if moves.gain[k] != 1 or moves.offset[k] != 0:
            table = np.clip(np.rint(np.arange(256) * moves.gain[k] + moves.offset[k]), 0, 255).astype(np.uint8)
            cv2.LUT(out[k], table, out[k])
    return out


def apply_augmentations_on_device(pixels: torch.Tensor, moves: Augmentation, fill: torch.Tensor) -> torch.Tensor:
    """`moved` for a torch batch: (n, e, e, 3) uint8 on any device → the same shape, dtype and device.

    fill: (n, 3) uint8.  Differs from OpenCV's by its fixed-point weights: a grey level where a picture is smooth.
    """
    edge, device = pixels.shape[1], pixels.device
    shift = moves.shift * (2 * edge / (edge - 1))  # from parts of the edge to −1 … 1 between the outer px' centres
    theta = torch.from_numpy(np.concatenate([moves.turn, shift[:, :, None]], axis=2)).float().to(device)
    grid = torch.nn.functional.affine_grid(theta, [len(pixels), 3, edge, edge], align_corners=True)
    ground = fill.float()[:, :, None, None]
    x = pixels.permute(0, 3, 1, 2).float() - ground  # what grid_sample puts outside is 0
    x = (torch.nn.functional.grid_sample(x, grid, "bilinear", "zeros", align_corners=True) + ground).round_()
    gain, offset = (torch.from_numpy(one).float().to(device)[:, None, None, None] for one in (moves.gain, moves.offset))
    return x.mul_(gain).add_(offset).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
