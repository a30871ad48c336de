"""Labels in an ingest: they meet slides by any name; what meets nothing, and what is ambiguous, is reported."""

import json
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from her2batch.errors import InputError
from her2batch.pipeline.growth.ingest_summary import ingest_result
from her2batch.runtime.ingest import IngestRequest, IngestSummary, dry_run, ingest
from her2batch.settings import Plan, Resources, RunWindow
from her2batch.store.cohort import Cohort
from her2batch.store.label_sheets.stored import stored_labels

ODD = ("EX-1-[Boon's]-AV~18", "100%20 #3 a&b", "Prøve-æøå", "Müller 1", "Möller 1", "组织1", "case.1")


def scan(tmp_path: Path, *names: str) -> Path:
    """Files that are quickly found to be damaged slides; they get a row with their labels all the same."""
    for name in names:
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"II*\0" + name.encode())
    return tmp_path / "scans"


def run(tmp_path: Path, labels: str | None = None, window: RunWindow | None = None, **more: object) -> IngestSummary:
    path = tmp_path / "labels.csv"
    if labels is not None:
        path.write_text(labels)
        more["labels"] = path
    request = IngestRequest(tmp_path / "scans", tmp_path / "cohort", **more)
    return ingest(request, Plan(), Resources(workers=0), window=window or RunWindow())


def patients(tmp_path: Path) -> dict[str, str | None]:
    return {slide_id: row["patient_id"] for slide_id, row in Cohort(tmp_path / "cohort").rows().items()}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_odd_names_keep_their_labels(tmp_path: Path, form: str) -> None:
    scan(tmp_path, *(unicodedata.normalize(form, f"{name}.svs") for name in ODD))
    summary = run(tmp_path, "slide_id,patient_id\n" + "".join(f"{name},P{k}\n" for k, name in enumerate(ODD)))
    assert sorted(patients(tmp_path).values()) == [f"P{k}" for k in range(7)]
    assert summary.labels is not None
    assert (summary.labels.met, summary.labels.unmet, summary.labels.unlabelled) == (7, [], [])


def test_what_has_no_counterpart_is_reported_in_json(tmp_path: Path) -> None:
    scan(tmp_path, "S1.svs", "S2.svs")
    result = ingest_result(run(tmp_path, "slide_id,patient_id\nS1,P1\nS9,P9\n"), [])
    assert json.loads(json.dumps(result["labels"])) == {
        "rows": 2, "met": 1, "unmet": [{"line": 3, "slide_id": "S9"}], "ambiguous": [], "unlabelled": ["S2"],
        "notes": [], "unit": "line",
    }  # fmt: skip
    (tmp_path / "cohort" / "labels.parquet").unlink()
    assert ingest_result(run(tmp_path), [])["labels"] is None


def test_an_ambiguous_label_stops_the_ingest_before_anything_is_stored(tmp_path: Path) -> None:
    scan(tmp_path, "caseA/1.svs", "caseB/1.svs")
    with pytest.raises(InputError, match=r"labels.csv: line 2: slide_id '1' could mean .*caseA/1.svs or .*caseB/1.svs"):
        run(tmp_path, "slide_id,patient_id\n1,PX\n")
    assert not (tmp_path / "cohort" / "labels.parquet").exists()
    summary = run(tmp_path, "slide_id,patient_id\ncaseB/1.svs,PX\n")
    rows = {Path(row["path"]).parent.name: row for row in summary.slides}
    assert (rows["caseA"]["patient_id"], rows["caseB"]["patient_id"]) == (None, "PX")
    by_id = f"slide_id,patient_id\n{rows['caseA']['slide_id']},PA\n{rows['caseB']['slide_id']},PB\n"
    summary = run(tmp_path, by_id)
    assert {Path(row["path"]).parent.name: row["patient_id"] for row in summary.slides} == {
        "caseA": "PA",
        "caseB": "PB",
    }


def test_a_dry_run_refuses_the_labels_that_the_ingest_would_refuse(tmp_path: Path) -> None:
    scan(tmp_path, "caseA/1.svs", "caseB/1.svs")
    labels = tmp_path / "labels.csv"
    for text, words in (("slide_id\n1\n", "could mean"), ("slide_id,her2\nx,2-3+\n", "it could mean two scores")):
        labels.write_text(text)
        with pytest.raises(InputError, match=words):
            dry_run(IngestRequest(tmp_path / "scans", tmp_path / "cohort", labels=labels), Plan())
    assert not (tmp_path / "cohort").exists()


def test_a_second_slide_of_the_same_name_gets_no_label_and_the_first_keeps_its_own(tmp_path: Path) -> None:
    scan(tmp_path, "caseA/1.svs")
    run(tmp_path, "slide_id,patient_id\n1,PX\n")
    scan(tmp_path, "caseB/1.svs")
    summary = run(tmp_path)
    assert {Path(row["path"]).parent.name: row["patient_id"] for row in summary.slides} == {
        "caseA": "PX",
        "caseB": None,
    }
    assert summary.labels is not None
    assert [entry["slide_id"] for entry in summary.labels.ambiguous] == ["1"]
    assert "1" not in stored_labels(Cohort(tmp_path / "cohort"))


def test_labels_of_slides_that_come_later_are_kept_by_name(tmp_path: Path) -> None:
    scan(tmp_path, "S1.svs")
    run(tmp_path, "slide_id,patient_id\nS1,P1\nMüller 2.svs,P2\n")
    scan(tmp_path, "Müller 2.svs")
    summary = run(tmp_path)
    assert patients(tmp_path) == {"S1": "P1", "M_ller_2": "P2"}
    assert summary.labels is not None
    assert summary.labels.unmet == []


