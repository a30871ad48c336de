"""Overlays: columns from the tables, and the outline of the tiles."""

import numpy as np
import pyarrow as pa
import pytest
from shapely.geometry import Polygon

from her2batch.store.cohort import Cohort
from her2batch.store.schemas import table_schema
from her2batch.vision.membrane import MEMBRANE_COLUMNS
from her2batch.web import overlays


def table(places: list[tuple[int, int]], size: int) -> pa.Table:
    return pa.table({"x": [x for x, _ in places], "y": [y for _, y in places], "size": [size] * len(places)})


@pytest.mark.parametrize("size", [448, 1, 100])
def test_outline_follows_tiles_and_holes(size: int) -> None:
    places = [(x * size, y * size) for x in range(1, 4) for y in range(2, 5) if (x, y) != (2, 3)]
    rings = [Polygon(ring) for ring in overlays.tissue_outline(table(places, size))]
    whole = max(rings, key=lambda one: one.area)
    assert whole.bounds == (size, 2 * size, 4 * size, 5 * size)
    holes = [one for one in rings if one is not whole]
    assert [one.bounds for one in holes] == [(2 * size, 3 * size, 3 * size, 4 * size)]


def test_each_piece_has_an_outline() -> None:
    rings = overlays.tissue_outline(table([(0, 0), (500, 500)], 100))
    assert sorted(Polygon(ring).bounds for ring in rings) == [(0, 0, 100, 100), (500, 500, 600, 600)]
    assert overlays.tissue_outline(table([], 100)) == []


def test_grid_with_a_fractional_step_has_one_outline() -> None:
    step = 448.45
    places = [(int(x * step + 0.5), int(y * step + 0.5)) for x in range(900) for y in range(2)]
    (ring,) = overlays.tissue_outline(table(places, 448))
    assert Polygon(ring).bounds == pytest.approx((0, 0, 900 * step, 2 * step), abs=2)


def test_tile_overlay_has_membrane_shares(cohort: Cohort) -> None:
    slide_id = next(one for one, row in sorted(cohort.rows().items()) if row["n_tiles"])
    tiles, membrane = cohort.read("tiles", slide_id), cohort.read("membrane", slide_id)
    found = overlays.tile_overlay(tiles, membrane)
    assert {len(values) for values in found.values()} == {len(tiles)}
    assert set(MEMBRANE_COLUMNS) <= found.keys()
    assert np.allclose(found["dab"], tiles["dab"].to_numpy(), atol=1e-4)
    assert "cells" not in overlays.tile_overlay(tiles, None)


def test_attention_is_relative_to_the_largest() -> None:
    tiles = table([(0, 0), (100, 0), (200, 0)], 100)
    rows = [{"task": task, "method": "clam-sb", "input": "stain", "tile": tile, "attention": share}
            for task, shares in (("her2-3way", (0.5, 0.1, 0.4)), ("her2-4way", (0.2, 0.2, 0.6)))
            for tile, share in enumerate(shares)]  # fmt: skip
    one, other = overlays.attention_overlays(pa.Table.from_pylist(rows), tiles)
    assert (one["task"], one["x"], one["attention"]) == ("her2-3way", [0, 100, 200], [1.0, 0.2, 0.8])
    assert (other["task"], other["attention"]) == ("her2-4way", [0.3333, 0.3333, 1.0])


def test_patches_have_their_most_probable_class() -> None:
    rows = [{"resolution": one, "x": x, "y": 0, "size": 50, "p0": 0.1, "p1": 0.7 - x, "p2": 0.1, "p3": 0.1 + x}
            for one, x in (("low", 0), ("low", 1), ("high", 0))]  # fmt: skip
    low, high = overlays.patch_overlays(pa.Table.from_pylist(rows))
    assert (low["resolution"], low["x"], low["class"]) == ("low", [0, 1], [1, 3])
    assert (high["class"], high["p"]) == ([1], [0.7])


def test_each_piece_has_its_own_outline_and_role() -> None:
    tiles = table([(0, 0), (100, 0), (500, 500)], 100).append_column("piece", pa.array([0, 0, 1], pa.int16()))
    rows = [
        {"piece": k, "role": role, "suspected": False, "x": 0, "y": 0} for k, role in enumerate(("tissue", "control"))
    ]
    first, second = overlays.piece_overlays(pa.Table.from_pylist(rows, table_schema("pieces")), tiles)
    assert (first["role"], second["role"]) == ("tissue", "control")
    assert [Polygon(one["rings"][0]).area for one in (first, second)] == [20_000, 10_000]


def test_saliency_is_split_by_network() -> None:
    head = {"method": "resnet50", "input": "thumbnail-224", "y": 0, "size": 50}
    rows = [{**head, "task": task, "x": x, "saliency": x / 50}
            for task in ("her2-3way", "her2-4way") for x in (0, 50)]  # fmt: skip
    one, other = overlays.saliency_overlays(pa.Table.from_pylist(rows))
    assert (one["task"], one["x"], one["saliency"]) == ("her2-3way", [0, 50], [0.0, 1.0])
    assert other["task"] == "her2-4way"
