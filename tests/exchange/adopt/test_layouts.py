"""Layouts of public sets: labels and groups of every picture, and what is missing, doubled or misnamed."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from her2batch.errors import InputError
from her2batch.exchange.adopt.layouts import LAYOUTS, SLIDE_OF_NAME, LayoutFiles, LayoutRequest, find_layout
from tests.exchange.adopt import sets


def find(name: str, root: Path, stain: str = "her2", pattern: str | None = None) -> LayoutFiles:
    files = sorted(PurePosixPath(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return LAYOUTS[name].find(LayoutRequest(root, files, stain, re.compile(pattern) if pattern else None))


def labels(found: LayoutFiles) -> dict[str, tuple[str | None, str | None, str | None]]:
    return {picture.name: (picture.her2, picture.ish, picture.patient_id) for picture in found.pictures}


def problem_words(found: LayoutFiles) -> dict[str, str]:
    return {Path(name).name: re.split("[:, ]", problem)[0] for name, problem in found.problems.items()}


def test_bci(tmp_path: Path) -> None:
    found = find("bci", sets.make_bci(tmp_path))
    assert labels(found) == {
        "00000_train_0": ("0", None, "bci-train"), "00001_train_1+": ("1+", None, "bci-train"),
        "00002_test_2+": ("2+", None, "bci-test"), "00003_test_3+": ("3+", None, "bci-test"),
    }  # fmt: skip
    assert {picture.site for picture in found.pictures} == {"train", "test"}
    assert problem_words(found) == {
        "00009_test_1+.png": "misnamed", "00010_train.png": "misnamed", "00003_test_3+": "missing",
    }  # fmt: skip
    assert "does not say which patches are of one slide" in found.notes[0]
    assert {picture.stain for picture in find("bci", tmp_path, "he").pictures} == {"he"}


def test_her2_ihc_40x_keeps_the_patches_of_a_slide_in_one_group(tmp_path: Path) -> None:
    found = find("her2-ihc-40x", sets.make_her2_ihc_40x(tmp_path))
    assert labels(found) == {
        "patch-train-0-12_1": ("0", None, "slide-12"), "patch-train-0-12_2": ("0", None, "slide-12"),
        "patch-test-0-12_3": ("0", None, "slide-12"), "patch-train-3-S7_x0_y224": ("3+", None, "slide-S7"),
        "patch-test-2-9 (4)": ("2+", None, "slide-9"),
    }  # fmt: skip
    assert problem_words(found) == {"nine.png": "misnamed", "1_1.png": "misnamed", "WSI-based-dataset.zip": "not"}
    by_pattern = find("her2-ihc-40x", tmp_path, pattern=r"(?P<slide>.).*")
    assert {picture.patient_id for picture in by_pattern.pictures} == {"slide-1", "slide-S", "slide-9", "slide-n"}


@pytest.mark.parametrize(
    ("name", "slide"),
    [("12_34", "12"), ("12_3_4", "12"), ("S12_patch_7", "S12"), ("S12-tile07", "S12"), ("B7_x10_y20_0", "B7"),
     ("her2 004 (12)", "her2 004"), ("a_r3_c4", "a"), ("HER2_0012_patch_034", "HER2_0012"), ("nine", None)],
)  # fmt: skip
def test_slide_in_the_name_of_a_patch(name: str, slide: str | None) -> None:
    matched = SLIDE_OF_NAME.fullmatch(name)
    assert (matched["slide"] if matched else None) == slide


def test_ihc4bc_groups_by_patient(tmp_path: Path) -> None:
    found = find("ihc4bc", sets.make_ihc4bc(tmp_path))
    assert labels(found) == {
        "her2-Patient_1-Subregion_1-0001": (None, None, "Patient_1"),
        "her2-Patient_1-Subregion_2-0001": (None, None, "Patient_1"),
        "her2-Patient_2-Subregion_1-0001": (None, None, "Patient_2"),
    }
    assert problem_words(found) == {"stray.jpg": "misnamed"}
    assert len(find("ihc4bc", tmp_path, "er").pictures) == 3
    assert len(find("ihc4bc", tmp_path, "he").pictures) == 9


def test_single_folder_with_its_table(tmp_path: Path) -> None:
    found = find("single-folder", sets.make_single_folder(tmp_path))
    assert labels(found) == {
        "3_a": ("3+", None, "3_a"), "2_b": ("2+", "+", "2_b"), "2_c": ("2+", "-", "2_c"), "1_d": ("1+", None, "1_d"),
        "0_e": ("0", None, "0_e"), "1_f": ("1+", None, "1_f"),
    }  # fmt: skip
    assert problem_words(found) == {"holiday.jpg": "misnamed", "3_gone.jpg": "missing"}


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [("2,0,3_a.jpg", "3_a.jpg", "the table counts"), ("2-3+,0,3_a.jpg", "t.csv line 2", "not understood"),
     ("3,maybe,3_a.jpg", "t.csv line 2", "not understood"),
     ("3,1,3_a.jpg\n1,1,3_a.jpg", "t.csv line 3", "contradicts")],
)  # fmt: skip
def test_table_that_contradicts_is_named_with_its_line(tmp_path: Path, line: str, place: str, words: str) -> None:
    sets.write_picture(tmp_path / "3_a.jpg", 1)
    (tmp_path / "t.csv").write_text(f"score,status,path\n{line}\n")
    assert words in find("single-folder", tmp_path).problems[place]


def test_contradicting_lines_of_a_table_leave_a_picture_without_a_label(tmp_path: Path) -> None:
    for folder, (layout, names, table) in enumerate(
        [("single-folder", ["3_a.jpg", "1_b.jpg"], "score,path\n3,3_a.jpg\n1,1_b.jpg\n2,3_a.jpg\n1,1_b.jpg\n"),
         ("herohe", ["1.mrxs", "2.mrxs"], "name;status\n1;positive\n2;negative\n1;negative\n2;negative\n")]
    ):  # fmt: skip
        root = tmp_path / str(folder)
        for name in names:
            (root / Path(name).stem).mkdir(parents=True)
            (root / Path(name).stem / "Slidedat.ini").touch()
            sets.write_picture(root / name, 1) if name.endswith(".jpg") else (root / name).touch()
        (root / "t.csv").write_text(table)
        found = find(layout, root, "he" if layout == "herohe" else "her2")
        first, second = (picture.her2 or picture.ish for picture in sorted(found.pictures, key=lambda each: each.name))
        assert {first, second} == ({None, "1+"} if layout != "herohe" else {None, "-"}), layout
        assert "gets no label" in found.problems["t.csv line 4"], layout
        assert "gets no label" not in found.problems.get("t.csv line 5", ""), layout


def test_patients_of_the_table_are_groups_and_semicolons_are_read(tmp_path: Path) -> None:
    for name in ("3_a.jpg", "3_b.jpg"):
        sets.write_picture(tmp_path / name, ord(name[2]))
    (tmp_path / "t.csv").write_bytes("Patient ID;IHC score;File\nP1;3+;3_a.jpg\nP1;3+;3_b.jpg\n".encode("utf-16"))
    assert {picture.patient_id for picture in find("single-folder", tmp_path).pictures} == {"P1"}


def test_warwick(tmp_path: Path) -> None:
    found = find("warwick", sets.make_warwick(tmp_path))
    assert labels(found) == {
        "01_Her2": ("3+", None, "case-01"), "06_Her2": ("0", None, "case-06"), "11_Her2": (None, None, "case-11"),
    }  # fmt: skip
    assert problem_words(found) == {
        "case12.ndpi": "misnamed", "11_Her2.ndpi": "no", "case 9": "missing", "labels.csv line 5": "doubled",
    }  # fmt: skip
    assert [picture.name for picture in find("warwick", tmp_path, "he").pictures] == ["01_HE", "06_HE"]


def test_herohe_leaves_out_what_has_no_folder_or_no_tumour(tmp_path: Path) -> None:
    found = find("herohe", sets.make_herohe(tmp_path), "he")
    assert labels(found) == {"1": (None, "+", "herohe-1"), "2": (None, "-", "herohe-2")}
    assert problem_words(found) == {"325.mrxs": "left", "3.mrxs": "missing", "4": "missing"}


MAKERS: dict[str, Callable[[Path], Path]] = {
    "bci": sets.make_bci, "her2-ihc-40x": sets.make_her2_ihc_40x, "ihc4bc": sets.make_ihc4bc,
    "single-folder": sets.make_single_folder, "warwick": sets.make_warwick, "herohe": sets.make_herohe,
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_every_picture_a_group(tmp_path: Path, name: str) -> None:
    found = find(name, MAKERS[name](tmp_path), LAYOUTS[name].stains[0])
    assert found.pictures
    assert all(picture.patient_id for picture in found.pictures)


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(InputError, match="choose one of warwick, bci"):
        find_layout("acrobat")
