"""Tests of erase: no byte names the patient, other slides are unchanged, and erased slides do not come back."""

import shutil
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.files.atomic import atomic_write
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.audit import cohort_status, verify_cohort
from her2batch.store.cohort import Cohort
from her2batch.store.erase import erase, files_naming
from her2batch.store.pseudonyms import Pseudonymizer
from tests.conftest import Synthetic
from tests.runtime.test_ingest import store_contents


@pytest.fixture
def cohort(synthetic: Synthetic, tmp_path: Path) -> Cohort:
    shutil.copytree(synthetic.cohort, tmp_path / "c")
    made = Cohort(tmp_path / "c")
    for night in ("20260101-190000", "20260102-190000"):
        (made.nights / night).mkdir(parents=True)
    return made


def patient_of(cohort: Cohort) -> tuple[str, list[str]]:
    rows = cohort.rows()
    patient = sorted({row["patient_id"] for row in rows.values()})[3]
    return patient, sorted(one for one, row in rows.items() if row["patient_id"] == patient)


def test_erase_deletes_every_file_and_row_of_the_patient_only(cohort: Cohort, synthetic: Synthetic) -> None:
    patient, ids = patient_of(cohort)
    (cohort.nights / "20260101-190000" / "report.html").write_text(f"<td>{ids[0]}</td>")
    (cohort.nights / "20260102-190000" / "report.html").write_text("<td>others</td>")
    before = store_contents(cohort.root)
    assert list(files_naming(cohort.root, {patient, *ids}))
    found = erase(cohort, patient, Pseudonymizer())
    assert (found.slides, found.left, found.nights) == (ids, [], ["20260101-190000"])
    assert {Path(one).stem for one in found.sources} == set(ids)
    assert list(files_naming(cohort.root, {patient, *ids})) == []
    assert list(verify_cohort(cohort)) == []
    assert cohort_status(cohort).adds_up
    after = store_contents(cohort.root)
    others = {name for name in before if not any(one in name for one in ids) and "nights" not in name}
    assert {name for name in others if before[name] != after.get(name)} == {"labels.parquet"}


def test_the_next_ingest_ignores_erased_slides(cohort: Cohort, synthetic: Synthetic) -> None:
    patient, ids = patient_of(cohort)
    erase(cohort, patient, Pseudonymizer())
    summary = ingest(IngestRequest(synthetic.scans, cohort.root), Plan(), Resources(workers=0))
    assert (summary.fresh, summary.ignored, summary.adds_up) == ([], len(ids), True)
    assert list(files_naming(cohort.root, {patient, *ids})) == []
    assert cohort_status(cohort).adds_up


def test_an_interrupted_erase_is_completed(cohort: Cohort) -> None:
    patient, ids = patient_of(cohort)
    for path in (cohort.table("tiles", ids[0]), cohort.thumbnail(ids[0])):  # so far it had come
        path.unlink()
    shutil.rmtree(cohort.pyramid(ids[0]))
    assert erase(cohort, patient, Pseudonymizer()).left == []
    assert list(verify_cohort(cohort)) == []


def test_a_damaged_table_of_another_slide_does_not_stop_an_erase(cohort: Cohort) -> None:
    patient, _ = patient_of(cohort)
    other = next(one for one, row in cohort.rows().items() if row["patient_id"] != patient)
    cohort.table("tiles", other).write_bytes(b"PAR1 and nothing else")
    assert erase(cohort, patient, Pseudonymizer()).left == []
    assert [one.slide_id for one in verify_cohort(cohort)] == [other]


def test_identifiers_are_found_in_compressed_tables_as_whole_words(cohort: Cohort, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for name, text in (("a.txt", "of P12, slides"), ("b.txt", "P1, P3"), ("P1.txt", "")):
        with atomic_write(folder / name) as part:
            part.write_text(text)
    shutil.copy(cohort.labels, folder / "labels.parquet")
    assert {path.name for path in files_naming(folder, {"P1"})} == {"b.txt", "P1.txt"}
    assert {path.name for path in files_naming(folder, {patient_of(cohort)[0]})} == {"labels.parquet"}


def test_training_runs_that_name_the_patient_are_listed_and_kept(cohort: Cohort, tmp_path: Path) -> None:
    patient, ids = patient_of(cohort)
    (tmp_path / "run").mkdir()
    shutil.copy(cohort.table("slides", ids[0]), tmp_path / "run" / "predictions.parquet")
    found = erase(cohort, patient, Pseudonymizer(), [tmp_path / "run"])
    assert found.runs == [tmp_path / "run" / "predictions.parquet"]
    assert found.runs[0].exists()


def test_erase_finds_the_pseudonym_of_a_patient(synthetic: Synthetic, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in sorted(synthetic.scans.iterdir())[:3]:
        shutil.copy(path, scans)
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_bytes(b"k" * 32)
    order = IngestRequest(scans, tmp_path / "c", labels=synthetic.labels, key=key)
    ingest(order, Plan(), Resources(workers=0))
    cohort, names = Cohort(tmp_path / "c"), Pseudonymizer(b"k" * 32)
    patient = min(scans.iterdir()).stem.split("-")[0]
    with pytest.raises(InputError, match="has no slide of a patient"):
        erase(cohort, patient, Pseudonymizer())
    found = erase(cohort, patient, names)
    assert found.slides
    assert (found.left, found.sources) == ([], [])
    assert list(verify_cohort(cohort)) == []
    again = ingest(order, Plan(), Resources(workers=0))
    assert (again.fresh, again.ignored) == ([], len(found.slides))
