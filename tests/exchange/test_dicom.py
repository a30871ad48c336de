"""DICOM structured reports: accepted by an independent validator, with the values of the tables."""

import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pyarrow as pa
import pydicom
import pytest
from highdicom.sr.coding import CodedConcept

from her2batch.errors import InputError
from her2batch.exchange.dicom import build_report, coded_answers, source_image, stated_identity
from her2batch.exchange.lis.identities import Identity
from her2batch.exchange.lis.slide_result import ANSWERS
from her2batch.exchange.outgoing import ExportRequest, export_cohort
from her2batch.runtime.ingest import IngestRequest as Scans
from her2batch.runtime.ingest import ingest
from her2batch.settings import Plan, Resources
from her2batch.store import schemas
from her2batch.store.cohort import Cohort, write_row
from her2batch.tasks import CLASSES
from tests.conftest import tissue_image
from tests.exchange.stored_examples import make_stored_cohort

SLIDES = {
    "sm_image.dcm": 50, "jpeg.dicom": 957, "multi_frame_jpeg_camelyon_challenge_image.dcm": 1152,
    "dicom_boxes/boxes_0.dcm": 16, "dicom_boxes/boxes_1.dcm": 16,
}  # fmt: skip
"""Real slide → width of its level 0."""


def make_prediction(task: str, k: int, score: float | None = None) -> dict:
    classes = CLASSES[task]
    p = np.full(len(classes), 0.1, np.float32)
    p[k] = 0.7
    doubts = {"review": k == 1, "reasons": ["near-10-percent"] if k == 1 else []}
    facts = {"slide_id": "S1", "task": task, "method": "membrane", "classes": list(classes), "p": p.tolist()}
    return {**facts, "predicted": classes[k], "score": score, **doubts}


ALL_PREDICTIONS = [
    make_prediction(task, k, 2.5 if k else None) for task, classes in CLASSES.items() for k in range(len(classes))
]


def make_report(real_data: Path, name: str, rows: list[dict]) -> pydicom.Dataset:
    row = {"slide_id": "S1", "path": str(real_data / "slides" / name), "width": SLIDES[name]}
    return build_report(row, source_image(row), {"membrane": rows})


