"""Public clinical tables, recognised by their headers: TCGA's (biotab, Firehose, GDC) and those of cBioPortal.

Their rows are patients or samples. A row's labels belong to every slide whose name begins with its barcode. The status
of HER2 by IHC (positive, negative, equivocal) is no score and is not used.

Sources of the names: TCGA's nationwidechildrens.org_clinical_patient_brca.txt, whose second header line has the names
of the XML files; cBioPortal's data_clinical_patient.txt and data_clinical_sample.txt of the study brca_tcga, and the
table that its web page downloads, with blanks in the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from her2batch.store.label_sheets.cells import MISSING_WORDS, header_key

CLINICAL_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "her2": ("her2ihcscore", "her2immunohistochemistrylevelresult"),
    "ish": ("her2fishstatus", "labprocedureher2neuinsituhybridoutcometype"),
    "er": ("erstatusbyihc", "breastcarcinomaestrogenreceptorstatus", "erstatus"),
    "pr": ("prstatusbyihc", "breastcarcinomaprogesteronereceptorstatus", "prstatus"),
}
"""Our name → names of the column, as `header_key` gives them, the more exact ones first."""

STATUS_COLUMNS: Final = ("her2statusbyihc", "labprocher2neuimmunohistochemistryreceptorstatus", "ihcher2", "her2status")
"""Names of the status of HER2, which is no score."""

MOLECULAR_TESTS: Final = ("moleculartestsgenesymbol", "followupsmoleculartestsgenesymbol", "genesymbol")
"""Names of the column of genes in GDC's table of molecular tests, which has a row for each test and no IHC score."""

PATIENT_KEYS: Final = ("bcrpatientbarcode", "casesubmitterid", "casessubmitterid")
PORTAL_PATIENT, PORTAL_SAMPLE = "patientid", "sampleid"

UNKNOWN: Final = MISSING_WORDS | {"equivocal", "indeterminate", "unknown", "not evaluated", "not available"}
"""Values that count as missing. Equivocal ISH does, because the guideline asks for another test."""

SUBHEADER = re.compile(r"bcr_|CDE_ID", re.IGNORECASE)
"""Beginnings of the barcode in the second and third header line of a biotab table."""

SAMPLE_BARCODE = re.compile(r"TCGA-\w{2}-\w{4}-\d{2}", re.IGNORECASE)
"""Barcode of a sample without its vial, which a letter follows in the barcodes of slides."""


@dataclass(frozen=True)
class ClinicalForm:
    """A recognised table.  key: header key of its barcode.  columns: our name → header keys.  level: of its rows."""

    name: str
    level: str  # patient · sample
    columns: Mapping[str, tuple[str, ...]]
    has_status: bool
    has_labels: bool
    molecular: bool


def recognise_clinical_table(headers: Sequence[str], after_comments: bool) -> ClinicalForm | None:
    """Return the form of a header row; None for other tables.

    after_comments: lines that begin with # stand above it, as in cBioPortal's files.
    """
    keys = {header_key(text) for text in headers}
    if "slideid" in keys:
        return None
    clinical = {key for names in CLINICAL_COLUMNS.values() for key in names} | set(STATUS_COLUMNS)
    key = next((name for name in PATIENT_KEYS if name in keys), None)
    if key is not None:
        return _form("TCGA clinical table", "patient", {"slide_id": (key,), "patient_id": (key,)}, keys)
    if not {PORTAL_PATIENT, PORTAL_SAMPLE} & keys or not (after_comments or clinical & keys):
        return None
    level = "sample" if PORTAL_SAMPLE in keys else "patient"
    names = {
        "slide_id": (PORTAL_SAMPLE if level == "sample" else PORTAL_PATIENT,),
        "patient_id": (PORTAL_PATIENT if PORTAL_PATIENT in keys else PORTAL_SAMPLE,),
    }
    return _form("cBioPortal clinical table", level, names, keys)


def _form(name: str, level: str, ids: Mapping[str, tuple[str, ...]], keys: set[str]) -> ClinicalForm:
    has_labels = any(key in keys for names in CLINICAL_COLUMNS.values() for key in names)
    return ClinicalForm(
        name, level, {**ids, **CLINICAL_COLUMNS}, any(key in keys for key in STATUS_COLUMNS), has_labels,
        any(key in keys for key in MOLECULAR_TESTS),
    )  # fmt: skip


def begins_with_barcode(name: str, barcode: str) -> bool:
    """Whether the name of a slide begins with a barcode, case aside, and the barcode ends there.

    The barcode of a sample ends before the letter of its vial: TCGA-A1-A0SB-01 is that of TCGA-A1-A0SB-01Z-00-DX1.
    """
    name, barcode = name.casefold(), barcode.casefold()
    if not barcode or not name.startswith(barcode):
        return False
    following = name[len(barcode) :][:1]
    if SAMPLE_BARCODE.fullmatch(barcode):
        return not following.isdigit()
    return not following.isalnum()