def test_patients_that_are_not_known_are_reported_and_repaired(tmp_path: Path) -> None:
    scan(tmp_path, "S1.svs", "S2.svs", "S3.svs")
    run(tmp_path, "slide_id,patient_id\nS1,P1\nS2,n-a\nS3,n-a\n")
    assert patients(tmp_path) == {"S1": "P1", "S2": "n-a", "S3": "n-a"}
    cohort = Cohort(tmp_path / "cohort")
    for slide_id in ("S2", "S3"):  # as an earlier version stored it
        cohort.add_tables({**cohort.read("slides", slide_id).to_pylist()[0], "patient_id": "NA"}, {})
    summary = run(tmp_path, "slide_id,patient_id\nS1,NA\nS2,NA\nS3,unknown\n")
    assert patients(tmp_path) == {"S1": "P1", "S2": None, "S3": None}
    assert sorted(summary.relabelled) == ["S2", "S3"]
    assert summary.labels is not None
    assert summary.labels.notes == [
        "3 patients are not known, and each of these slides counts as a patient of its own (lines 2, 3, 4)"
    ]


def test_sub_scores_reach_the_rows_and_follow_the_labels(tmp_path: Path) -> None:
    def details() -> dict[str, str | None]:
        return {slide_id: row["her2_detail"] for slide_id, row in Cohort(tmp_path / "cohort").rows().items()}

    scan(tmp_path, "S1.svs", "S2.svs")
    run(tmp_path, "slide_id,her2\nS1,ultralow\nS2,0\n")
    assert details() == {"S1": "ultralow", "S2": None}
    run(tmp_path, "slide_id,her2\nS1,1+\nS2,null\n")
    assert details() == {"S1": None, "S2": "null"}


def test_rows_of_an_earlier_version_get_their_labels(tmp_path: Path) -> None:
    scan(tmp_path, "S1.svs", "S2.svs")
    run(tmp_path)
    for name in ("S1", "S2"):
        path = Cohort(tmp_path / "cohort").table("slides", name)
        pq.write_table(pq.read_table(path).drop_columns(["her2_detail"]), path)
    run(tmp_path, "slide_id,patient_id,her2\nS1,P1,null\nS2,P2,\n")
    rows = Cohort(tmp_path / "cohort").rows()
    assert [(rows[name]["patient_id"], rows[name]["her2_detail"]) for name in ("S1", "S2")] == [
        ("P1", "null"),
        ("P2", None),
    ]


def test_labels_of_patients_meet_every_slide_of_theirs_also_later_ones(tmp_path: Path) -> None:
    scan(tmp_path, "TCGA-3C-AAAU-01Z-00-DX1.2F3A.svs", "TCGA-3C-AALI-01Z-00-DX1.svs", "TCGA-ZZ-0000-01Z.svs")
    table = "#Patient Identifier\tHER2\n#STRING\tSTRING\nPATIENT_ID\tHER2_IHC_SCORE\n"
    summary = run(tmp_path, f"{table}TCGA-3C-AAAU\t3\nTCGA-3C-AALI\t1\nTCGA-3C-AALK\t0\n")
    assert summary.labels is not None
    assert [entry["slide_id"] for entry in summary.labels.unmet] == ["TCGA-3C-AALK"]
    assert summary.labels.unlabelled == ["TCGA-ZZ-0000-01Z"]
    scan(tmp_path, "TCGA-3C-AAAU-01A-01-BSA.svs")
    run(tmp_path)
    assert patients(tmp_path) == {
        "TCGA-3C-AAAU-01Z-00-DX1.2F3A": "TCGA-3C-AAAU", "TCGA-3C-AAAU-01A-01-BSA": "TCGA-3C-AAAU",
        "TCGA-3C-AALI-01Z-00-DX1": "TCGA-3C-AALI", "TCGA-ZZ-0000-01Z": None,
    }  # fmt: skip
    labels = stored_labels(Cohort(tmp_path / "cohort"))
    assert labels["TCGA-3C-AAAU-01A-01-BSA"]["her2"] == "3+"


def test_a_sheet_with_other_headers_is_mapped(tmp_path: Path) -> None:
    scan(tmp_path, "S1.svs")
    run(tmp_path, "Datei;Fall\nS1.svs;P1\n", columns={"slide_id": "Datei", "patient_id": "Fall"})
    assert patients(tmp_path) == {"S1": "P1"}


def test_a_label_that_is_not_understood_stops_the_ingest_before_the_cohort_is_made(tmp_path: Path) -> None:
    scan(tmp_path, "S1.svs")
    with pytest.raises(InputError, match=r"line 2: her2 is '2-3\+'"):
        run(tmp_path, "slide_id,her2\nS1,2-3+\n")
    assert not (tmp_path / "cohort").exists()


def test_a_run_that_watches_goes_on_without_the_ambiguous_label(tmp_path: Path) -> None:
    scan(tmp_path, "caseA/1.svs", "caseB/1.svs", "S2.svs")
    window = RunWindow(watch=True, settle=0.2, linger=False)
    summary = run(tmp_path, "slide_id,patient_id\n1,PX\nS2,P2\n", window)
    assert sorted(patient or "" for patient in patients(tmp_path).values()) == ["", "", "P2"]
    assert summary.labels is not None
    assert [entry["slide_id"] for entry in summary.labels.ambiguous] == ["1"]
