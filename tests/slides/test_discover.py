"""Discovery of slides: by content, each once, sorted; and the reasons why other files are ignored."""

import os
import re
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from her2batch.slides.dicom.instances import WHOLE_SLIDE_SOP_CLASS
from her2batch.slides.discover import (
    RULES_VERSION,
    SLIDE_MAGIC,
    SLIDE_SUFFIXES,
    DiscoveredSlides,
    discover_slides,
    file_kind,
)


def ignored_reasons(root: Path) -> dict[str, str]:
    return {file.path.name: file.reason for file in discover_slides(root)[1]}


def test_dicom_series_of_two_files_is_one_slide(real_data: Path) -> None:
    slides, ignored, _ = discover_slides(real_data / "slides")
    assert len(slides) == 11
    assert ignored == []
    boxes = next(slide for slide in slides if slide.path.parent.name == "dicom_boxes")
    assert [path.name for path in boxes.members] == ["boxes_0.dcm", "boxes_1.dcm"]
    assert boxes.bytes == sum(path.stat().st_size for path in boxes.members)


def test_content_counts_before_suffix(tmp_path: Path, real_data: Path) -> None:
    svs = (real_data / "slides/small.svs").read_bytes()
    (tmp_path / "no-suffix").write_bytes(svs)
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "not-really.svs").write_text("hello")
    assert [slide.path.name for slide in discover_slides(tmp_path)[0]] == ["no-suffix", "not-really.svs"]
    assert file_kind(tmp_path / "not-really.svs") == "named"
    assert ignored_reasons(tmp_path) == {"text.txt": "not a slide"}


def test_mrxs_and_its_folder_are_one_slide(tmp_path: Path) -> None:
    (tmp_path / "case.mrxs").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "case").mkdir()
    for name in ("Slidedat.ini", "Data0000.dat", "Index.dat"):
        (tmp_path / "case" / name).write_bytes(b"II*\0")
    slides, ignored, _ = discover_slides(tmp_path)
    assert [(slide.path.name, len(slide.members)) for slide in slides] == [("case.mrxs", 4)]
    assert ignored == []


def test_vms_and_its_listed_images_are_one_slide(tmp_path: Path) -> None:
    (tmp_path / "case.vms").write_text("[Virtual Microscope Specimen]\nImageFile(1,0)=case(1,0).jpg\nMapFile=map.jpg\n")
    for name in ("case(1,0).jpg", "map.jpg", "holiday.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8")
    slides, *_ = discover_slides(tmp_path)
    assert [path.name for path in slides[0].members] == ["case.vms", "case(1,0).jpg", "map.jpg"]
    assert ignored_reasons(tmp_path) == {"holiday.jpg": "not a slide"}


def test_hidden_partial_and_special_files_are_ignored(tmp_path: Path) -> None:
    for name in (".hidden.svs", "a.svs.part", "b.svs.crdownload", "c.svs~"):
        (tmp_path / name).write_bytes(b"II*\0")
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere.svs").symlink_to(tmp_path / "gone")
    (tmp_path / "folder.svs").mkdir()
    assert discover_slides(tmp_path)[0] == []
    assert ignored_reasons(tmp_path) == {
        ".hidden.svs": "hidden",
        "a.svs.part": "partial: still being copied",
        "b.svs.crdownload": "partial: still being copied",
        "c.svs~": "partial: still being copied",
        "pipe.svs": "not a regular file",
        "loop": "link to a folder",
        "nowhere.svs": "link that leads nowhere",
    }


