"""The labels of a cohort, `labels.parquet`: those that an ingest was given last, by slide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pyarrow as pa

from her2batch.errors import StoreError
from her2batch.files.atomic import atomic_write
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store.cohort import Cohort, Row
from her2batch.store.label_sheets.readers.consensus import READ_COLUMNS

READINGS: Final = "readings"
"""Column with the labels of each reader. It is written only where a sheet names readers."""

LABELS_SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("slide_id", "patient_id", "her2", "ish", "er", "pr", "site", "stain")),
        ("her2_detail", pa.string()),
        ("name", pa.string()),
        ("level", pa.string()),
        ("patient_unknown", pa.bool_()),
        (READINGS, pa.list_(pa.struct([(name, pa.string()) for name in ("reader", *READ_COLUMNS)]))),
    ]
)
"""Columns of labels.

slide_id: of the slide; the name of the sheet where no slide is met.  her2_detail: sub-score of 0, null or ultralow.
name: of the slide as the sheet has it; null with pseudonyms.  level: what the name stands for: a slide, or all slides
of a patient or sample; `ambiguous` where it could mean two slides.  patient_unknown: the sheet states that the patient
is not known, so that the slide counts as a patient of its own.  readings: the labels of each reader, whose consensus
the other columns have; null where the sheet names no reader.
"""

WITHOUT_READERS: Final = LABELS_SCHEMA.remove(LABELS_SCHEMA.get_field_index(READINGS))
"""Columns of the labels of a cohort whose sheet names no reader."""

COLUMNS: Final = tuple(LABELS_SCHEMA.names)


def stored_labels(cohort: Cohort) -> dict[str, Row]:
    """The labels that an ingest was given last, by slide_id; empty without. Raises StoreError: damaged."""
    return {row["slide_id"]: row for row in stored_label_table(cohort).to_pylist()}


def stored_label_table(cohort: Cohort) -> pa.Table:
    """The labels of a cohort as a table; columns that an earlier version did not write are null. Raises StoreError."""
    if not cohort.labels.exists():
        return LABELS_SCHEMA.empty_table()
    try:
        table = read_parquet(cohort.labels)
    except pa.ArrowInvalid as error:
        raise StoreError("is damaged", cohort.labels, "give the labels again with --labels") from error
    if table.schema.equals(LABELS_SCHEMA):
        return table
    if table.schema.equals(WITHOUT_READERS):
        return table.append_column(
            LABELS_SCHEMA.field(READINGS), pa.nulls(len(table), LABELS_SCHEMA.field(READINGS).type)
        )
    return pa.Table.from_pylist(table.to_pylist(), LABELS_SCHEMA)


def write_labels(cohort: Cohort, rows: Iterable[Row]) -> None:
    """Replace the labels of a cohort, unless they are the same. Raises OSError. Call it under the lock only."""
    table = pa.Table.from_pylist(list(rows), LABELS_SCHEMA)
    if table[READINGS].null_count == table.num_rows:
        table = table.drop_columns([READINGS])
    if cohort.labels.exists():
        try:
            if read_parquet(cohort.labels).equals(table):
                return
        except pa.ArrowInvalid:
            pass  # damaged: it is replaced
    with atomic_write(cohort.labels) as part:
        write_parquet(table, part)
