"""The request of an ingest names the folder of the annotated controls."""

from pathlib import Path

from her2batch.pipeline.growth.ingest_request import IngestRequest


def test_the_file_of_controls_names_the_folder_of_their_annotations(tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    (tmp_path / "controls.toml").write_text('[annotations]\nfolder = "drawn"\n', encoding="utf-8")
    request = IngestRequest(tmp_path, tmp_path / "cohort", controls=str(tmp_path / "controls.toml"))
    assert request.control_folder == tmp_path / "drawn"
    assert IngestRequest(tmp_path, tmp_path / "cohort", controls="auto").control_folder is None
