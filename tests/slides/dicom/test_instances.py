"""DICOM instances: which of them are one slide, wherever an archive has put them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from her2batch.slides.dicom.instances import DicomInstance, read_instance
from her2batch.slides.discover import discover_slides
from tests.slides.dicom.levels import write_level

Write = Callable[..., Path]


def slides_of(folder: Path) -> list[list[str]]:
    """Names of the files of each slide, with the folder below `folder`."""
    found = discover_slides(folder).slides
    return [[str(path.relative_to(folder)) for path in slide.members] for slide in found]


def reasons(folder: Path) -> dict[str, str]:
    return {file.path.name: file.reason.partition(":")[0] for file in discover_slides(folder).ignored}


ONE_SLIDE = {
    "one series in one folder": lambda root, k: write_level(root / f"{k}.dcm", k),
    "a folder each, without suffix": lambda root, k: write_level(root / f"I{k}" / f"IM{k:04}", k),
    "a series each": lambda root, k: write_level(root / f"{k}.dcm", k, series=200 + k),
    "a folder and a series each": lambda root, k: write_level(root / f"{k}" / "image.dcm", k, series=200 + k),
    "finest level last": lambda root, k: write_level(root / f"{2 - k}" / "a.dcm", k, series=200 + k),
    "no container": lambda root, k: write_level(root / f"{k}.dcm", k, series=k, ContainerIdentifier=None),
    "container in one level": lambda root, k: write_level(
        root / f"{k}.dcm", k, series=k, ContainerIdentifier=None if k else "GLASS1"
    ),
    "no specimen": lambda root, k: write_level(root / f"{k}.dcm", k, series=k, specimen=None),
    "no frame of reference, a folder each": lambda root, k: write_level(
        root / f"{k}" / "a.dcm", k, FrameOfReferenceUID=None
    ),
    "no stated area": lambda root, k: write_level(
        root / f"{k}.dcm", k, series=k, ImagedVolumeWidth=None, ImagedVolumeHeight=None
    ),
    "a frame of reference each, one series": lambda root, k: write_level(
        root / f"{k}.dcm", k, FrameOfReferenceUID=f"1.2.3.{k}"
    ),
    "odd sizes": lambda root, k: write_level(root / f"{k}.dcm", k, series=k, size=(389, 255)),
}


@pytest.mark.parametrize("case", ONE_SLIDE)
def test_levels_of_one_glass_are_one_slide(tmp_path: Path, case: str) -> None:
    for level in range(3):
        ONE_SLIDE[case](tmp_path, level)
    assert [len(files) for files in slides_of(tmp_path)] == [3]


TWO_SLIDES = {
    "two glasses": lambda root, k: write_level(root / f"{k}.dcm", k % 2, glass=1 + k // 2, series=k),
    "one frame for two containers": lambda root, k: write_level(
        root / f"{k}.dcm", k % 2, series=k, FrameOfReferenceUID="1.2.3", ContainerIdentifier=f"G{k // 2}"
    ),
    "two specimens": lambda root, k: write_level(root / f"{k}.dcm", k % 2, series=k, specimen=f"A{k // 2}"),
    "two areas of one glass": lambda root, k: write_level(
        root / f"{k}.dcm", k % 2, series=k, origin=(10.0 * (k // 2), 2.0)
    ),
    "two areas of another shape": lambda root, k: write_level(
        root / f"{k}.dcm", k % 2, series=k, size=(384, 256) if k < 2 else (384, 384)
    ),
    "scanned twice": lambda root, k: write_level(
        root / f"{k}.dcm", k % 2, series=k, FrameOfReferenceUID=f"1.2.{k // 2}"
    ),
}


@pytest.mark.parametrize("case", TWO_SLIDES)
def test_levels_of_two_glasses_or_areas_are_two_slides(tmp_path: Path, case: str) -> None:
    for number in range(4):
        TWO_SLIDES[case](tmp_path, number)
    assert slides_of(tmp_path) == [["0.dcm", "1.dcm"], ["2.dcm", "3.dcm"]]


def test_level_without_container_joins_neither_of_two_glasses(tmp_path: Path) -> None:
    for level, container in enumerate(("A", "B", None)):
        write_level(
            tmp_path / f"{level}.dcm", 0, series=level, FrameOfReferenceUID="1.2", ContainerIdentifier=container
        )
    assert slides_of(tmp_path) == [["0.dcm"], ["1.dcm"], ["2.dcm"]]


def test_label_and_overview_images_are_ignored_with_the_reason(tmp_path: Path) -> None:
    write_level(tmp_path / "0.dcm", 0)
    for number, flavor in enumerate(("LABEL", "OVERVIEW", "THUMBNAIL"), start=1):
        image_type = ["ORIGINAL", "PRIMARY", flavor, "NONE"]
        write_level(tmp_path / f"{flavor}.dcm", 0, series=number, ImageType=image_type, SOPInstanceUID=f"1.2.{number}")
    assert slides_of(tmp_path) == [["0.dcm"]]
    assert set(reasons(tmp_path).values()) == {"DICOM label, overview or thumbnail, which is not used"}


def test_copy_of_a_slide_is_found_as_a_whole_and_copies_of_levels_are_listed(tmp_path: Path) -> None:
    for level in range(2):
        write_level(tmp_path / "a" / f"{level}.dcm", level)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert slides_of(tmp_path) == [["a/0.dcm", "a/1.dcm"], ["b/0.dcm", "b/1.dcm"]]
    (tmp_path / "b" / "0.dcm").unlink()
    assert slides_of(tmp_path) == [["a/0.dcm", "a/1.dcm"]]
    assert reasons(tmp_path) == {"1.dcm": "DICOM copy of an instance of the slide"}


def test_copy_that_has_a_level_more_completes_the_slide(tmp_path: Path) -> None:
    for folder, level in (("a", 1), ("b", 0), ("b", 1)):
        write_level(tmp_path / folder / f"{level}.dcm", level)
    assert slides_of(tmp_path) == [["a/1.dcm", "b/0.dcm"]]


def test_stored_identifiers_are_hashed_and_read_back(tmp_path: Path) -> None:
    instance = read_instance(write_level(tmp_path / "0.dcm", 0, origin=(1.5, -2.0)))
    assert instance is not None
    assert instance.area == pytest.approx((0.096, 0.064, 1.5, -2.0))
    stored = instance.to_strings(lambda value: f"h{hash(value)}")
    assert not {"GLASS1", "A1", instance.series, instance.frame, instance.instance} & set(stored)
    assert DicomInstance.from_strings(instance.to_strings(str)) == instance
    assert DicomInstance.from_strings(stored).columns == 384


@pytest.mark.parametrize("damage", [b"", b"\x08\x00\x05\x00SQ\0\0\xff\xff\xff\xff" * 3000])
def test_damaged_header_makes_a_slide_of_its_own(tmp_path: Path, damage: bytes) -> None:
    path = write_level(tmp_path / "0.dcm", 0)
    content = path.read_bytes()
    path.write_bytes(content[:200] + damage)
    write_level(tmp_path / "1.dcm", 1)
    assert slides_of(tmp_path) in ([["0.dcm"], ["1.dcm"]], [["1.dcm"]])  # it may look like no slide at all