def test_slides_are_sorted_by_path_without_the_excluded_cohort(tmp_path: Path) -> None:
    for name in ("b/2.svs", "a/3.svs", "b/1.svs", "cohort/x.svs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"II*\0" + name.encode())
    slides, *_ = discover_slides(tmp_path, exclude=tmp_path / "cohort")
    assert [str(slide.path.relative_to(tmp_path)) for slide in slides] == ["a/3.svs", "b/1.svs", "b/2.svs"]


def write_dicom(path: Path, series: str, sop_class: str = WHOLE_SLIDE_SOP_CLASS) -> None:
    """Write a minimal DICOM file with its series."""
    facts = FileMetaDataset()
    facts.TransferSyntaxUID = ExplicitVRLittleEndian
    facts.MediaStorageSOPClassUID, facts.MediaStorageSOPInstanceUID = sop_class, f"{series}.{len(path.name)}"
    dataset = Dataset()
    dataset.file_meta, dataset.SOPClassUID, dataset.SeriesInstanceUID = facts, sop_class, series
    dataset.save_as(path, enforce_file_format=True)


def write_file(path: Path, kind: str) -> None:
    """Write a small file of one of the kinds that the search distinguishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind.startswith("dicom"):
        write_dicom(path, f"1.2.{kind[-1]}", "1.2.3" if kind.endswith("0") else WHOLE_SLIDE_SOP_CLASS)
    else:
        path.write_bytes({"tiff": b"II*\0", "text": b"hello", "vms": b"[VMS]\nImageFile=a/1\nMap=2.svs\n"}[kind])


def overwrite_content(path: Path) -> None:
    """Overwrite a file without changing its size and modification time: only opening it shows the difference."""
    facts = path.stat()
    path.write_bytes(b"?" * facts.st_size)
    os.utime(path, ns=(0, facts.st_mtime_ns))


def member_names(found: DiscoveredSlides) -> list[tuple[str, ...]]:
    return [tuple(path.name for path in slide.members) for slide in found.slides]


PATHS = ["1.svs", "2.svs", "a/1", "a/2", "a/case.vms", "case.vms", "b.mrxs", "b/1.dat", "a/3.dcm"]
STEPS = st.tuples(
    st.sampled_from(PATHS), st.sampled_from(["tiff", "text", "vms", "dicom0", "dicom1", "dicom2", "delete"])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=16))
def test_known_probes_do_not_change_the_result(steps: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        root, looks = Path(folder), {}
        for clock, (place, kind) in enumerate(steps, start=1000):
            if kind == "delete":
                (root / place).unlink(missing_ok=True)
            else:
                write_file(root / place, kind)
                os.utime(root / place, ns=(0, clock))
            found = discover_slides(root, known=looks)
            assert found == discover_slides(root)
            looks = looks | found.probes


def test_unchanged_files_are_not_opened_again(tmp_path: Path) -> None:
    kinds = ["tiff", "tiff", "text", "dicom1", "vms", "text", "text", "text", "dicom1"]
    for place, kind in zip(PATHS, kinds, strict=True):
        write_file(tmp_path / place, kind)
    first = discover_slides(tmp_path)
    for place in PATHS:
        overwrite_content(tmp_path / place)
    again = discover_slides(tmp_path, known=first.probes)
    assert again == first
    assert discover_slides(tmp_path) != first


def test_new_dicom_file_joins_its_series_without_opening_the_others(tmp_path: Path) -> None:
    for k in range(2):
        write_dicom(tmp_path / f"{k}.dcm", "1.2.3.4")
    first = discover_slides(tmp_path)
    overwrite_content(tmp_path / "0.dcm")
    overwrite_content(tmp_path / "1.dcm")
    write_dicom(tmp_path / "2.dcm", "1.2.3.4")
    assert member_names(discover_slides(tmp_path, known=first.probes)) == [("0.dcm", "1.dcm", "2.dcm")]


def test_late_image_joins_its_vms(tmp_path: Path) -> None:
    (tmp_path / "case.vms").write_text("[VMS]\nImageFile=late.jpg\n")
    first = discover_slides(tmp_path)
    (tmp_path / "late.jpg").write_bytes(b"\xff\xd8")
    assert member_names(discover_slides(tmp_path, known=first.probes)) == [("case.vms", "late.jpg")]


def test_probes_can_be_stored_with_hashed_names(tmp_path: Path) -> None:
    write_file(tmp_path / "case.vms", "vms")
    write_file(tmp_path / "2.svs", "tiff")
    write_file(tmp_path / "Doe.dcm", "dicom1")
    found = discover_slides(tmp_path, name=lambda path: sha256(str(path).encode()).hexdigest())
    assert member_names(found) == [("Doe.dcm",), ("case.vms", "2.svs")]
    assert not {"case", "2.svs", "Doe", "1.2.1"} & set(re.findall(r"[\w.]+", str(found.probes)))
    assert (
        discover_slides(tmp_path, known=found.probes, name=lambda path: sha256(str(path).encode()).hexdigest()) == found
    )


def test_probes_of_another_rules_version_are_repeated(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "tiff")
    looks = {
        path: look._replace(rules=RULES_VERSION - 1, kind=None)
        for path, look in discover_slides(tmp_path).probes.items()
    }
    assert len(discover_slides(tmp_path, known=looks).slides) == 1


def test_changed_rules_need_a_new_version() -> None:
    rules = repr((sorted(SLIDE_SUFFIXES), SLIDE_MAGIC, WHOLE_SLIDE_SOP_CLASS))
    assert (RULES_VERSION, sha256(rules.encode()).hexdigest()[:8]) == (2, "0b6cae95")


def test_vms_files_that_list_each_other_are_two_slides(tmp_path: Path) -> None:
    (tmp_path / "a.vms").write_text("[VMS]\nImageFile=b.vms\n")
    (tmp_path / "b.vms").write_text("[VMS]\nImageFile=a.vms\n")
    assert member_names(discover_slides(tmp_path)) == [("a.vms",), ("b.vms",)]
