"""QuPath objects: they have the values of the tables, and are read back by the reader of annotations."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box, shape
from shapely.ops import unary_union

from her2batch.exchange.annotations import read_annotations
from her2batch.exchange.geojson import number_texts, outline_polygons, slide_features, write_feature_collection
from her2batch.store import schemas
from her2batch.tasks import IHC_SCORES
from her2batch.vision.tile_grid import plan_tiles
from tests.exchange.stored_examples import BUNDLE, make_stored_cohort


def read_tables(root: Path, mpp: float = 0.25) -> tuple[dict, dict[str, pa.Table]]:
    cohort = make_stored_cohort(root / "cohort", "S1", mpp=mpp)
    names = ("tiles", "membrane", f"attention/{BUNDLE}", f"patches/{BUNDLE}")
    return cohort.rows()["S1"], {name.split("/")[0]: cohort.read(name, "S1") for name in names}


def export_geojson(root: Path, mpp: float = 0.25) -> tuple[Path, dict[str, pa.Table]]:
    row, tables = read_tables(root, mpp)
    path = root / "S1.geojson"
    attention, patches = {BUNDLE: tables["attention"]}, {BUNDLE: tables["patches"]}
    write_feature_collection(path, slide_features(row, tables["tiles"], tables["membrane"], attention, patches))
    return path, tables


def features_by_type(path: Path) -> dict[str, list[dict]]:
    """Read the Features as plain JSON: objectType → Features."""
    data = json.loads(path.read_text())
    assert data["type"] == "FeatureCollection"
    features: dict[str, list[dict]] = {}
    for feature in data["features"]:
        assert feature["type"] == "Feature"
        features.setdefault(feature["properties"]["objectType"], []).append(feature)
    return features


@pytest.mark.parametrize("mpp", [0.25, 0.2306])
def test_tiles_are_squares_at_their_position(mpp: float, tmp_path: Path) -> None:
    path, tables = export_geojson(tmp_path, mpp)
    tiles = tables["tiles"].to_pylist()
    found = features_by_type(path)["tile"]
    assert len(found) == len(tiles)
    for feature, tile in zip(found, tiles, strict=True):
        corners = tile["x"], tile["y"], tile["x"] + tile["size"], tile["y"] + tile["size"]
        assert shape(feature["geometry"]).equals(box(*corners))
        assert feature["properties"]["classification"] == {"name": "Tile", "color": [128, 128, 128]}


def test_measurements_equal_the_values_of_the_tables(tmp_path: Path) -> None:
    path, tables = export_geojson(tmp_path)
    measurements = [feature["properties"]["measurements"] for feature in features_by_type(path)["tile"]]
    wanted = {
        "Tile": tables["tiles"]["tile"], "DAB OD mean": tables["tiles"]["dab"],
        "Tissue share": tables["tiles"]["tissue"], "Blur": tables["tiles"]["blur"],
        "Membrane: cells": tables["membrane"]["cells"],
        "Membrane: intense, complete": tables["membrane"]["intense_complete"],
        f"Attention: her2-3way clam-sb stain ({BUNDLE})": tables["attention"]["attention"],
    }  # fmt: skip
    for name, column in wanted.items():
        assert np.array_equal(
            np.array([values[name] for values in measurements], column.to_numpy().dtype), column.to_numpy()
        )


def test_patches_are_read_back_with_their_most_probable_class(tmp_path: Path) -> None:
    path, tables = export_geojson(tmp_path)
    patches = tables["patches"]
    regions, notes = read_annotations(path)
    best = np.stack([patches[f"p{k}"].to_numpy() for k in range(4)]).argmax(axis=0)
    assert [region.score for region in regions] == [IHC_SCORES[k] for k in best]
    for region, patch in zip(regions, patches.to_pylist(), strict=True):
        x, y, size = patch["x"], patch["y"], patch["size"]
        assert region.shape.equals(box(x, y, x + size, y + size))
    assert sorted(notes) == [
        "S1.geojson: 1 × class 'Tissue' skipped", f"S1.geojson: {len(tables['tiles'])} × class 'Tile' skipped",
    ]  # fmt: skip


def test_patches_have_probabilities_and_resolution(tmp_path: Path) -> None:
    path, tables = export_geojson(tmp_path)
    first, patch = features_by_type(path)["detection"][0]["properties"], tables["patches"].to_pylist()[0]
    assert first["classification"]["name"].startswith("Patch low: ")
    assert {name: np.float32(value) for name, value in first["measurements"].items()} == {
        f"p {name} ({BUNDLE})": np.float32(patch[f"p{k}"]) for k, name in enumerate(IHC_SCORES)
    }


def test_outline_covers_exactly_the_tiles(tmp_path: Path) -> None:
    path, tables = export_geojson(tmp_path)
    (tissue,) = features_by_type(path)["annotation"]
    squares = [box(t["x"], t["y"], t["x"] + t["size"], t["y"] + t["size"]) for t in tables["tiles"].to_pylist()]
    assert shape(tissue["geometry"]).equals(unary_union(squares))
    assert tissue["properties"]["isLocked"] is True
    assert tissue["properties"]["measurements"] == {"Tissue mm^2": 1.5, "Tiles": len(squares)}


tissue = st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1)


@given(tissue, st.sampled_from([0.25, 0.2306, 0.2505, 0.23, 0.499]))
def test_outline_of_any_tissue_has_the_area_of_its_tiles(cells: set[tuple[int, int]], mpp: float) -> None:
    """If tiles are no integer number of px wide, neighbours overlap or leave a gap by 1 px; gaps are no holes."""
    grid = plan_tiles(20_000, 20_000, mpp, 0.5, 224)
    across = len(np.unique(grid[:, 0]))
    tiles = grid[sorted(row * across + column for row, column in cells)]
    found = outline_polygons(pa.table(dict(zip(("x", "y", "size"), tiles.T, strict=True))))
    squares = unary_union([box(x, y, x + size, y + size) for x, y, size in tiles.tolist()])
    assert found.is_valid
    assert found.buffer(0.5).contains(squares)
    edge = int(tiles[0, 2])
    assert abs(found.area - squares.area) <= 3 * edge * len(tiles)
    if edge * mpp == 224 * 0.5:
        assert found.equals(squares)


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    first, _ = export_geojson(tmp_path / "one")
    second, _ = export_geojson(tmp_path / "two")
    assert first.read_bytes() == second.read_bytes()


def test_values_that_are_not_finite_are_left_out() -> None:
    column = pa.chunked_array([[0.1, float("nan"), None, float("inf"), 1e-20]], pa.float32())
    assert number_texts(column) == ["0.1", None, None, None, "1e-20"]


def test_slide_without_tiles_is_an_empty_collection(tmp_path: Path) -> None:
    write_feature_collection(
        tmp_path / "a.geojson", slide_features({}, schemas.table_schema("tiles").empty_table(), None, {}, {})
    )
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


def test_places_of_a_saliency_map_are_detections_with_their_value(tmp_path: Path) -> None:
    row, tables = read_tables(tmp_path)
    head = {"slide_id": "S1", "task": "her2-3way", "method": "resnet50", "input": "thumbnail-224"}
    places = [{**head, "x": x, "y": 50, "size": 100, "saliency": value} for x, value in ((-20, 0.0), (80, 1.0))]
    saliency = pa.Table.from_pylist(places, schemas.table_schema("saliency"))
    path = tmp_path / "S1.geojson"
    write_feature_collection(path, slide_features(row, tables["tiles"], None, {}, {}, {BUNDLE: saliency}))
    first, second = features_by_type(path)["detection"]
    assert first["properties"]["classification"]["name"] == "Saliency: her2-3way resnet50 thumbnail-224"
    assert second["properties"]["measurements"] == {f"Saliency ({BUNDLE})": 1.0}
    assert shape(second["geometry"]).equals(box(80, 50, 180, 150))
