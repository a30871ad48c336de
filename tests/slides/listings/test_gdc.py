"""Downloads from the GDC as scan folders: what its client leaves there, and what of the manifest did not arrive."""

from pathlib import Path

import pytest

from her2batch.slides.discover import discover_slides
from her2batch.slides.listings.gdc import read_manifest

SLIDE = b"II*\0" + b"x" * 96


def uuid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def name(number: int) -> str:
    return f"TCGA-A1-A0S{number}-01Z-00-DX1.{uuid(number).upper()}.svs"


def make_download(root: Path, arrived: int = 2, listed: int = 4, archive: bool = False) -> None:
    """Make the folder of gdc-client, or of an archive of the portal: slides with logs and annotations, one partial."""
    lines = ["id\tfilename\tmd5\tsize\tstate"]
    for number in range(listed):
        folder = root / uuid(number)
        file = f"{uuid(number)}/{name(number)}" if archive else name(number)
        lines.append(f"{uuid(number)}\t{file}\t{'0' * 32}\t{len(SLIDE)}\treleased")
        if number < arrived:
            (folder / "logs").mkdir(parents=True)
            (folder / name(number)).write_bytes(SLIDE)
            (folder / "logs" / f"{name(number)}.parcel").write_bytes(b"II*\0")
            (folder / "annotations.txt").write_text("id\tsubmitter_id\n")
    lines.append(f"{uuid(99)}\tclinical.tsv\t{'0' * 32}\t10\treleased")
    (root / ("MANIFEST.txt" if archive else "gdc_manifest.2026-11-01.120000.txt")).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("archive", [False, True])
def test_slides_are_found_and_what_did_not_arrive_is_listed(tmp_path: Path, archive: bool) -> None:
    make_download(tmp_path, archive=archive)
    (tmp_path / uuid(2)).mkdir()
    (tmp_path / uuid(2) / f"{name(2)}.partial").write_bytes(SLIDE[:20])
    found = discover_slides(tmp_path)
    assert [slide.path.name for slide in found.slides] == [name(0), name(1)]
    reasons = {file.path.name: file.reason for file in found.ignored}
    for number in (2, 3):
        assert reasons[name(number)].startswith("missing: listed in ")
        assert f"gdc-client download -m {'MANIFEST' if archive else 'gdc_manifest'}" in reasons[name(number)]
    assert reasons[f"{name(2)}.partial"] == "partial: still being copied"
    assert "clinical.tsv" not in reasons


def test_slide_that_is_shorter_than_the_manifest_says_is_not_read(tmp_path: Path) -> None:
    make_download(tmp_path)
    (tmp_path / uuid(1) / name(1)).write_bytes(SLIDE[:50])
    found = discover_slides(tmp_path)
    assert [slide.path.name for slide in found.slides] == [name(0)]
    reason = next(file.reason for file in found.ignored if file.path.name == name(1))
    assert reason.startswith("partial: 50 of the 100 bytes in gdc_manifest")


def test_slides_without_their_folders_are_found_by_name(tmp_path: Path) -> None:
    make_download(tmp_path, arrived=0, listed=1)
    (tmp_path / name(0)).write_bytes(SLIDE)
    assert [file.path.suffix for file in discover_slides(tmp_path).ignored] == [".txt"]


@pytest.mark.parametrize(
    "text",
    ["", "id,filename\n1,a.svs\n", "shipping manifest\n", "id\tfilename\n1\t/etc/a.svs\n1\t../a.svs\n1\t\n", "\0\0"],
)
def test_other_text_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "MANIFEST.txt").write_text(text)
    assert list(read_manifest(tmp_path / "MANIFEST.txt")) == []
    assert [file.reason for file in discover_slides(tmp_path).ignored] == ["not a slide"]
