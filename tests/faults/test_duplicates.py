"""The same content counts once, whatever its name and folder; one different byte makes another slide."""

import shutil
from collections.abc import Callable
from pathlib import Path

from her2batch.store.audit import cohort_status
from her2batch.store.cohort import Cohort
from tests.runtime.test_ingest import run


def test_copies_are_one_slide_and_a_changed_byte_is_another(tmp_path: Path, make_slide: Callable) -> None:
    first = make_slide("a.tiff", size=(600, 500))
    scans = first.parent
    (scans / "sub").mkdir()
    for copy in (scans / "b.tif", scans / "sub" / "a.tiff"):
        shutil.copyfile(first, copy)
    data = bytearray(first.read_bytes())
    assert b"tifffile.py" in data
    data[data.index(b"tifffile.py")] ^= 1  # the name of the software that wrote it
    (scans / "rescanned.tiff").write_bytes(data)
    summary = run(scans, tmp_path / "c")
    assert (summary.seen, summary.done, summary.duplicate, summary.exit_code) == (4, 2, 2, 0)
    assert {row["slide_id"] for row in summary.slides} == {"a", "rescanned"}
    copies = {Path(one["path"]).name: one["reason"] for one in Cohort(tmp_path / "c").read_intake() if one["reason"]}
    assert copies == {"b.tif": f"copy of {first}", "a.tiff": f"copy of {first}"}
    assert cohort_status(Cohort(tmp_path / "c")).adds_up
    again = run(scans, tmp_path / "c")
    assert (again.already, again.duplicate, again.fresh) == (2, 2, [])


def test_copy_becomes_the_slide_when_the_original_is_gone(tmp_path: Path, make_slide: Callable) -> None:
    first = make_slide("a.tiff", size=(600, 500))
    shutil.copyfile(first, first.parent / "b.tiff")
    assert run(first.parent, tmp_path / "c").duplicate == 1
    first.unlink()
    summary = run(first.parent, tmp_path / "c")
    assert (summary.seen, summary.done + summary.duplicate, summary.exit_code) == (1, 1, 0)


def test_dicom_series_in_two_files_is_one_slide(tmp_path: Path, real_data: Path) -> None:
    shutil.copytree(real_data / "slides" / "dicom_boxes", tmp_path / "scans")
    summary = run(tmp_path / "scans", tmp_path / "c")
    assert len(list((tmp_path / "scans").iterdir())) == 2
    assert (summary.seen, len(summary.slides)) == (1, 1)
