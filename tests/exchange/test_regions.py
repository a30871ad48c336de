"""Regions of interest: which features of a QuPath export count, and what must be refused."""

import json
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.exchange.regions import EXCLUDED_CLASSES, INCLUDED_CLASSES, RegionFolder, SlideRegions, read_regions

SIZE = (1000, 800)


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(name: object, *rings: list[list[float]], kind: str | None = "annotation", **more: object) -> dict:
    properties = {"classification": {"name": name}} | ({"objectType": kind} if kind else {})
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": list(rings)},
            "properties": properties, **more}  # fmt: skip


def write(path: Path, *features: object) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def read(path: Path) -> SlideRegions:
    return read_regions(path, INCLUDED_CLASSES, EXCLUDED_CLASSES, SIZE)


def area_of(regions: SlideRegions) -> tuple[float | None, float | None]:
    return tuple(None if shape is None else shape.area for shape in regions)


@pytest.mark.parametrize(
    "name", ["Tumor", "tumor", " TUMOR ", "Tumour", "Invasive", "Tumor: Positive", "Region: Tumor"]
)
def test_included_classes_in_the_ways_people_write_them(tmp_path: Path, name: str) -> None:
    assert area_of(read(write(tmp_path / "a.geojson", feature(name, box(0, 0, 10, 20))))) == (200, None)


@pytest.mark.parametrize("name", ["Exclude", "DCIS", "Control", "Ignore*", "Tumor: DCIS"])
def test_excluded_classes_win_over_included_ones(tmp_path: Path, name: str) -> None:
    assert area_of(read(write(tmp_path / "a.geojson", feature(name, box(0, 0, 10, 20))))) == (None, 200)


def test_holes_multipolygons_and_overlapping_regions(tmp_path: Path) -> None:
    ring = feature("Tumor", box(0, 0, 100, 100), box(40, 40, 60, 60))
    parts = {"type": "MultiPolygon", "coordinates": [[box(200, 0, 210, 10)], [box(300, 0, 310, 10)]]}
    several = {**feature("Invasive"), "geometry": parts}
    path = write(tmp_path / "a.geojson", ring, several, feature("Tumor", box(50, 0, 150, 10)))
    assert area_of(read(path)) == (10_000 - 400 + 200 + 500, None)


def test_other_classes_detections_and_cells_do_not_count(tmp_path: Path) -> None:
    square = box(0, 0, 10, 10)
    others = [feature(name, square) for name in ("Stroma", "Necrosis", "3+", None)]
    objects = [feature("Tumor", square, kind=kind) for kind in ("detection", "cell", "tile")]
    old = [feature("Tumor", square, kind=None, id=name) for name in ("PathDetectionObject", "PathCellObject")]
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {"name": "Tumor"}}
    assert read(write(tmp_path / "a.geojson", *others, *objects, *old, point)).is_empty
    assert not read(
        write(tmp_path / "a.geojson", feature("Tumor", square, kind=None, id="PathAnnotationObject"))
    ).is_empty


def test_self_intersections_are_repaired(tmp_path: Path) -> None:
    bow = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
    assert area_of(read(write(tmp_path / "a.geojson", feature("Tumor", bow)))) == (50, None)


REFUSED = {
    "two corners": (feature("Tumor", [[0, 0], [1, 1]]), r"feature 2 \(Tumor\) cannot be read"),
    "not finite": (feature("Tumor", [[0, 0], [1, 0], [float("nan"), 1], [0, 0]]), r"feature 2 \(Tumor\)"),
    "text": (feature("Tumor", [["a", 0], [1, 0], [1, 1], [0, 0]]), r"feature 2 \(Tumor\)"),
    "another pyramid": (feature("Tumor", box(0, 0, 3000, 700)), r"feature 2 \(Tumor\) reaches .* × 800 px.*level 0"),
    "negative": (feature("DCIS", box(-500, 0, 10, 10)), r"feature 2 \(DCIS\) reaches from x -500"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_error_names_the_file_and_the_feature(tmp_path: Path, case: str) -> None:
    bad, message = REFUSED[case]
    path = write(tmp_path / "slide.geojson", feature("Stroma", box(0, 0, 1, 1)), bad)
    with pytest.raises(InputError, match=rf"slide\.geojson.*{message}"):
        read(path)


def test_small_overhang_at_the_edge_is_accepted(tmp_path: Path) -> None:
    assert not read(write(tmp_path / "a.geojson", feature("Tumor", box(-5, 0, 1010, 810)))).is_empty


def test_folder_matches_files_to_slides_and_lists_the_others(tmp_path: Path) -> None:
    for name in ("S1.svs.geojson", "S2.geojson", "S9.geojson"):
        write(tmp_path / name)
    folder = RegionFolder(tmp_path)
    folder.add_slide("S1", Path("/scans/S1.svs"))
    folder.add_slide("S2", Path("/scans/S2.svs"))
    assert {key: path.name for key, path in folder.found.items()} == {"S1": "S1.svs.geojson", "S2": "S2.geojson"}
    assert {path.name for path in folder.unused} == {"S9.geojson"}
    path, digest = folder.file_of("S1")
    assert (path, len(digest or "")) == (tmp_path / "S1.svs.geojson", 64)
    assert folder.file_of("S3") == (None, None)


def test_folder_without_regions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no regions"):
        RegionFolder(tmp_path)
    with pytest.raises(InputError, match="no such folder of regions"):
        RegionFolder(tmp_path / "nowhere")
