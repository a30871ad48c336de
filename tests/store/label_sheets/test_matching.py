"""Labels meet slides by id, file name and path; what could mean two slides meets neither."""

import unicodedata
from collections.abc import Sequence

import pytest

from her2batch.store.label_sheets.matching import LabelMatch, SlideNames, match_labels
from her2batch.store.pseudonyms import slide_id_of

ODD = (
    "EX-1-[Boon's]-AV~18",
    "100%20 #3 a&b",
    "Prøve-æøå",
    "Müller 1",
    "Möller 1",
    "组织1",
    "case.1",
    "a+b=c",
    "S 1 ",
    "ß",
    "É",
)


def names_of(*paths: str) -> SlideNames:
    """Slides by the paths of their files; the id is that of the stem, and the second of equal ones has a number."""
    names = SlideNames()
    for path in paths:
        stem = path.rpartition("/")[2].rpartition(".")[0]
        wanted = slide_id_of(stem)
        names.add(wanted if wanted not in names else f"{wanted}-2", path)
    return names


def match(names: SlideNames, *labels: str, level: str = "slide") -> LabelMatch:
    return match_labels([{"name": name, "level": level, "number": k} for k, name in enumerate(labels)], names)


def met(names: SlideNames, *labels: str, level: str = "slide") -> dict[str, str]:
    return {slide_id: row["name"] for slide_id, row in match(names, *labels, level=level).labels.items()}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_odd_names_meet_their_slides_in_either_unicode_form(form: str, written: str) -> None:
    paths = [unicodedata.normalize(form, f"/scans/{name}.svs") for name in ODD]
    labels = [unicodedata.normalize(written, name) for name in ODD]
    found = match(names_of(*paths), *labels)
    assert len(found.labels) == len(ODD)
    assert (found.unmet, found.ambiguous, found.doubled) == ([], [], {})


@pytest.mark.parametrize(
    "label",
    [
        "S1",
        "S1.svs",
        "S1.SVS",
        "s1",
        "s1.svs",
        "/data/scans/x/S1.svs",
        "x/S1.svs",
        "x/S1",
        r"x\S1.svs",
        r"D:\old\x\S1.svs",
        "/elsewhere/x/S1.svs",
        " S1 ",
        "S1.ndpi",
    ],
)
def test_a_slide_is_met_by_id_name_and_path(label: str) -> None:
    assert met(names_of("/data/scans/x/S1.svs", "/data/scans/S2.svs"), label) == {"S1": label}


@pytest.mark.parametrize("label", ["S", "S11", "y/S1.svs", "y/S1", "/y/S1.svs", r"D:\S1.svs", "S1.svs.zip", "x", "svs"])
def test_a_label_of_another_name_or_folder_meets_nothing(label: str) -> None:
    found = match(names_of("/data/scans/x/S1.svs"), label)
    assert (found.labels, [row["name"] for row in found.unmet]) == ({}, [label])


def test_double_suffixes_may_be_given_whole_in_part_or_not_at_all() -> None:
    names = names_of("/scans/S1.ome.tif")
    assert [list(met(names, label)) for label in ("S1", "S1.ome", "S1.ome.tif")] == [["S1.ome"]] * 3


def test_a_dicom_slide_is_met_by_its_folder() -> None:
    names = names_of("/scans/B24-17/1.2.840.1.dcm", "/scans/B24-18/1.2.840.2.dcm", "/scans/B24-19/S3.svs")
    assert met(names, "B24-17", "B24-19") == {"1.2.840.1": "B24-17"}
    two = names_of("/scans/HER2/1.dcm", "/scans/HER2/2.dcm")
    assert len(match(two, "HER2").ambiguous) == 1


SAME_STEM = ("/scans/caseA/1.svs", "/scans/caseB/1.svs")


@pytest.mark.parametrize("label", ["1", "1.svs", "01", "scans/caseC/1.svs"])
def test_one_stem_in_two_folders_is_ambiguous(label: str) -> None:
    found = match(names_of(*SAME_STEM), label)
    assert found.labels == {}
    assert [(row["name"], ids) for row, ids in found.ambiguous] == ([(label, ["1", "1-2"])] if "/" not in label else [])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["caseA/1.svs"], {"1": "caseA/1.svs"}),
        (["caseB/1"], {"1-2": "caseB/1"}),
        (["1-2"], {"1-2": "1-2"}),
        (["1", "1-2"], {"1": "1", "1-2": "1-2"}),
        (["1", "caseA/1.svs"], {"1": "caseA/1.svs", "1-2": "1"}),
        (["caseA/1.svs", "caseB/1.svs"], {"1": "caseA/1.svs", "1-2": "caseB/1.svs"}),
    ],
)
def test_a_path_or_an_id_settles_it(labels: list[str], expected: dict[str, str]) -> None:
    assert met(names_of(*SAME_STEM), *labels) == expected


def test_the_suffix_settles_which_of_two_files_is_meant() -> None:
    names = names_of("/scans/S1.svs", "/scans/S1.ndpi")
    assert met(names, "S1.svs", "S1.ndpi") == {"S1": "S1.svs", "S1-2": "S1.ndpi"}
    assert len(match(names, "S1").ambiguous) == 1


def test_two_labels_that_leave_one_slide_between_them_meet_neither() -> None:
    names = names_of("/a/1.svs", "/b/1.svs", "/c/1.svs")
    found = match(names, "1", "01", "a/1.svs")
    assert list(found.labels) == ["1"]
    assert [row["name"] for row, _ in found.ambiguous] == ["1", "01"]


def test_a_copy_of_a_slide_is_one_more_name_of_it() -> None:
    names = names_of("/scans/a/S1.svs")
    names.add("S1", "/scans/b/S1 copy.svs")
    assert met(names, "b/S1 copy.svs") == {"S1": "b/S1 copy.svs"}
    assert match(names, "S1 copy", "S1").doubled.keys() == {"S1"}


@pytest.mark.parametrize(
    ("paths", "label", "expected"),
    [
        (["/s/001.svs"], "1", ["001"]),
        (["/s/1.svs"], "001", ["1"]),
        (["/s/001.svs", "/s/01.svs"], "1", []),
        (["/s/1.svs", "/s/01.svs"], "1", ["1"]),
        (["/s/a001.svs"], "a1", []),
    ],
)
def test_leading_zeros_that_a_spreadsheet_lost_are_found_where_one_slide_fits(
    paths: Sequence[str], label: str, expected: list[str]
) -> None:
    assert list(met(names_of(*paths), label)) == expected


def test_case_counts_only_where_it_must() -> None:
    names = names_of("/s/s1.svs", "/s/S1.svs")
    assert met(names, "s1", "S1") == {"s1": "s1", "S1": "S1"}
    assert match(names_of("/s/ab.svs", "/s/aB.svs"), "AB").labels == {}


def test_barcodes_meet_every_slide_of_a_patient_and_the_longer_one_wins() -> None:
    names = names_of("/s/P-1_a.svs", "/s/P-1_b.svs", "/s/P-1-2_c.svs", "/s/P-10_d.svs")
    assert met(names, "P-1", "P-1-2", level="patient") == {"P-1_a": "P-1", "P-1_b": "P-1", "P-1-2_c": "P-1-2"}
    assert [row["name"] for row in match(names, "P-7", level="patient").unmet] == ["P-7"]


def test_ten_thousand_labels_of_ten_thousand_slides_are_matched_in_a_second() -> None:
    names = names_of(*(f"/scans/{k:05d}.svs" for k in range(10_000)))
    assert len(match(names, *(str(k) for k in range(10_000))).labels) == 10_000
