"""Public clinical tables: recognised by their headers, matched to slides by barcode."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.store.label_sheets.clinical_tables import begins_with_barcode, recognise_clinical_table
from her2batch.store.label_sheets.reading import read_label_sheet
from her2batch.store.labels import read_labels

BIOTAB = """\
bcr_patient_uuid\tbcr_patient_barcode\tgender\ter_status_by_ihc\tpr_status_by_ihc\ther2_status_by_ihc\ther2_ihc_score\ther2_fish_status
bcr_patient_uuid\tbcr_patient_barcode\tgender\tbreast_carcinoma_estrogen_receptor_status\tbreast_carcinoma_progesterone_receptor_status\tlab_proc_her2_neu_immunohistochemistry_receptor_status\ther2_immunohistochemistry_level_result\tlab_procedure_her2_neu_in_situ_hybrid_outcome_type
CDE_ID:\tCDE_ID:2003301\tCDE_ID:2200604\tCDE_ID:2957359\tCDE_ID:2957357\tCDE_ID:2957563\tCDE_ID:2178402\tCDE_ID:2854089
6E7D5EC6\tTCGA-3C-AAAU\tFEMALE\tPositive\tNegative\tNegative\t1+\t[Not Evaluated]
55262FCB\tTCGA-3C-AALI\tFEMALE\tPositive\tPositive\tEquivocal\t2+\tNegative
427D0648\tTCGA-3C-AALJ\tFEMALE\tIndeterminate\tPositive\tPositive\t[Not Available]\tEquivocal
"""

FIREHOSE = """\
bcr_patient_barcode,her2_immunohistochemistry_level_result,lab_procedure_her2_neu_in_situ_hybrid_outcome_type,breast_carcinoma_estrogen_receptor_status,breast_carcinoma_progesterone_receptor_status
TCGA-3C-AAAU,1+,,Positive,Negative
TCGA-3C-AALI,2+,Negative,Positive,Positive
TCGA-3C-AALJ,,Equivocal,Indeterminate,Positive
"""

PORTAL_PATIENT = """\
#Patient Identifier\tER Status By IHC\tPR status by ihc\tIHC-HER2\tHER2 ihc score\tHER2 fish status
#Identifier to uniquely specify a patient.\tER\tPR\tHER2\tHER2\tHER2
#STRING\tSTRING\tSTRING\tSTRING\tSTRING\tSTRING
#1\t1\t1\t1\t1\t1
PATIENT_ID\tER_STATUS_BY_IHC\tPR_STATUS_BY_IHC\tIHC_HER2\tHER2_IHC_SCORE\tHER2_FISH_STATUS
TCGA-3C-AAAU\tPositive\tNegative\tNegative\t1\t[Not Available]
TCGA-3C-AALI\tPositive\tPositive\tEquivocal\t2+\tNegative
TCGA-3C-AALJ\tIndeterminate\tPositive\tPositive\tNA\tEquivocal
"""

PORTAL_PAGE = """\
Patient ID\tSample ID\tDiagnosis Age\tER Status By IHC\tHER2 fish status\tHER2 ihc score\tIHC-HER2\tPR status by ihc
TCGA-3C-AAAU\tTCGA-3C-AAAU-01\t55\tPositive\t\t1\tNegative\tNegative
TCGA-3C-AALI\tTCGA-3C-AALI-01\t50\tPositive\tNegative\t2\tEquivocal\tPositive
TCGA-3C-AALJ\tTCGA-3C-AALJ-01\t62\tIndeterminate\tEquivocal\tNA\tPositive\tPositive
"""

GDC = BIOTAB.replace("bcr_patient_uuid\tbcr_patient_barcode", "case_id\tcase_submitter_id", 1)

EXPECTED = [
    ("TCGA-3C-AAAU", "1+", None, "+", "-"),
    ("TCGA-3C-AALI", "2+", "-", "+", "+"),
    ("TCGA-3C-AALJ", None, None, None, "+"),
]

SLIDES = (
    "TCGA-3C-AAAU-01Z-00-DX1.2F3",
    "tcga-3c-aali-01A-02-BSB",
    "TCGA-3C-AALI-01Z-00-DX1",
    "TCGA-3C-AALJ2-01Z",
    "other",
)


@pytest.mark.parametrize(
    "text", [BIOTAB, FIREHOSE, PORTAL_PATIENT, PORTAL_PAGE, GDC], ids=["biotab", "firehose", "portal", "page", "gdc"]
)
def test_every_form_gives_the_labels_of_patients_and_their_slides(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    sheet = read_label_sheet(tmp_path / "a.txt")
    assert [tuple(row[name] for name in ("patient_id", "her2", "ish", "er", "pr")) for row in sheet.rows] == EXPECTED
    table = read_labels(tmp_path / "a.txt", SLIDES).to_pylist()
    assert [(row["slide_id"], row["patient_id"], row["her2"]) for row in table] == [
        (SLIDES[0], "TCGA-3C-AAAU", "1+"), (SLIDES[2], "TCGA-3C-AALI", "2+"), (SLIDES[1], "TCGA-3C-AALI", "2+"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("case_submitter_id\tage\nTCGA-3C-AAAU\t5\n", "is a TCGA clinical table without columns of HER2, ER or PR"),
        ("case_submitter_id\tmolecular_tests.gene_symbol\nTCGA-3C-AAAU\tERBB2\n", "lists molecular tests"),
        ("bcr_patient_barcode\ther2_status_by_ihc\nTCGA-3C-AAAU\tPositive\n", "status of HER2, which is no score"),
        (BIOTAB.replace("\t1+\t", "\t2++\t"), r"line 4: her2_ihc_score is '2\+\+'"),
        (BIOTAB + BIOTAB.splitlines()[3] + "\n", "lines 4 and 7 are of one patient; keep one line per patient"),
    ],
)
def test_tables_that_do_not_help_are_refused_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        read_label_sheet(tmp_path / "a.txt")


def test_a_table_without_scores_is_read_for_its_other_labels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "bcr_patient_barcode\ther2_status_by_ihc\ter_status_by_ihc\nTCGA-3C-AAAU\tPositive\tPositive\n"
    )
    (row,) = read_label_sheet(tmp_path / "a.txt").rows
    assert (row["her2"], row["er"]) == (None, "+")


@pytest.mark.parametrize(
    ("name", "barcode", "meets"),
    [
        ("TCGA-A1-A0SB-01Z-00-DX1", "TCGA-A1-A0SB", True),
        ("tcga-a1-a0sb", "TCGA-A1-A0SB", True),
        ("TCGA-A1-A0SB2-01Z", "TCGA-A1-A0SB", False),
        ("TCGA-A1-A0SB-01Z-00", "TCGA-A1-A0SB-01", True),
        ("TCGA-A1-A0SB-011", "TCGA-A1-A0SB-01", False),
        ("TCGA-A1-A0SB-06A", "TCGA-A1-A0SB-01", False),
        ("P-0001_HER2", "P-0001", True),
        ("P-00012", "P-0001", False),
        ("x-P-0001", "P-0001", False),
        ("a", "", False),
    ],
)
def test_a_barcode_ends_where_it_ends(name: str, barcode: str, meets: bool) -> None:
    assert begins_with_barcode(name, barcode) == meets


def test_a_sheet_of_slides_is_no_clinical_table() -> None:
    assert recognise_clinical_table(["slide_id", "patient_id", "her2_ihc_score"], False) is None
    assert recognise_clinical_table(["patient_id", "her2"], False) is None
