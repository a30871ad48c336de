"""Tests of heatmaps: cells of the tiles, colours, PNG, outline."""

import cv2
import numpy as np

from her2batch.vision.heatmap import class_image, encode_png, grid_cells, heatmap_image, outline_path, viridis_rgb
from her2batch.vision.tile_grid import plan_tiles


def test_every_tile_has_its_own_cell_also_with_a_fractional_step() -> None:
    for slide_mpp in (0.25, 0.2303, 0.499):
        tiles = plan_tiles(9000, 7000, slide_mpp, 0.5, 224)
        cells = grid_cells(tiles[:, 0], tiles[:, 1], 224 * 0.5 / slide_mpp)
        assert len(np.unique(cells, axis=0)) == len(tiles)
        assert cells.max(axis=0).tolist() == [len(np.unique(tiles[:, 0])) - 1, len(np.unique(tiles[:, 1])) - 1]


def test_heatmap_is_clear_without_tiles_and_lighter_for_higher_values() -> None:
    cells = np.array([[0, 0], [2, 1]])
    image = heatmap_image(cells, np.array([0.0, 5.0]), top=1.0)
    assert image.shape == (2, 3, 4)
    assert image[..., 3].tolist() == [[89, 0, 0], [0, 0, 255]]
    assert image[1, 2, :3].sum() > image[0, 0, :3].sum()
    grey = viridis_rgb(np.arange(256, dtype=np.uint8)).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) > -0.5).all()


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
