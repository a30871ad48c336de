"""Masks of polygons: areas that were drawn on a slide, as pixels of its overview."""

from __future__ import annotations

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

SHIFT = 4
"""Binary digits after the point in the coordinates of corners: 1/16 px."""


def region_mask(area: BaseGeometry, shape: tuple[int, int], width: float, height: float) -> NDArray[np.bool_]:
    """Return the mask of an area: (h, w) bool over the whole slide. Holes are left out.

    area: polygons in level-0 px.  shape: (h, w) of the mask.  width, height: of level 0, px. A px belongs to the area
    if its centre does, or if the outline crosses it.
    """
    mask = np.zeros(shape, np.uint8)
    scale = np.array([shape[1] / width, shape[0] / height]) * (1 << SHIFT)
    half = (1 << SHIFT) / 2
    for polygon in shapely.get_parts(area):
        if polygon.geom_type != "Polygon" or polygon.is_empty:
            continue
        rings = [polygon.exterior, *polygon.interiors]
        corners = [np.round(np.asarray(ring.coords)[:, :2] * scale - half).astype(np.int32) for ring in rings]
        part = np.zeros(shape, np.uint8)
        cv2.fillPoly(part, corners, 1, shift=SHIFT)  # with several rings: even-odd, so that holes stay empty
        mask |= part
    return mask.astype(bool)
