"""Drawn cells: nuclei, rings, clumps and nets of known place and density."""

import numpy as np
from numpy.typing import NDArray

from her2batch.vision.cells.detection import CellReference
from her2batch.vision.stain import DAB, HAEMATOXYLIN, Stains

WHITE = 240.0
MPP = 0.5
STAINS = Stains((WHITE,) * 3, nuclei=0.2)
REFERENCE = CellReference(
    nuclei=0.2, nuclei_and_dab=0.24, faint=0.04, moderate=0.14, intense=0.30, background=0.0, negative=0.0,
    hue_spread=0.3, foreign=0.02,
)  # fmt: skip
SAMPLES = 4
"""Samples a px and axis."""


class Canvas:
    """An empty block of optical density on which cells are drawn. Places and sizes in µm."""

    def __init__(self, width: float, height: float, mpp: float = MPP) -> None:
        edge = mpp / SAMPLES
        rows, columns = round(height / mpp) * SAMPLES, round(width / mpp) * SAMPLES
        self.y, self.x = (np.mgrid[:rows, :columns] + 0.5) * edge
        self.h, self.d = np.zeros((rows, columns)), np.zeros((rows, columns))

    def nucleus(self, x: float, y: float, radius: float = 3.5, h: float = 0.25, d: float = 0.0, stretch: float = 1.0):
        inside = np.hypot((self.x - x) / stretch, (self.y - y) * stretch) < radius
        self.h[inside], self.d[inside] = h, self.d[inside] + d

    def ring(self, x: float, y: float, d: float, share: float = 1.0, radius: float = 5.5, width: float = 1.0):
        off = np.hypot(self.x - x, self.y - y) - radius
        angle = (np.arctan2(self.y - y, self.x - x) / (2 * np.pi) % 1) < share
        self.d[(abs(off) < width / 2) & angle] = d

    def clump(self, x: float, y: float, d: float, radius: float = 1.0):
        self.d[np.hypot(self.x - x, self.y - y) < radius] = d

    def pixels(self, background: float = 0.0) -> NDArray[np.uint8]:
        """Return the block as (H, W, 3) uint8, with `background` DAB everywhere."""
        od = self.h[..., None] * np.asarray(HAEMATOXYLIN) + (self.d + background)[..., None] * np.asarray(DAB)
        light = WHITE * 10**-od
        rows, columns = light.shape[0] // SAMPLES, light.shape[1] // SAMPLES
        return np.round(light.reshape(rows, SAMPLES, columns, SAMPLES, 3).mean(axis=(1, 3))).astype(np.uint8)
