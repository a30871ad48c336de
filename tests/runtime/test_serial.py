"""The serial loop: a slide that crashes the library that opens it does so in another process."""

from collections.abc import Callable
from pathlib import Path

from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort
from tests.faults.malicious_slides import nested_dicom


def test_slide_that_crashes_its_reader_fails_and_the_others_are_done(tmp_path: Path, make_slide: Callable) -> None:
    (make_slide("a.tiff", size=(900, 900)).parent / "crash.dcm").write_bytes(nested_dicom(100_000))
    summary = ingest(IngestRequest(tmp_path / "scans", tmp_path / "c"), Plan(), Resources(workers=0))
    rows = Cohort(tmp_path / "c").rows()
    assert {name: row["error_code"] for name, row in rows.items()} == {"a": None, "crash": "worker-lost"}
    assert summary.exit_code == 3
    assert "crash.dcm" in rows["crash"]["error"]
