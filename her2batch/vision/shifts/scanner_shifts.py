"""Shifts of an image as another scanner, or another staining, would cause: white point, tone curve, JPEG, blur, scale,
DAB. They change whole arrays and know no slide.

The ranges are those of `synthetic.laboratory`; it names the source of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from her2batch.vision.stain import Stains, Vector, optical_density, separate_stains

Kind = Literal["none", "white", "gamma", "jpeg", "blur", "scale", "dab"]


@dataclass(frozen=True)
class ScannerShift:
    """One shift. name: for readers.

    value: gamma, an exponent · jpeg, the quality · blur, σ in µm · scale, the true µm/px over the stated · dab, a
    factor of the optical density of DAB.  channels: white, a factor of R, G and B.
    """

    name: str
    kind: Kind
    value: float = 1.0
    channels: Vector = (1.0, 1.0, 1.0)

    @property
    def changes_colour(self) -> bool:
        """Whether the shift changes the colour of large areas, so that it shows in a thumbnail."""
        return self.kind in ("white", "gamma", "dab")


UNCHANGED: Final = ScannerShift("unchanged", "none")

SHIFTS: Final = (
    ScannerShift("white point warm", "white", channels=(1.0, 0.98, 0.92)),
    ScannerShift("white point dim", "white", channels=(0.85, 0.85, 0.85)),
    ScannerShift("gamma 0.85", "gamma", 0.85),
    ScannerShift("gamma 1.2", "gamma", 1.2),
    ScannerShift("JPEG quality 50", "jpeg", 50),
    ScannerShift("blur 0.35 µm", "blur", 0.35),
    ScannerShift("scale 0.93", "scale", 0.93),
    ScannerShift("scale 1.07", "scale", 1.07),
    ScannerShift("DAB × 0.7", "dab", 0.7),
    ScannerShift("DAB × 0.85", "dab", 0.85),
    ScannerShift("DAB × 1.2", "dab", 1.2),
    ScannerShift("DAB × 1.4", "dab", 1.4),
)
"""The twelve shifts of a stress test."""


def shift_image(rgb: NDArray[np.uint8], shift: ScannerShift, mpp: float, stains: Stains) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) uint8 as the shift leaves it, of the same shape.

    mpp: µm/px of the image.  stains: of the unchanged slide, by which its DAB is found.  The shift `scale` is one of
    the place that is read, not of the image, which is returned as it is.
    """
    match shift.kind:
        case "white":
            return _apply_tables(rgb, np.arange(256)[:, None] * np.asarray(shift.channels))
        case "gamma":
            return _apply_tables(rgb, np.repeat(255 * (np.arange(256)[:, None] / 255) ** shift.value, 3, axis=1))
        case "jpeg":
            return _compress(rgb, round(shift.value))
        case "blur":
            return np.asarray(cv2.GaussianBlur(rgb, (0, 0), shift.value / mpp), np.uint8)
        case "dab":
            return scale_dab(rgb, shift.value, stains)
    return rgb


def scale_dab(rgb: NDArray[np.uint8], factor: float, stains: Stains) -> NDArray[np.uint8]:
    """Return an image whose optical density of DAB is multiplied; haematoxylin and the rest stay.

    The density is that of colour deconvolution (Ruifrok & Johnston 2001) with the slide's own stains. Px without DAB
    stay as they are. Light only falls with a factor above 1, and only rises with one below.
    """
    od = optical_density(rgb, stains.white)
    dab = np.maximum(separate_stains(od, stains).d, 0)
    light = np.empty(rgb.shape, np.float32)
    for k, share in enumerate(stains.dab):
        light[..., k] = rgb[..., k] * np.power(np.float32(10), dab * np.float32(-(factor - 1) * share))
    return np.asarray(np.rint(np.clip(light, 0, 255)), np.uint8)


def _apply_tables(rgb: NDArray[np.uint8], tables: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Replace each grey value by that of its channel's table. tables: (256, 3)."""
    table = np.rint(np.clip(tables, 0, 255)).astype(np.uint8)
    return np.asarray(cv2.LUT(np.ascontiguousarray(rgb), table[None]), np.uint8)


def _compress(rgb: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Return the image after JPEG compression with chroma at half the resolution."""
    stream = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])
