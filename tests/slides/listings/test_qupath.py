"""QuPath projects as scan folders: addresses of every kind, projects that were moved, and files that are missing."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from her2batch.errors import InputError
from her2batch.slides.discover import discover_slides
from her2batch.slides.listings.qupath import read_project
from tests.slides.dicom.levels import write_level


def write_project(folder: Path, *entries: object, saved_as: str | None = None) -> Path:
    """Write a project as QuPath 0.2 and later do. An entry that is a text is the address of a file."""
    images = [
        entry if isinstance(entry, dict) else {
            "serverBuilder": {"builderType": "uri", "providerClassName": "qupath.lib.images.servers.openslide."
                              "OpenslideServerBuilder", "uri": entry, "args": [], "metadata": {"name": "a"}},
            "entryID": number, "randomizedName": "0a1b", "imageName": f"image {number}", "metadata": {},
        }
        for number, entry in enumerate(entries, start=1)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    project = folder / "project.qpproj"
    uri = saved_as or f"file:{project}"
    project.write_text(json.dumps({"version": "0.5.1", "uri": uri, "lastID": len(images), "images": images}))
    return project


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"II*\0" + path.name.encode())
    return path


def found_in(project: Path) -> list[Path]:
    return [image.path for image in read_project(project) if image.missing is None]


@pytest.mark.parametrize("name", ["a.svs", "a b (HER2) #3.svs", "50%.svs", "Møller 漢.svs", "a+b&c;d.svs", "[1].svs"])
@pytest.mark.parametrize("start", ["file:", "file://", "file://localhost"])
def test_addresses_are_decoded(tmp_path: Path, name: str, start: str) -> None:
    slide = touch(tmp_path / "slides" / name)
    assert found_in(write_project(tmp_path / "project", f"{start}{quote(str(slide))}")) == [slide]


def test_one_file_is_not_found_for_two_images_of_different_folders(tmp_path: Path) -> None:
    """Both slides are called 1.svs, and only one of them was copied beside the project."""
    slide = touch(tmp_path / "project" / "1.svs")
    project = write_project(tmp_path / "project", "file:/old/caseA/1.svs", "file:/old/caseB/1.svs")
    assert found_in(project) == [slide]
    (lost,) = [image for image in read_project(project) if image.missing is not None]
    assert "only file of this name" in str(lost.missing)
    assert lost.path.parts[-2:] == ("caseB", "1.svs")
    both = [touch(tmp_path / "project" / case / "1.svs") for case in ("caseA", "caseB")]
    assert found_in(project) == both


def test_image_inside_a_file_and_further_builders(tmp_path: Path) -> None:
    slide, other = touch(tmp_path / "a.vsi"), touch(tmp_path / "b.svs")
    rotated = {
        "builderType": "rotated",
        "rotation": "ROTATE_90",
        "builder": {"builderType": "uri", "uri": f"file:{other}"},
    }
    joined = {"builderType": "sparse", "regions": [{"builder": {"builderType": "uri", "uri": f"file:{other}"}}]}
    entries = [
        f"file:{slide}?name=20x_01",
        f"file:{slide}#series=2",
        {"serverBuilder": rotated},
        {"serverBuilder": joined},
    ]
    assert found_in(write_project(tmp_path, *entries)) == [slide, other]


def test_project_of_an_old_version_has_plain_paths(tmp_path: Path) -> None:
    slide, beside = touch(tmp_path / "slides/a b.svs"), touch(tmp_path / "c.svs")
    entries = [{"path": str(slide), "name": "a"}, {"path": "c.svs", "name": "c"}]
    assert found_in(write_project(tmp_path, *entries)) == [slide, beside]


MOVED = {
    "beside the project": ("file:/home/lab/study/p.qpproj", "file:/home/lab/study/slides/a.svs", "study/slides/a.svs"),
    "above the project": ("file:/data/qp/project.qpproj", "file:/data/slides/deep/a.svs", "slides/deep/a.svs"),
    "windows, one drive": ("file:/C:/lab/qp/project.qpproj", "file:/C:/lab/slides/a%20b.svs", "slides/a b.svs"),
    "windows, two drives": ("file:/C:/lab/project.qpproj", "file:/D:/scans/2024/a.svs", "scans/2024/a.svs"),
    "windows share": ("file://server/x/project.qpproj", "file://server/share/scans/a.svs", "scans/a.svs"),
    "windows path": ("file:/C:/lab/project.qpproj", "C:\\scans\\a.svs", "study/a.svs"),
    "flat": ("file:/home/lab/project.qpproj", "file:/mnt/archive/2024/03/a.svs", "study/a.svs"),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVED)
def test_slides_are_found_after_project_and_slides_were_moved(tmp_path: Path, case: str) -> None:
    saved_as, address, place = MOVED[case]
    slide = touch(tmp_path / place)
    project = write_project(tmp_path / "study", address, saved_as=saved_as)
    assert [path.resolve() for path in found_in(project)] == [slide]


def test_missing_files_are_listed_with_the_remedy(tmp_path: Path) -> None:
    entries = ["file:/gone/a.svs", "https://idr.example/omero/7", {"imageName": "no builder"}, 5]
    project = write_project(tmp_path, f"file:{touch(tmp_path / 'here.svs')}", *entries)
    found = discover_slides(project)
    assert [slide.path.name for slide in found.slides] == ["here.svs"]
    reasons = {file.path.name: file.reason for file in found.ignored}
    assert reasons["a.svs"].startswith("missing: there is no such file, but project.qpproj lists it; copy the slides")
    assert "on a server (https)" in reasons["7"]
    assert "has no path for it" in reasons["no builder"]
    assert all(reason.startswith("missing: ") for reason in reasons.values())


def test_slide_of_several_files_is_whole_and_its_neighbours_are_left_out(tmp_path: Path) -> None:
    levels = [write_level(tmp_path / "dicom" / f"{k}.dcm", k) for k in range(2)]
    write_level(tmp_path / "dicom" / "other.dcm", 0, glass=2)
    mirax, data = touch(tmp_path / "m.mrxs"), touch(tmp_path / "m" / "Data0000.dat")
    touch(tmp_path / "neighbour.svs")
    found = discover_slides(write_project(tmp_path / "qp", f"file:{levels[1]}", f"file:{mirax}"))
    assert [slide.members for slide in found.slides] == [tuple(levels), (mirax, data)]
    assert found.ignored == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": 3}', "{" * 100_000, '{"images": [' * 5000, "\0"])
def test_file_that_is_no_project_is_refused(tmp_path: Path, text: str) -> None:
    project = tmp_path / "project.qpproj"
    project.write_text(text)
    with pytest.raises(InputError, match=r"project\.qpproj"):
        discover_slides(project)
