"""Files of other programs are matched to slides by the ways in which people name them; what fits nothing is listed."""

from pathlib import Path

import pytest

from her2batch.exchange.slide_names import files_in, match_files
from her2batch.store.pseudonyms import slide_id_of

SUFFIXES = (".geojson", ".json")


def match(slides: list[str], files: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Match files to slide files by name: slide id → file name, and file name → reason."""
    ids: dict[str, str | None] = {}
    for path in slides:
        slide_id = slide_id_of(Path(path).stem)
        ids[slide_id if slide_id not in ids else f"{slide_id}-0a1b2c3d"] = path
    found = match_files([Path(file) for file in files], ids, SUFFIXES)
    return {key: str(path) for key, path in found.found.items()}, {str(p): why for p, why in found.unmatched.items()}


NAMES = {
    "S01.geojson": "S01.svs",
    "S01.json": "S01.svs",
    "S01.svs.geojson": "S01.svs",
    "S01.SVS.GeoJSON": "S01.svs",
    "s01.geojson": "S01.svs",
    "S01.ndpi.geojson": "S01.ndpi",
    "S01.tif.geojson": "S01.svs",
    "S01.ome.tif.geojson": "S01.ome.tif",
    "S01.ome.geojson": "S01.ome.tif",
    "S01.vms - Series 1.geojson": "S01.vms",
    "S01.svs - 20x_01.geojson": "S01.svs",
    "S01_regions.geojson": "S01.svs",
    "S01-Annotations.geojson": "S01.svs",
    "S01.svs_annotations.geojson": "S01.svs",
    "S01 tumor.geojson": "S01.svs",
    "case 7 (HER2).svs.geojson": "case 7 (HER2).svs",
    "case_7_HER2.geojson": "case 7 (HER2).svs",
    "Møller 漢 #2.svs.geojson": "Møller 漢 #2.svs",
    "Mu\u0308ller.geojson": "M\u00fcller.svs",
    "S01_regions.svs.geojson": "S01_regions.svs",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_people_and_programs_give(name: str) -> None:
    found, unmatched = match([NAMES[name], "other.svs"], [name])
    assert list(found.values()) == [name]
    assert unmatched == {}


@pytest.mark.parametrize(
    "name", ["S02.geojson", "S011.geojson", "S0.geojson", "S01a.geojson", "project.json", "S01.tiles.geojson"]
)
def test_file_of_no_slide_is_listed(name: str) -> None:
    assert match(["S01.svs"], [name]) == ({}, {name: "no slide has this name"})


def test_exact_name_wins_over_one_that_differs_in_case() -> None:
    slides = ["a/s1.svs", "b/S1.svs"]
    found, _ = match(slides, ["S1.geojson"])
    assert found == {"S1": "S1.geojson"}


def test_name_of_two_slides_is_ambiguous_until_suffix_id_or_folder_decides() -> None:
    slides = ["a/S01.svs", "b/S01.ndpi"]
    found, unmatched = match(slides, ["S01.geojson"])
    assert found == {}
    assert unmatched["S01.geojson"] == "the name fits slides S01, S01-0a1b2c3d; name the file by slide_id"
    assert match(slides, ["S01.ndpi.geojson"])[0] == {"S01-0a1b2c3d": "S01.ndpi.geojson"}
    assert match(slides, ["S01-0a1b2c3d.geojson"])[0] == {"S01-0a1b2c3d": "S01-0a1b2c3d.geojson"}
    assert match(slides, ["regions/a/S01.geojson"])[0] == {"S01": "regions/a/S01.geojson"}


def test_of_two_files_of_one_slide_the_one_with_the_exact_name_is_used() -> None:
    found, unmatched = match(["S01.svs"], ["S01_regions.geojson", "S01.svs.geojson", "S01.json"])
    assert found == {"S01": "S01.svs.geojson"}
    reason = "not used, because S01.svs.geojson belongs to slide S01 too"
    assert unmatched == {"S01_regions.geojson": reason, "S01.json": reason}


def test_hidden_files_are_left_out_and_subfolders_are_searched(tmp_path: Path) -> None:
    for name in ("a.geojson", "deep/er/b.GEOJSON", "._a.geojson", ".cache/c.geojson", "d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    assert [path.name for path in files_in(tmp_path, SUFFIXES)] == ["a.geojson", "b.GEOJSON"]
