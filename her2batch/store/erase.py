"""Erase one patient's data from a cohort: every file and row, with a search for what is left.

The digests of the slides are written to a list first, so that the next ingest ignores them; then the files are deleted;
the rows last. If the process is killed, the same call continues, because the rows still contain the patient. The slide
files in the scan folder, and networks that were trained on them, are outside the cohort: they are listed, not changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from her2batch.errors import InputError
from her2batch.files.atomic import atomic_write
from her2batch.files.locations import remove_tree
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store import reviews, row_cache
from her2batch.store.cleanup import remove_leftovers
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pieces.cores_table import remove_cores
from her2batch.store.pseudonyms import Pseudonymizer

OUTBOX = "outbox"
"""Folder of a cohort with what was sent to laboratory information systems: RECEIVER/SLIDE.json."""


@dataclass
class EraseSummary:
    """What was erased, and what still names the patient.

    slides: ids.  files: number of deleted files.  sources: slide files in the scan folder; empty with pseudonyms.
    nights: deleted reports.  reviews: numbers of the erased reviews.  left: files that still name the patient; should
    be empty.  runs: files of training runs that name the patient's slides.
    """

    slides: list[str]
    files: int = 0
    sources: list[str] = field(default_factory=list)
    nights: list[str] = field(default_factory=list)
    reviews: list[int] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)


def erase(cohort: Cohort, patient_id: str, names: Pseudonymizer, runs: Iterable[Path] = ()) -> EraseSummary:
    """Erase a patient's data and search for what is left.

    patient_id: as in the labels; if `names` has a key, its pseudonym is used.  runs: training runs to search.
    Raises InputError if the cohort has no such patient, StoreError if another run holds the cohort, OSError if a file
    can't be deleted.
    """
    cohort.check()
    patient = str(names.patient(patient_id))
    with cohort.lock():
        remove_leftovers(cohort)
        rows, labels = cohort.reread_rows(), _labels(cohort)
        ids = {slide_id for slide_id, row in rows.items() if row["patient_id"] == patient}
        ids |= {label["slide_id"] for label in labels if label["patient_id"] == patient}
        entries = [entry for entry in cohort.read_intake() if entry["slide_id"] in ids]
        if not ids:
            raise InputError(f"has no slide of a patient {patient_id}", cohort.root, "look up the id in the labels")
        identifiers = _identifiers(patient, ids, entries, rows)
        summary = EraseSummary(sorted(ids))
        if names.key is None:
            summary.sources = sorted({entry["path"] for entry in entries if entry["outcome"] != "archived"})
        _store_digests(cohort, [*(rows[slide_id] for slide_id in ids & rows.keys()), *entries])
        summary.nights = _erase_nights(cohort, identifiers)
        _erase_mentions(cohort, ids, {entry["path"] for entry in entries}, identifiers, labels)
        summary.reviews = reviews.erase_reviews(cohort, ids, _pattern(identifiers))
        for slide_id in sorted(ids):
            summary.files += _erase_slide(cohort, slide_id)
        cohort.update_row_cache()
        summary.left = sorted(path for path in files_naming(cohort.root, identifiers))
    summary.runs = sorted(path for run in runs for path in files_naming(run, identifiers))
    return summary


def files_naming(root: Path, identifiers: Collection[str]) -> Iterator[Path]:
    """Files under a folder that contain one of the identifiers: in their path, their bytes or the text of a table."""
    pattern = _pattern(identifiers)
    for path in root.rglob("*"):
        name = str(path.relative_to(root)).encode(errors="surrogateescape")
        if path.is_file() and (pattern.search(name) or any(pattern.search(text) for text in _texts(path))):
            yield path


def _pattern(identifiers: Collection[str]) -> re.Pattern[bytes]:
    """Pattern of any of the identifiers as a whole word: 'P1' does not match in 'P12'."""
    longest_first = sorted(identifiers, key=len, reverse=True)
    any_of = b"|".join(re.escape(text.encode(errors="surrogateescape")) for text in longest_first)
    return re.compile(rb"(?<![A-Za-z0-9])(?:" + any_of + rb")(?![A-Za-z0-9])")


def _texts(path: Path) -> Iterator[bytes]:
    """The bytes of a file and, if it is an undamaged table, the text of its columns."""
    data = path.read_bytes()
    yield data
    with suppress(OSError, pa.ArrowInvalid):
        if path.suffix == ".parquet":
            yield from _columns(pq.read_table(pa.BufferReader(data)))
        elif path.suffix == ".memo":
            yield from _columns(pa.ipc.open_stream(pa.py_buffer(data[row_cache.DIGEST :])).read_all())


def _columns(table: pa.Table) -> Iterator[bytes]:
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not name.startswith("embedding"):
            values = column.unique() if pa.types.is_string(column.type) else column
            if not pa.types.is_floating(column.type) and not pa.types.is_integer(column.type):
                yield json.dumps(values.to_pylist(), default=str, ensure_ascii=False).encode(errors="surrogateescape")


def _identifiers(patient: str, ids: Collection[str], entries: list[Row], rows: dict[str, Row]) -> set[str]:
    """Everything that identifies the patient's slides: the patient, slide ids, paths and file names."""
    paths = {entry["path"] for entry in entries} | {rows[slide_id]["path"] for slide_id in ids if slide_id in rows}
    return {patient, *ids, *(path for path in paths if path), *(Path(path).stem for path in paths if path)}


