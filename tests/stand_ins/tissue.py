"""Pictures of synthetic tissue in the sizes of the real slides and cores."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.synthetic.painting import paint_slide
from her2batch.synthetic.specimen import TYPICAL_MIXES, CellMix, SlideTruth, make_tissue

Image = NDArray[np.uint8]

PAINTED_PX = 2000
PATCH_PX = 1024
"""Edge of a painted slide, and of the square in its middle that holds nothing but tissue."""


class Core(NamedTuple):
    """A HER2 core: its file's name, its mix of cells, the share of its image that is tissue, its random seed, its edge
    in px.
    """  # fmt: skip

    filename: str
    mix: CellMix
    tissue: float
    seed: int
    size: int = 5468


CORES = (
    Core("0_9b0f64d1-6785-49d9-b279-004b2deb8478.jpg", TYPICAL_MIXES["0"], 0.48, 2),
    Core("1_fb95908d-1b06-4e32-b422-134b23154c8a.jpg", TYPICAL_MIXES["1+"], 0.62, 5),
    Core("2_726fa489-3deb-4d06-ae5c-8f20bd3f3025.jpg", CellMix(0.40, 0.40, 0.19, 0.01), 0.65, 6),
    Core("2_a5593c5e-5c9c-4499-bfab-3aebe3ef4b7f.jpg", CellMix(0.15, 0.30, 0.50, 0.05), 0.57, 15, 5467),
    Core("3_a1f1510c-b91e-4995-ba59-596ca7ebb019.jpg", TYPICAL_MIXES["3+"], 0.57, 16),
)
"""Two cores are 2+: the first has few complete membranes, the second many."""

CORE_MPP = 0.25


def paint_core(core: Core) -> Image:
    """A round HER2 core at 0.25 µm/px: (size, size, 3) uint8 RGB."""
    patch, white = _ihc_patch(core.mix, core.seed)
    return _on_glass(patch, white, (core.size, core.size), core.tissue, CORE_MPP, core.seed)


def paint_ihc_field(seed: int, size: int = 512) -> Image:
    """A field of DAB-stained tissue: (size, size, 3) uint8 RGB."""
    return _ihc_patch(TYPICAL_MIXES["3+"], seed)[0][:size, :size].copy()


def paint_he_slide(size: tuple[int, int], tissue: float, mpp: float, seed: int) -> Image:
    """A slide stained with haematoxylin and eosin. size: width, height, px. Returns (height, width, 3) uint8 RGB."""
    truth = SlideTruth(f"he-{seed}", TYPICAL_MIXES["0"], width=PAINTED_PX, height=PAINTED_PX, mpp=mpp, kind="he")
    specimen = make_tissue(truth, seed)
    look = specimen.appearance
    painted = paint_slide(specimen.cells, specimen.fields, specimen.noise, look, (PAINTED_PX, PAINTED_PX))
    return _on_glass(_middle(painted), look.white, size, tissue, mpp, seed)


def _ihc_patch(mix: CellMix, seed: int) -> tuple[Image, tuple[float, float, float]]:
    """A square of nothing but tissue, and the colour of the glass round it."""
    truth = SlideTruth(f"core-{seed}", mix, site="south", width=PAINTED_PX, height=PAINTED_PX, mpp=CORE_MPP)
    specimen = make_tissue(truth, seed)
    size = PAINTED_PX, PAINTED_PX
    painted = paint_slide(specimen.cells, specimen.fields, specimen.noise, specimen.appearance, size)
    return _middle(painted), specimen.appearance.white


def _middle(painted: Image) -> Image:
    start = (PAINTED_PX - PATCH_PX) // 2
    return painted[start : start + PATCH_PX, start : start + PATCH_PX]


def _on_glass(
    patch: Image, white: tuple[float, float, float], size: tuple[int, int], share: float, mpp: float, seed: int
) -> Image:
    """One piece of tissue that covers `share` of the image; it repeats the patch, mirrored at each seam."""
    width, height = size
    rng = np.random.default_rng(seed)
    strip = np.concatenate([patch, patch[:, ::-1]], axis=1)
    square = np.concatenate([strip, strip[::-1]], axis=0)
    edge = square.shape[0]
    image = np.tile(square, (-(-height // edge), -(-width // edge), 1))[:height, :width]
    noise = rng.normal(white, 1.6, (512, 512, 3)).clip(0, 255).astype(np.uint8)
    glass = np.tile(noise, (-(-height // 512), -(-width // 512), 1))[:height, :width]
    inside = cv2.resize(_outline(rng, width, height, share, mpp), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(inside[..., None] > 0, image, glass)


def _outline(rng: np.random.Generator, width: int, height: int, share: float, mpp: float) -> NDArray[np.float32]:
    """Positive inside the piece, on a grid of about 8 µm: an ellipse whose radius swings a little with the angle."""
    step = max(1, round(8 / mpp))
    h, w = max(8, height // step), max(8, width // step)
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    angle = np.arctan2(y, x)
    swing = 1 + sum(rng.normal(0, 0.04 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    distance = np.hypot(x, y) / swing
    return np.asarray(np.quantile(distance, share) - distance, np.float32)
