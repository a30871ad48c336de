"""Removing one patient from a cohort: every file and every row, and the proof that nothing is left.

First the slides' digests go to a list, so that the next ingest does not bring them back; then their files; their rows
last. Killed at any moment, the same call goes on: the rows still say whose the slides are. The slides themselves, in
the scans folder, and networks that were trained on them are not the store's: they are named, not touched.
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
from her2batch.store.pseudonyms import Pseudonymizer


@dataclass
class EraseSummary:
    """What was removed, and what still names the patient: nothing, or something is wrong.

    sources: the slides in the scans folder (with pseudonyms nobody can tell).  runs: files of training runs that name
    the patient's slides.  reviews: numbers of those that were emptied.
    """

    slides: list[str]
    files: int = 0
    sources: list[str] = field(default_factory=list)
    nights: list[str] = field(default_factory=list)
    reviews: list[int] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)


def erase(cohort: Cohort, patient_id: str, names: Pseudonymizer, runs: Iterable[Path] = ()) -> EraseSummary:
    """Remove a patient, and look for what is left.

    patient_id: as in the labels; with a key in `names`, its pseudonym is looked for.  Raises InputError when nobody in
    the cohort is called so; StoreError when somebody else writes to it; OSError when a file can't be removed.
    """
    cohort.check()
    patient = str(names.patient(patient_id))
    with cohort.lock():
        remove_leftovers(cohort)
        rows, labels = cohort.reread_rows(), _labels(cohort)
        ids = {one for one, row in rows.items() if row["patient_id"] == patient}
        ids |= {one["slide_id"] for one in labels if one["patient_id"] == patient}
        entries = [one for one in cohort.read_intake() if one["slide_id"] in ids]
        if not ids:
            raise InputError(f"holds no slide of a patient {patient_id}", cohort.root, "look at the labels for the id")
        words = _words(patient, ids, entries, rows)
        found = EraseSummary(sorted(ids))
        if names.key is None:
            found.sources = sorted({one["path"] for one in entries})
        _remember_digests(cohort, [*(rows[one] for one in ids & rows.keys()), *entries])
        found.nights = _drop_nights(cohort, words)
        _drop_mentions(cohort, ids, {one["path"] for one in entries}, words, labels)
        found.reviews = reviews.erase_reviews(cohort, ids, _pattern(words))
        for slide_id in sorted(ids):
            found.files += _drop_slide(cohort, slide_id)
        cohort.update_row_cache()
        found.left = sorted(path for path in files_naming(cohort.root, words))
    found.runs = sorted(path for run in runs for path in files_naming(run, words))
    return found


def files_naming(root: Path, words: Collection[str]) -> Iterator[Path]:
    """Files under a folder that name one of the words, in their path or in what they hold, packed or not."""
    pattern = _pattern(words)
    for path in root.rglob("*"):
        inside = str(path.relative_to(root)).encode(errors="surrogateescape")
        if path.is_file() and (pattern.search(inside) or any(pattern.search(text) for text in _texts(path))):
            yield path


def _pattern(words: Collection[str]) -> re.Pattern[bytes]:
    """Any of the words, as a whole: 'P1' is not in 'P12'."""
    any_of = b"|".join(re.escape(one.encode(errors="surrogateescape")) for one in sorted(words, key=len, reverse=True))
    return re.compile(rb"(?<![A-Za-z0-9])(?:" + any_of + rb")(?![A-Za-z0-9])")


def _texts(path: Path) -> Iterator[bytes]:
    """What a file holds: its bytes, and the text columns of a table. A damaged one has its bytes only."""
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
            kept = column.unique() if pa.types.is_string(column.type) else column
            if not pa.types.is_floating(column.type) and not pa.types.is_integer(column.type):
                yield json.dumps(kept.to_pylist(), default=str, ensure_ascii=False).encode(errors="surrogateescape")


def _words(patient: str, ids: Collection[str], entries: list[Row], rows: dict[str, Row]) -> set[str]:
    """All by which the patient's slides are called: ids, paths, names of files."""
    paths = {one["path"] for one in entries} | {rows[one]["path"] for one in ids if one in rows}
    return {patient, *ids, *(one for one in paths if one), *(Path(one).stem for one in paths if one)}


def _labels(cohort: Cohort) -> list[Row]:
    rows: list[Row] = read_parquet(cohort.labels).to_pylist() if cohort.labels.exists() else []
    return rows


def _remember_digests(cohort: Cohort, facts: list[Row]) -> None:
    """Add what the slides' content is: so much of them stays that they are known again, and no more."""
    known = erased_digests(cohort)
    known |= {(one["bytes"], erased_digest(one["sha256"])) for one in facts if one["sha256"]}
    with atomic_write(cohort.erased_list) as part:
        part.write_text("".join(f"{size} {digest}\n" for size, digest in sorted(known)))


def erased_digests(cohort: Cohort) -> set[tuple[int, str]]:
    """(bytes, digest) of slides that must not come back."""
    if not cohort.erased_list.exists():
        return set()
    pairs = (line.split() for line in cohort.erased_list.read_text().splitlines())
    return {(int(size), digest) for size, digest in pairs}


def erased_digest(sha256: str) -> str:
    """What stands for a forgotten slide's content."""
    return hashlib.sha256(b"forgotten:" + sha256.encode()).hexdigest()


def _drop_nights(cohort: Cohort, words: Collection[str]) -> list[str]:
    """Reports of nights that name the patient go whole."""
    gone = []
    for night in sorted(cohort.nights.glob("*")):
        if any(True for _ in files_naming(night, words)):
            remove_tree(night)
            gone.append(night.name)
    return gone


def _drop_mentions(cohort: Cohort, ids: set[str], paths: set[str], words: Collection[str], labels: list[Row]) -> None:
    """Rows and lines about the slides in files that are about others too."""
    kept = [one for one in cohort.read_intake() if one["slide_id"] not in ids]
    cohort.write_intake(kept)
    cohort.write_probes([one for one in cohort.read_probes() if one["path"] not in paths])
    cohort.write_damaged_slides(cohort.damaged_slides() - ids)
    if cohort.labels.exists():
        table = read_parquet(cohort.labels)
        patients = {one["patient_id"] for one in labels if one["slide_id"] in ids}
        stay = [row["slide_id"] not in ids and row["patient_id"] not in patients for row in table.to_pylist()]
        _rewrite(cohort.labels, table.filter(pa.array(stay, pa.bool_())))
    for path in sorted(cohort.runs.glob("ingest-*.parquet")):
        table = read_parquet(path)
        stay = [one not in ids for one in table["slide_id"].to_pylist()]
        if not all(stay):
            _rewrite(path, table.filter(pa.array(stay, pa.bool_())))
    pattern = _pattern(words)
    for path in sorted(cohort.runs.glob("*.jsonl")):
        lines = path.read_bytes().splitlines(keepends=True)
        stays = [line for line in lines if not pattern.search(line)]
        if len(stays) < len(lines):
            with atomic_write(path) as part:
                part.write_bytes(b"".join(stays))


def _rewrite(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as part:
        write_parquet(table, part)


def _drop_slide(cohort: Cohort, slide_id: str) -> int:
    """A slide's files, its row last; returns how many."""
    count = sum(path.is_file() for path in cohort.pyramid(slide_id).rglob("*"))
    remove_tree(cohort.pyramid(slide_id))
    places = [
        cohort.thumbnail(slide_id),
        *(cohort.table(one, slide_id) for one in cohort.table_names() if one != "slides"),
    ]
    for path in [*places, cohort.table("slides", slide_id)]:
        count += path.is_file()
        path.unlink(missing_ok=True)
    return count