def validator_messages(path: Path) -> list[str]:
    """Return errors and warnings of dciodvfy (dicom3tools), except about private codes and missing type-2 values."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("no dciodvfy: apt-get install dicom3tools")
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False)
    lines = (said.stdout + said.stderr).splitlines()
    fine = ("99HER2BATCH", "DICOMDIR")
    return [line for line in lines if line.startswith(("Error", "Warning")) and not any(word in line for word in fine)]


@pytest.mark.parametrize("name", SLIDES)
def test_report_of_a_real_slide_is_valid(name: str, real_data: Path, tmp_path: Path) -> None:
    make_report(real_data, name, ALL_PREDICTIONS).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert validator_messages(tmp_path / "a.dcm") == []


IDENTITY = Identity("S1", "MRN-7", "A26-1", "A26-1-B", "O1", "LAB", "Müller", "Anna", "1960-01-02", "F")


def test_report_of_a_slide_in_another_format_is_valid_and_names_no_image(tmp_path: Path) -> None:
    row = {"slide_id": "S1", "path": "/scans/S1.svs", "width": 100}
    report = build_report(row, stated_identity(IDENTITY), {"membrane": ALL_PREDICTIONS}, names_image=False)
    report.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert validator_messages(tmp_path / "a.dcm") == []
    read = pydicom.dcmread(tmp_path / "a.dcm")
    assert (read.PatientID, read.PatientName, read.AccessionNumber) == ("MRN-7", "Müller^Anna", "A26-1")
    assert "A26-1-B" in str(read.ContentSequence)
    assert not {"ReferencedSOPInstanceUID", "ReferencedSOPSequence"} & {one.keyword for one in read.iterall()}
    same = stated_identity(IDENTITY)
    assert read.StudyInstanceUID == same.StudyInstanceUID


def test_validator_finds_errors_in_an_invalid_report(real_data: Path, tmp_path: Path) -> None:
    broken = make_report(real_data, "sm_image.dcm", ALL_PREDICTIONS)
    del broken.VerificationFlag
    broken.ContentSequence[0].RelationshipType = "NONSENSE"
    broken.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert len(validator_messages(tmp_path / "a.dcm")) >= 2


def test_patient_study_and_specimen_are_copied_from_the_slide(real_data: Path) -> None:
    source = pydicom.dcmread(real_data / "slides" / "sm_image.dcm", stop_before_pixels=True)
    found = make_report(real_data, "sm_image.dcm", ALL_PREDICTIONS)
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
        assert found[name].value == source[name].value
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert (found.CompletionFlag, found.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    evidence = found.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert source.SpecimenDescriptionSequence[0].SpecimenUID in str(found)


def test_report_reads_back_as_the_predictions(real_data: Path, tmp_path: Path) -> None:
    make_report(real_data, "sm_image.dcm", ALL_PREDICTIONS).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    groups = hd.sr.srread(tmp_path / "a.dcm").content.get_image_measurement_groups()
    assert len(groups) == len(ALL_PREDICTIONS)
    for group, row in zip(groups, ALL_PREDICTIONS, strict=True):
        answers = [(answer.name, answer.value) for answer in group.get_qualitative_evaluations()]
        assert answers == [tuple(CodedConcept(*part) for part in measurement) for measurement in coded_answers(row)]
        figures = [measurement.value for measurement in group.get_measurements()]
        assert figures == pytest.approx([*row["p"], *([row["score"]] if row["score"] else [])])


def test_her2_by_ihc_has_loinc_codes() -> None:
    name, answer = coded_answers(make_prediction("her2-4way", 3))[0]
    assert name[:2] == ("85319-2", "LN")
    assert answer == (ANSWERS["3+"], "LN", "3+")
    assert len(set(ANSWERS.values())) == len(ANSWERS)


def test_review_is_coded_with_its_reasons() -> None:
    answers = [value[2] for _, value in coded_answers(make_prediction("her2-4way", 1))]
    assert answers == ["1+", "Yes", "near-10-percent"]
    assert [value[2] for _, value in coded_answers(make_prediction("her2-4way", 0))] == ["0", "No"]


def test_private_codes_are_short_and_unique() -> None:
    triples = [part for row in ALL_PREDICTIONS for pair in coded_answers(row) for part in pair]
    assert all(len(value) <= 16 for value, _, _ in triples)
    assert len({triple[:2] for triple in triples}) == len(set(triples))


def test_missing_slide_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.dcm: the file cannot be read as DICOM; put the slide's files back"):
        source_image({"path": str(tmp_path / "gone.dcm"), "width": 5})


# -- a slide with tissue ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scanned(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """A cohort of two DICOM slides with stained tissue, 0.25 µm/px; the labels state HER2 for one of them."""
    folder = tmp_path_factory.mktemp("dicom")
    (folder / "scans").mkdir()
    for k, name in enumerate(("biopsy", "unnamed")):
        template, pixels = real_data / "slides" / "sm_image.dcm", tissue_image(1536, 1280, seed=k, brown=0.7)
        write_slide(folder / "scans" / f"{name}.dcm", template, pixels, 0.25)
    (folder / "labels.csv").write_text("slide_id,stain\nbiopsy,her2\n")
    order = Scans(folder / "scans", folder / "cohort", labels=folder / "labels.csv")
    assert ingest(order, Plan(), Resources(workers=0)).exit_code == 0
    return Cohort(folder / "cohort")


def write_slide(path: Path, template: Path, rgb: np.ndarray, mpp: float, tile: int = 256) -> None:
    """Write an image as an uncompressed DICOM slide of one level; everything else is copied from the template."""
    image = pydicom.dcmread(template)
    height, width = rgb.shape[:2]
    down, across = height // tile, width // tile
    frames = rgb.reshape(down, tile, across, tile, 3).swapaxes(1, 2)
    image.Rows = image.Columns = tile
    image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns = height, width
    image.NumberOfFrames = down * across
    image.ImagedVolumeWidth, image.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [mpp / 1000, mpp / 1000]
    image.PhotometricInterpretation = "RGB"
    image.SeriesInstanceUID, image.SOPInstanceUID, image.FrameOfReferenceUID = hd.UID(), hd.UID(), hd.UID()
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.PixelData = np.ascontiguousarray(frames).tobytes()
    image.save_as(path)


def test_ingested_slide_is_exported_as_a_valid_report(scanned: Cohort, tmp_path: Path) -> None:
    found = export_cohort(ExportRequest(scanned.root, "dicom", tmp_path / "out"))
    assert found.left_out == {"unnamed": "it has no prediction for a stain that is given in the labels"}
    assert (found.files, found.failures) == (1, {})
    assert validator_messages(tmp_path / "out" / "biopsy.sr.dcm") == []
    rows = [row for name in ("cells", "membrane") for row in scanned.read(f"predictions/{name}", "biopsy").to_pylist()]
    groups = hd.sr.srread(tmp_path / "out" / "biopsy.sr.dcm").content.get_image_measurement_groups()
    answers = [group.get_qualitative_evaluations()[0].value.meaning for group in groups]
    assert answers == [row["predicted"] for row in rows]
    assert len(answers) > 0


def test_moved_slide_fails_without_stopping_the_export(scanned: Cohort, tmp_path: Path) -> None:
    shutil.copytree(scanned.root, tmp_path / "cohort")
    moved = Cohort(tmp_path / "cohort")
    write_row(moved, {**moved.rows()["biopsy"], "path": str(tmp_path / "gone.dcm")})
    found = export_cohort(ExportRequest(moved.root, "dicom", tmp_path / "out"))
    assert found.exit_code == 3
    assert "gone.dcm" in found.failures["biopsy.sr.dcm"]
    assert not (tmp_path / "out" / "biopsy.sr.dcm").exists()


def test_slides_with_pseudonyms_have_no_report(scanned: Cohort, tmp_path: Path) -> None:
    shutil.copytree(scanned.root, tmp_path / "cohort")
    hidden = Cohort(tmp_path / "cohort")
    write_row(hidden, {**hidden.rows()["biopsy"], "path": None})
    with pytest.raises(InputError, match="it has a pseudonym"):
        export_cohort(ExportRequest(hidden.root, "dicom", tmp_path / "out", slides=("biopsy",)))


def test_slides_of_other_formats_are_left_out(tmp_path: Path) -> None:
    cohort = make_stored_cohort(tmp_path / "cohort", "S1")
    table = pa.Table.from_pylist([make_prediction("her2-4way", 1)], schemas.table_schema("predictions"))
    cohort.add_tables(cohort.rows()["S1"], {"predictions/membrane": table})
    with pytest.raises(InputError, match="nothing to export to dicom; S1: it was not scanned as DICOM"):
        export_cohort(ExportRequest(cohort.root, "dicom", tmp_path / "out"))
