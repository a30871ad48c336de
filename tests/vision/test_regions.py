"""Masks of polygons on the overview of a slide."""

import numpy as np
import pytest
import shapely

from her2batch.vision.regions import region_mask


@pytest.mark.parametrize("scale", [1, 16, 32.5])
def test_mask_has_the_area_of_the_polygons(scale: float) -> None:
    shape = (120, 200)
    hole = shapely.box(40 * scale, 40 * scale, 60 * scale, 60 * scale)
    area = shapely.union_all([shapely.box(10 * scale, 10 * scale, 90 * scale, 90 * scale) - hole,
                              shapely.Point(150 * scale, 60 * scale).buffer(30 * scale)])  # fmt: skip
    mask = region_mask(area, shape, shape[1] * scale, shape[0] * scale)
    assert mask.sum() == pytest.approx(area.area / scale**2, rel=0.06)
    assert mask[20, 20]
    assert mask[60, 150]
    assert not mask[50, 50]  # the hole
    assert not mask[5, 5]


def test_area_beyond_the_slide_is_cut_off_and_lines_have_no_area() -> None:
    assert region_mask(shapely.box(-100, -100, 1e6, 1e6), (10, 10), 100, 100).all()
    assert not region_mask(shapely.LineString([(0, 0), (50, 50)]), (10, 10), 100, 100).any()
    assert region_mask(shapely.Polygon(), (10, 10), 100, 100).dtype == np.bool_
