"""Synthetic slides with on-slide controls: pieces of known class in a column at the label's end, beside the patient's.

The truth of each control is its class and its mask. Results on these slides describe the software, not medicine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from her2batch.synthetic.painting import paint_slide
from her2batch.synthetic.specimen import TYPICAL_MIXES, CellMix, SlideTruth, make_tissue
from her2batch.synthetic.svs import write_svs

CONTROL_UM = (450, 400)
"""Width and height of the field of a control, µm; its tissue takes about six tenths of it."""

GAP_UM = 100
"""Least distance between the fields of two pieces, µm."""


class ControlSlideTruth(NamedTuple):
    """What was painted on a slide with controls.

    tissue, controls: (h, w) bool on a grid of `px` level-0 px: the patient's tissue, and that of all controls.
    width, height: of the slide, level-0 px.
    """

    tissue: NDArray[np.bool_]
    controls: NDArray[np.bool_]
    px: int
    width: int
    height: int


def make_control_slide(
    path: Path, patient: SlideTruth, controls: Sequence[str | CellMix], seed: int = 0, end: str = "left"
) -> ControlSlideTruth:
    """Write a slide of a patient's tissue with controls at its left or right end; return what was painted.

    controls: IHC score, or mix of the cells, of each control, from top to bottom.  Without controls the slide has the
    same patient's tissue at the same place.
    """
    rgb, tissue, px = _paint(patient, seed)
    width, height = (round(um / patient.mpp / px) * px for um in CONTROL_UM)
    gap = round(GAP_UM / patient.mpp / px) * px
    column = width + gap
    tall = max(rgb.shape[0], len(controls) * (height + gap))
    white = np.median(rgb.reshape(-1, 3)[rgb.reshape(-1, 3).min(axis=1) > 200], axis=0).astype(np.uint8)
    canvas = np.empty((tall, column + rgb.shape[1], 3), np.uint8)
    canvas[:] = white
    own, theirs = (np.zeros((-(-tall // px), -(-canvas.shape[1] // px)), bool) for _ in range(2))
    x0, x1 = (0, column) if end == "left" else (rgb.shape[1] + gap, 0)
    canvas[: rgb.shape[0], x1 : x1 + rgb.shape[1]] = rgb
    own[: tissue.shape[0], x1 // px : x1 // px + tissue.shape[1]] = tissue
    for k, control in enumerate(controls):
        mix = TYPICAL_MIXES[control] if isinstance(control, str) else control
        truth = SlideTruth(f"{patient.slide_id}-control-{k}", mix, site=patient.site, width=width, height=height)
        part, mask, _ = _paint(replace(truth, mpp=patient.mpp), seed)
        y = k * (height + gap)
        canvas[y : y + height, x0 : x0 + width] = part
        theirs[y // px : y // px + mask.shape[0], x0 // px : x0 // px + mask.shape[1]] = mask
    write_svs(path, canvas, replace(patient, width=canvas.shape[1], height=canvas.shape[0]))
    return ControlSlideTruth(own, theirs, px, canvas.shape[1], canvas.shape[0])


def _paint(truth: SlideTruth, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_], int]:
    """Return the pixels of a specimen, its tissue, and the level-0 px per px of that."""
    specimen = make_tissue(truth, seed)
    size = truth.width, truth.height
    rgb = paint_slide(specimen.cells, specimen.fields, specimen.noise, specimen.appearance, size)
    return rgb, specimen.masks["tissue"], specimen.fields.px
