"""Finding slides: by content, each once, in order; every other file with its reason."""

import os
from pathlib import Path

from her2batch.slides.intake import find, kind_of


def reasons(root: Path) -> dict[str, str]:
    return {one.path.name: one.reason for one in find(root)[1]}


def test_the_real_folder_counts_a_two_file_dicom_once(real_data: Path) -> None:
    slides, ignored = find(real_data / "slides")
    assert len(slides) == 11
    assert ignored == []
    boxes = next(one for one in slides if one.path.parent.name == "dicom_boxes")
    assert [path.name for path in boxes.members] == ["boxes_0.dcm", "boxes_1.dcm"]
    assert boxes.bytes == sum(path.stat().st_size for path in boxes.members)


def test_content_wins_over_the_suffix(tmp_path: Path, real_data: Path) -> None:
    svs = (real_data / "slides/small.svs").read_bytes()
    (tmp_path / "no-suffix").write_bytes(svs)
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "not-really.svs").write_text("hello")
    assert [one.path.name for one in find(tmp_path)[0]] == ["no-suffix", "not-really.svs"]
    assert kind_of(tmp_path / "not-really.svs") == "named"
    assert reasons(tmp_path) == {"text.txt": "not a slide"}


def test_an_mrxs_and_its_folder_are_one_slide(tmp_path: Path) -> None:
    (tmp_path / "case.mrxs").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "case").mkdir()
    for name in ("Slidedat.ini", "Data0000.dat", "Index.dat"):
        (tmp_path / "case" / name).write_bytes(b"II*\0")
    slides, ignored = find(tmp_path)
    assert [(one.path.name, len(one.members)) for one in slides] == [("case.mrxs", 4)]
    assert ignored == []


def test_a_vms_owns_the_pictures_it_names(tmp_path: Path) -> None:
    (tmp_path / "case.vms").write_text("[Virtual Microscope Specimen]\nImageFile(1,0)=case(1,0).jpg\nMapFile=map.jpg\n")
    for name in ("case(1,0).jpg", "map.jpg", "holiday.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8")
    slides, _ = find(tmp_path)
    assert [path.name for path in slides[0].members] == ["case.vms", "case(1,0).jpg", "map.jpg"]
    assert reasons(tmp_path) == {"holiday.jpg": "not a slide"}


def test_hidden_and_partial_files_and_odd_things_are_left_alone(tmp_path: Path) -> None:
    for name in (".hidden.svs", "a.svs.part", "b.svs.crdownload", "c.svs~"):
        (tmp_path / name).write_bytes(b"II*\0")
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere.svs").symlink_to(tmp_path / "gone")
    (tmp_path / "folder.svs").mkdir()
    assert find(tmp_path)[0] == []
    assert reasons(tmp_path) == {
        ".hidden.svs": "hidden",
        "a.svs.part": "partial: still being copied",
        "b.svs.crdownload": "partial: still being copied",
        "c.svs~": "partial: still being copied",
        "pipe.svs": "not a regular file",
        "loop": "link to a folder",
        "nowhere.svs": "link that leads nowhere",
    }


def test_the_order_is_that_of_the_paths_and_the_cohort_is_left_out(tmp_path: Path) -> None:
    for name in ("b/2.svs", "a/3.svs", "b/1.svs", "cohort/x.svs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"II*\0" + name.encode())
    found = [str(one.path.relative_to(tmp_path)) for one in find(tmp_path, leave_out=tmp_path / "cohort")[0]]
    assert found == ["a/3.svs", "b/1.svs", "b/2.svs"]
