"""Deep Zoom: tiles show the slide, stored chunks are returned unchanged, areas without tissue are white."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from her2batch.slides.pyramid import Pyramid, write_pyramid
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box
from her2batch.web.deepzoom import DeepZoom, deep_zoom_of, deep_zoom_tile
from tests.conftest import MakeSlide


@pytest.fixture
def pyramid(make_slide: MakeSlide, tmp_path: Path) -> Pyramid:
    """1400 × 1200 px, three levels, all of it stored but its upper left quarter."""
    tissue = np.ones((60, 70), bool)
    tissue[:26, :26] = False
    with open_slide(make_slide(levels=3)) as slide:
        write_pyramid(slide, tissue, tmp_path / "p.zarr", 90)
    return Pyramid(tmp_path / "p.zarr")


def decode(data: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, "RGB").astype(int)


def test_tiles_of_each_level_cover_the_slide_once() -> None:
    zoom = DeepZoom(1400, 1201, 256)
    assert (zoom.max_level, zoom.size(zoom.max_level), zoom.size(0)) == (11, (1400, 1201), (1, 1))
    for level in range(zoom.max_level + 1):
        width, height = zoom.size(level)
        boxes = [zoom.box(level, column, row) for column in range(-(-width // 256)) for row in range(-(-height // 256))]
        assert sum(one.width * one.height for one in boxes) == width * height
    for level, column, row in ((12, 0, 0), (-1, 0, 0), (11, 6, 0), (11, 0, -1), (0, 1, 0)):
        with pytest.raises(ValueError, match="there is no"):
            zoom.box(level, column, row)


def test_descriptor_has_the_deep_zoom_format() -> None:
    root = ElementTree.fromstring(DeepZoom(1400, 1201, 240).descriptor())
    assert root.attrib == {"Format": "jpg", "Overlap": "0", "TileSize": "240"}
    assert root[0].attrib == {"Width": "1400", "Height": "1201"}


def test_tile_that_equals_a_chunk_is_returned_unchanged(pyramid: Pyramid) -> None:
    zoom = deep_zoom_of(pyramid.info)
    for level, number in ((11, 0), (10, 1)):
        data = (
            deep_zoom_tile(pyramid, None, zoom, level, 1, 1)
            if number
            else deep_zoom_tile(pyramid, None, zoom, level, 3, 2)
        )
        assert data == (pyramid.jpeg_chunk(number, 1, 1) if number else pyramid.jpeg_chunk(number, 2, 3))
        assert decode(data).shape == (256, 256, 3)


def test_every_tile_shows_its_part_of_the_slide(make_slide: MakeSlide, tmp_path: Path) -> None:
    with open_slide(make_slide(levels=3)) as slide:
        write_pyramid(slide, np.ones((6, 7), bool), tmp_path / "p.zarr", 90)
    pyramid = Pyramid(tmp_path / "p.zarr")
    zoom = deep_zoom_of(pyramid.info)
    level0 = pyramid.read(Box(0, 0, 1400, 1200))
    for level in (11, 10, 9, 8):
        width, height = zoom.size(level)
        small = cv2.resize(level0, (width, height), interpolation=cv2.INTER_AREA)
        for column in range(-(-width // 256)):
            for row in range(-(-height // 256)):
                box = zoom.box(level, column, row)
                found = decode(deep_zoom_tile(pyramid, None, zoom, level, column, row))
                assert found.shape == (box.height, box.width, 3)
                assert np.abs(found - small[box.y : box.bottom, box.x : box.right]).mean() < 6


def test_tile_without_tissue_is_white(pyramid: Pyramid) -> None:
    assert decode(deep_zoom_tile(pyramid, None, deep_zoom_of(pyramid.info), 11, 0, 0)).min() > 250


def test_coarse_levels_come_from_the_thumbnail(pyramid: Pyramid) -> None:
    thumbnail = np.full((300, 350, 3), (200, 100, 50), np.uint8)
    zoom = deep_zoom_of(pyramid.info)
    for level in (8, 5, 0):
        found = decode(deep_zoom_tile(pyramid, thumbnail, zoom, level, 0, 0))
        assert np.abs(found - (200, 100, 50)).max() <= 4
    assert np.abs(decode(deep_zoom_tile(pyramid, thumbnail, zoom, 10, 1, 1)) - (200, 100, 50)).mean() > 20
