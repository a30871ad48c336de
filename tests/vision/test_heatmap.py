"""Tests of heatmaps: cells of the tiles, colours, PNG, outline."""

import cv2
import numpy as np

from her2batch.vision.heatmap import (
    attention_scale_end,
    class_image,
    encode_png,
    grid_cells,
    heatmap_image,
    outline_path,
)
from her2batch.vision.tile_grid import plan_tiles


def test_every_tile_has_its_own_cell_also_with_a_fractional_step() -> None:
    for slide_mpp in (0.25, 0.2303, 0.499):
        tiles = plan_tiles(9000, 7000, slide_mpp, 0.5, 224)
        cells = grid_cells(tiles[:, 0], tiles[:, 1], 224 * 0.5 / slide_mpp)
        assert len(np.unique(cells, axis=0)) == len(tiles)
        assert cells.max(axis=0).tolist() == [len(np.unique(tiles[:, 0])) - 1, len(np.unique(tiles[:, 1])) - 1]


def test_heatmap_is_clear_at_zero_and_never_darker_for_less() -> None:
    """On white, on stained tissue and on intense DAB: a larger value darkens what lies below at least as much."""
    levels = np.linspace(0, 1, 101)
    image = heatmap_image(np.stack([np.arange(101), np.zeros(101, int)], axis=1), levels * 5, top=5.0)
    assert image.shape == (1, 101, 4)
    assert (image[0, 0, 3], image[0, -1, 3]) == (0, 255)
    assert heatmap_image(np.array([[0, 0]]), np.array([9.0]), top=5.0)[0, 0, 3] == 255
    opacity = image[0, :, 3:].astype(float) / 255
    for below in ((255, 255, 255), (200, 190, 215), (120, 80, 50)):
        seen = (1 - opacity) * below + opacity * image[0, :, :3]
        assert (np.diff(seen @ [0.2126, 0.7152, 0.0722]) <= 1e-9).all()


def test_attention_scale_ends_at_the_99th_percentile_and_not_below_twice_uniform() -> None:
    assert attention_scale_end(np.ones(10)) == attention_scale_end(np.empty(0)) == 2.0
    assert attention_scale_end(np.append(np.ones(1), np.full(99, 5.0))) == 5.0


def test_a_class_image_survives_png() -> None:
    image = class_image(
        np.array([[1, 0], [0, 1]]), np.array([0, 1]), np.array([[10, 20, 30], [200, 100, 50]], np.uint8)
    )
    decoded = cv2.imdecode(np.frombuffer(encode_png(image), np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded[0, 1].tolist() == [30, 20, 10, 255]
    assert decoded[1, 0].tolist() == [50, 100, 200, 255]
    assert decoded[0, 0, 3] == 0


def test_outline_has_the_edges_of_the_union_and_none_inside() -> None:
    assert outline_path(np.empty((0, 2), np.int64)) == ""
    assert set(outline_path(np.array([[2, 3]])).split("M")[1:]) == {"2 3h1", "2 4h1", "2 3v1", "3 3v1"}
    block = np.array([[x, y] for x in range(3) for y in range(2)])
    assert set(outline_path(block).split("M")[1:]) == {"0 0h3", "0 2h3", "0 0v2", "3 0v2"}