def _labels(cohort: Cohort) -> list[Row]:
    rows: list[Row] = read_parquet(cohort.labels).to_pylist() if cohort.labels.exists() else []
    return rows


def _store_digests(cohort: Cohort, rows: list[Row]) -> None:
    """Add the slides to the list of erased slides: size and digest, from which a slide is recognised and no more."""
    digests = erased_digests(cohort)
    digests |= {(row["bytes"], erased_digest(row["sha256"])) for row in rows if row["sha256"]}
    with atomic_write(cohort.erased_list) as part:
        part.write_text("".join(f"{size} {digest}\n" for size, digest in sorted(digests)), "utf-8")


def erased_digests(cohort: Cohort) -> set[tuple[int, str]]:
    """Size in bytes and digest of each erased slide, which an ingest ignores."""
    if not cohort.erased_list.exists():
        return set()
    pairs = (line.split() for line in cohort.erased_list.read_text("utf-8").splitlines())
    return {(int(size), digest) for size, digest in pairs}


def erased_digest(sha256: str) -> str:
    """Digest of an erased slide, from the SHA-256 of its file."""
    return hashlib.sha256(b"forgotten:" + sha256.encode()).hexdigest()


def _erase_nights(cohort: Cohort, identifiers: Collection[str]) -> list[str]:
    """Delete the reports of nights that name the patient, and return the names of these nights."""
    deleted = []
    for night in sorted(cohort.nights.glob("*")):
        if any(True for _ in files_naming(night, identifiers)):
            remove_tree(night)
            deleted.append(night.name)
    return deleted


def _erase_mentions(
    cohort: Cohort, ids: set[str], paths: set[str], identifiers: Collection[str], labels: list[Row]
) -> None:
    """Delete rows and lines about the slides from files that are about other slides too."""
    cohort.write_intake([entry for entry in cohort.read_intake() if entry["slide_id"] not in ids])
    cohort.write_probes([probe for probe in cohort.read_probes() if probe["path"] not in paths])
    cohort.write_damaged_slides(cohort.damaged_slides() - ids)
    remove_cores(cohort, ids, identifiers)
    if cohort.labels.exists():
        table = read_parquet(cohort.labels)
        patients = {label["patient_id"] for label in labels if label["slide_id"] in ids}
        kept = [row["slide_id"] not in ids and row["patient_id"] not in patients for row in table.to_pylist()]
        _rewrite(cohort.labels, table.filter(pa.array(kept, pa.bool_())))
    for path in sorted(cohort.runs.glob("ingest-*.parquet")):
        table = read_parquet(path)
        kept = [slide_id not in ids for slide_id in table["slide_id"].to_pylist()]
        if not all(kept):
            _rewrite(path, table.filter(pa.array(kept, pa.bool_())))
    pattern = _pattern(identifiers)
    for path in sorted(cohort.runs.glob("*.jsonl")):
        lines = path.read_bytes().splitlines(keepends=True)
        other_lines = [line for line in lines if not pattern.search(line)]
        if len(other_lines) < len(lines):
            with atomic_write(path) as part:
                part.write_bytes(b"".join(other_lines))


def _rewrite(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as part:
        write_parquet(table, part)


def _erase_slide(cohort: Cohort, slide_id: str) -> int:
    """Delete a slide's files, its row last; returns the number of deleted files."""
    count = sum(path.is_file() for path in cohort.pyramid(slide_id).rglob("*"))
    remove_tree(cohort.pyramid(slide_id))
    names = [name for name in cohort.table_names() if name != "slides"]
    paths = [cohort.thumbnail(slide_id), *(cohort.table(name, slide_id) for name in names)]
    paths += [] if cohort.remote else sorted((cohort.root / OUTBOX).glob(f"*/{slide_id}.json"))
    for path in [*paths, cohort.table("slides", slide_id)]:
        count += path.is_file()
        path.unlink(missing_ok=True)
    return count
