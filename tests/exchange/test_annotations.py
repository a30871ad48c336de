"""Annotations from QuPath: areas with a HER2 score are read, other features are counted."""

import json
from pathlib import Path

import pytest
from shapely.geometry import Point, Polygon, box, mapping

from her2batch.errors import InputError
from her2batch.exchange.annotations import find_annotations, read_annotations
from her2batch.synthetic.cohort import make_cohort


def make_feature(shape: object, **properties: object) -> dict:
    return {"type": "Feature", "geometry": mapping(shape), "properties": properties}


def write_json(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


SQUARE = box(0, 0, 100, 100)


@pytest.mark.parametrize("wrap", [
    lambda item: {"type": "FeatureCollection", "features": [item]}, lambda item: [item], lambda item: item,
])  # fmt: skip
@pytest.mark.parametrize("properties", [
    {"objectType": "annotation", "classification": {"name": "3+", "color": [1, 2, 3]}},
    {"object_type": "annotation", "classification": "HER2 3+"},
    {"classification": {"name": "Tumor: 3+", "colorRGB": -1}, "isLocked": False},
    {"classification": {"names": ["Tumor", "Her2-3"]}},
    {"class": "score 3"},
    {"name": "3+"},
])  # fmt: skip
def test_all_dialects_are_read(wrap: object, properties: dict, tmp_path: Path) -> None:
    regions, notes = read_annotations(write_json(tmp_path / "a.geojson", wrap(make_feature(SQUARE, **properties))))
    assert [(region.score, region.shape.area) for region in regions] == [("3+", 10_000)]
    assert notes == []


SPELLINGS = [("0", "0"), ("1+", "1+"), ("HER2 2+", "2+"), ("her2_1", "1+"), ("Her2: 0", "0")]


@pytest.mark.parametrize(("name", "score"), SPELLINGS)
def test_spellings_of_scores(name: str, score: str, tmp_path: Path) -> None:
    regions, _ = read_annotations(
        write_json(tmp_path / "a.json", [make_feature(SQUARE, classification={"name": name})])
    )
    assert [region.score for region in regions] == [score]


@pytest.mark.parametrize("name", ["4+", "Tumor", "3 cells", "10", "2-3+", "ER 3+", "+"])
def test_ambiguous_classes_are_skipped(name: str, tmp_path: Path) -> None:
    regions, notes = read_annotations(
        write_json(tmp_path / "a.json", [make_feature(SQUARE, classification={"name": name})])
    )
    assert regions == []
    assert "skipped" in notes[0]


def test_polygons_with_holes_and_collections_are_areas(tmp_path: Path) -> None:
    holed = Polygon(SQUARE.exterior, [box(20, 20, 40, 40).exterior.coords])
    several = {"type": "GeometryCollection", "geometries": [mapping(SQUARE), mapping(box(200, 0, 210, 10))]}
    data = [
        make_feature(holed, classification="1+"),
        {**make_feature(SQUARE, classification="2+"), "geometry": several},
    ]
    regions, _ = read_annotations(write_json(tmp_path / "a.json", data))
    assert [region.shape.area for region in regions] == [10_000 - 400, 10_000 + 100]


def test_self_intersecting_polygon_is_repaired(tmp_path: Path) -> None:
    bow = Polygon([(0, 0), (100, 100), (100, 0), (0, 100)])
    regions, _ = read_annotations(write_json(tmp_path / "a.json", [make_feature(bow, classification="1+")]))
    assert regions[0].shape.is_valid
    assert regions[0].shape.area == pytest.approx(5000)


def test_features_without_area_are_counted(tmp_path: Path) -> None:
    point = make_feature(Point(1, 2), classification="1+")
    flat = make_feature(Polygon([(0, 0), (10, 0), (20, 0), (0, 0)]), classification="1+")
    regions, notes = read_annotations(write_json(tmp_path / "a.json", [point, point, flat, make_feature(SQUARE)]))
    assert regions == []
    assert sorted(note.split(": ", 1)[1] for note in notes) == [
        "1 × no class skipped", "1 × zero area skipped", "2 × no area skipped",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["geojson_example.json", "holed.geojson", "qupath05.geojson"])
def test_real_exports_without_scores_are_read(name: str, real_data: Path) -> None:
    """These exports have no HER2 scores, so all features are skipped."""
    regions, notes = read_annotations(real_data / "geojson" / name)
    assert regions == []
    assert notes


@pytest.mark.parametrize(
    ("name", "count"), [("geojson_example.json", 2), ("holed.geojson", 1), ("qupath05.geojson", 3)]
)
def test_outlines_in_real_exports_are_areas(name: str, count: int, real_data: Path, tmp_path: Path) -> None:
    data = json.loads((real_data / "geojson" / name).read_text())
    features = data if isinstance(data, list) else data.get("features", [data])
    for feature in features:
        feature["properties"]["classification"] = {"name": "2+"}
    regions, notes = read_annotations(write_json(tmp_path / "a.geojson", data))
    assert [region.score for region in regions] == ["2+"] * count
    assert all(region.shape.is_valid and region.shape.area > 0 for region in regions)
    assert notes == []


RING = '"properties": {"class": "1+"}, "geometry": {"type": "Polygon", "coordinates": '

INVALID = {
    "no-json": "{", "a-number": "3", "no-features": '{"type": "FeatureCollection"}', "words": '[{"a": 1}]',
    "nan": "[{" + RING + "[[[0, 0], [NaN, 1], [1, 1], [0, 0]]]}}]",
    "open": "[{" + RING + "3}}]",
    "deep": "[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID)
def test_invalid_geojson_is_refused_with_the_file_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "slide.geojson").write_text(text)
    with pytest.raises(InputError, match=r"slide\.geojson"):
        read_annotations(tmp_path / "slide.geojson")


def test_annotation_files_are_found_by_slide(tmp_path: Path) -> None:
    for name in ("a.geojson", "b.json", "b.geojson", "d.svs.geojson", "e.geojson", "other.txt"):
        (tmp_path / name).write_text("[]")
    slides = {"a": "/scans/a.svs", "b": None, "c": "/scans/c.svs", "d": "/scans/d.svs"}
    found = find_annotations(tmp_path, slides)
    names = {key: path.name for key, path in found.found.items()}
    assert names == {"a": "a.geojson", "b": "b.geojson", "d": "d.svs.geojson"}
    assert [note.partition(":")[0] for note in found.notes] == ["b.json", "e.geojson"]
    with pytest.raises(InputError, match=r"c\.geojson"):
        find_annotations(tmp_path, {"c": None})
    with pytest.raises(InputError, match="no such folder"):
        find_annotations(tmp_path / "nowhere", slides)


def test_all_annotations_of_synthetic_cohorts_are_read(tmp_path: Path) -> None:
    make_cohort(tmp_path, 3, size=(900, 800), workers=1)
    for path in (tmp_path / "annotations").glob("*.geojson"):
        regions, notes = read_annotations(path)
        assert len(regions) == len(json.loads(path.read_text())["features"])
        assert notes == []
