"""Adoption of a set: slides, labels, what is listed, and going on after an interruption."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.exchange.adopt import adopting
from her2batch.exchange.adopt.adopting import AdoptRequest, adopt
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.slides.discover import discover_slides
from her2batch.slides.readers import open_slide
from her2batch.store.label_sheets.reading import read_label_sheet
from tests.exchange.adopt import sets


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def label_rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "labels.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def test_cores_become_slides_with_labels_that_an_ingest_takes(tmp_path: Path) -> None:
    root = sets.make_single_folder(tmp_path / "set")
    sets.write_picture(root / "3_large.jpg", 51, (1200, 1000))
    summary = adopt(AdoptRequest("single-folder", root, tmp_path / "scans", mpp=0.25))
    assert (summary.slides, summary.groups, summary.labelled, summary.exit_code) == (7, 7, 7, 0)
    assert dict(summary.stored) == {"copied": 7}
    sheet = read_label_sheet(tmp_path / "scans" / "labels.csv")
    assert {row["slide_id"]: row["her2"] for row in sheet.rows}["2_b"] == "2+"
    assert label_rows(tmp_path / "scans")["2_b"]["ish"] == "+"
    found = ingest(
        IngestRequest(tmp_path / "scans" / "slides", tmp_path / "c", labels=tmp_path / "scans" / "labels.csv"),
        Plan(), Resources(workers=0),
    )  # fmt: skip
    rows = {row["slide_id"]: row for row in found.slides}
    assert (rows["3_large"]["stain"], rows["3_large"]["patient_id"], rows["3_large"]["mpp"]) == (
        "her2",
        "3_large",
        0.25,
    )
    assert rows["3_large"]["n_tiles"] > 0


def test_copies_and_equal_names_are_listed(tmp_path: Path) -> None:
    root = sets.make_bci(tmp_path / "set")
    shutil.copyfile(root / "IHC/train/00000_train_0.png", root / "IHC/train/00077_train_0.png")
    shutil.copyfile(root / "IHC/train/00001_train_1+.png", root / "IHC/test/00088_test_3+.png")
    summary = adopt(AdoptRequest("bci", root, tmp_path / "scans"))
    assert summary.problems["IHC/train/00077_train_0.png"] == "doubled: the same picture as IHC/train/00000_train_0.png"
    assert summary.problems["IHC/test/00088_test_3+.png"] == (
        "left out: the same picture as IHC/train/00001_train_1+.png, with another label (3+, 1+)"
    )
    assert summary.problems["IHC/train/00001_train_1+.png"].startswith("doubled: ")
    assert summary.slides == 3
    assert len(list((tmp_path / "scans" / "slides").iterdir())) == 3
    report = json.loads((tmp_path / "scans" / "adopted.json").read_text())
    assert (report["mpp"], report["slides"], report["stored"]) == (0.46, 3, {"lossless": 3})
    with open_slide(tmp_path / "scans" / "slides" / "00000_train_0.tiff") as slide:
        assert slide.info.mpp == pytest.approx(0.46)


def test_second_run_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = sets.make_single_folder(tmp_path / "set")
    request = AdoptRequest("single-folder", root, tmp_path / "scans", mpp=0.25)
    whole = AdoptRequest("single-folder", root, tmp_path / "whole", mpp=0.25)
    adopt(whole)

    def stop(count: int, _: int) -> None:
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adopt(request, stop)
    journal = tmp_path / "scans" / "adopted.jsonl"
    journal.write_text(journal.read_text() + '{"path": "1_')  # killed while it was written
    encode = adopting.encode_picture
    encoded: list[str] = []
    monkeypatch.setattr(adopting, "encode_picture", lambda path, data: encoded.append(path.name) or encode(path, data))
    assert adopt(request).already == 3
    assert len(encoded) == 3
    assert adopt(request).already == 6
    assert len(encoded) == 3
    left, right = contents(tmp_path / "scans"), contents(tmp_path / "whole")
    for name in ("adopted.jsonl",):
        left.pop(name), right.pop(name)
    assert left == right


def test_changed_picture_is_converted_again(tmp_path: Path) -> None:
    root = sets.make_single_folder(tmp_path / "set")
    request = AdoptRequest("single-folder", root, tmp_path / "scans", mpp=0.25)
    adopt(request)
    before = contents(tmp_path / "scans" / "slides")
    sets.write_picture(root / "1_d.jpg", 77)
    assert adopt(request).already == 5
    after = contents(tmp_path / "scans" / "slides")
    assert [name for name in before if before[name] != after[name]] == ["1_d.tiff"]


def test_damaged_picture_fails_and_the_others_go_on(tmp_path: Path) -> None:
    root = sets.make_single_folder(tmp_path / "set")
    path = root / "1_d.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    summary = adopt(AdoptRequest("single-folder", root, tmp_path / "scans", mpp=0.25))
    assert (summary.slides, summary.exit_code) == (5, 3)
    assert "cut off; download the file again" in summary.failed["1_d.jpg"]
    assert "1_d" not in label_rows(tmp_path / "scans")


def test_slides_of_a_set_are_linked_with_their_folders(tmp_path: Path) -> None:
    root = sets.make_herohe(tmp_path / "set")
    summary = adopt(AdoptRequest("herohe", root, tmp_path / "scans", stain="he"))
    assert dict(summary.stored) == {"linked": 2}
    found = discover_slides(tmp_path / "scans" / "slides")
    assert [len(slide.members) for slide in found.slides] == [2, 2]
    assert {row["stain"] for row in label_rows(tmp_path / "scans").values()} == {"he"}
    assert adopt(AdoptRequest("herohe", root, tmp_path / "scans", stain="he")).already == 2


REFUSED = [
    (AdoptRequest("herohe", Path("set"), Path("scans")), "is H&E, which no IHC task.*--stain he"),
    (AdoptRequest("bci", Path("set"), Path("scans"), stain="er"), "no pictures with the stain 'er'"),
    (AdoptRequest("ihc4bc", Path("set"), Path("scans")), "does not state the resolution.*--mpp"),
    (AdoptRequest("bci", Path("set"), Path("scans"), mpp=250), "250 µm/px is implausible"),
    (AdoptRequest("warwick", Path("set"), Path("scans"), mpp=0.25), "state their own resolution"),
    (AdoptRequest("bci", Path("nowhere"), Path("scans")), "no such folder"),
    (AdoptRequest("bci", Path("set"), Path()), "lies in the folder for the slides"),
    (AdoptRequest("bci", Path("set"), Path("scans"), slide_pattern="("), "no regular expression"),
    (AdoptRequest("bci", Path("set"), Path("scans"), slide_pattern=".*"), "no group named slide"),
    (AdoptRequest("bci", Path("set"), Path("scans")), "no her2 pictures in the layout bci .*holiday.png: misnamed"),
]


@pytest.mark.parametrize(("request_", "message"), REFUSED)
def test_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: AdoptRequest, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sets.write_picture(tmp_path / "set" / "holiday.png", 1)
    with pytest.raises(InputError, match=message):
        adopt(request_)
    assert not (tmp_path / "scans").exists()


def test_folder_with_slides_of_another_resolution_is_refused(tmp_path: Path) -> None:
    root = sets.make_single_folder(tmp_path / "set")
    adopt(AdoptRequest("single-folder", root, tmp_path / "scans", mpp=0.25))
    with pytest.raises(InputError, match=r"mpp 0\.25.*now.*mpp 0\.5.*another --out"):
        adopt(AdoptRequest("single-folder", root, tmp_path / "scans", mpp=0.5))


def test_output_inside_the_set_is_not_searched(tmp_path: Path) -> None:
    root = sets.make_single_folder(tmp_path / "set")
    request = AdoptRequest("single-folder", root, root / "scans", mpp=0.25)
    first = adopt(request)
    assert adopt(request).slides == first.slides
