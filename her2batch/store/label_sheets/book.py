"""The labels of an ingest: the rows of a sheet, or those stored in the cohort, and the slides that they meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from her2batch.errors import InputError, StoreError, printable_path
from her2batch.slides.discover import SlideFiles
from her2batch.store.cohort import Cohort, Row
from her2batch.store.label_sheets.matching import LabelMatch, SlideNames, match_labels
from her2batch.store.label_sheets.readers.merging import hide_readers
from her2batch.store.label_sheets.reading import LabelSheet
from her2batch.store.label_sheets.rows import LabelRow, doubled_error, strip_slide_suffix
from her2batch.store.label_sheets.stored import READINGS, stored_label_table
from her2batch.store.pseudonyms import Pseudonymizer

LABEL_COLUMNS: Final = ("patient_id", "stain", "her2_detail")
"""Columns of `slides` that labels decide."""

AMBIGUOUS: Final = "ambiguous"
"""Level of a stored label whose name could mean two slides."""


@dataclass(frozen=True)
class LabelsReport:
    """What became of the labels of an ingest.

    rows: number of labels.  met: number of slides of the cohort that have one.  unmet: labels that meet no slide, each
    with line and slide_id.  ambiguous: labels that could mean several, with their paths.  unlabelled: ids of the slides
    of the scan folder that have none.  notes: of the sheet.  unit: `line` or `row`, which `line` counts.  With
    pseudonyms, names are null and paths are slide ids.
    """

    rows: int
    met: int
    unmet: list[Row] = field(default_factory=list)
    ambiguous: list[Row] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unit: str = "line"

    @property
    def warnings(self) -> list[str]:
        """What a person has to do something about, in sentences: labels that could mean two slides."""
        texts = []
        for entry in self.ambiguous:
            name = entry["slide_id"] or f"of {self.unit} {entry['line']}"
            paths = " or ".join(entry["paths"])
            texts.append(f"The label {name} could mean {paths} and was not used: write the path or the slide id there.")
        return texts


class LabelBook(Mapping[str, Row]):
    """Labels by slide id, of the slides that were added so far; names of patients and sites as the cohort stores them.

    path: of the sheet; None for the labels that the cohort has.
    """

    def __init__(self, rows: Iterable[LabelRow], pseudonymizer: Pseudonymizer, sheet: LabelSheet | None = None) -> None:
        self._rows = [{**row, "number": k} for k, row in enumerate(rows)]
        self._pseudonymizer, self._sheet = pseudonymizer, sheet
        self._names = SlideNames()
        self._match: LabelMatch | None = None

    @property
    def path(self) -> Path | None:
        """The sheet; None for the labels that the cohort has."""
        return self._sheet.path if self._sheet is not None else None

    def add_slides(self, slides: Iterable[tuple[str, str | None]]) -> None:
        """Add slides: id and path of the file, which must be the real one. A slide may be added with several paths."""
        for slide_id, path in slides:
            if self._names.add(slide_id, path):
                self._match = None

    def add_files(self, files: Iterable[SlideFiles], entries: Mapping[str, Row]) -> None:
        """Add the slides of a scan folder.  entries: of the intake table, with their ids, by the stored path."""
        if self.is_empty:
            return
        found = ((entries.get(self._pseudonymizer.path(slide.path), {}), slide) for slide in files)
        paths = ((entry.get("slide_id"), printable_path(slide.path)) for entry, slide in found)
        self.add_slides((slide_id, path) for slide_id, path in paths if slide_id is not None)

    def add_cohort(self, cohort: Cohort) -> None:
        """Add the slides of a cohort, by the paths of their rows and of all files that are theirs."""
        self.add_slides(slide_paths(cohort, self._pseudonymizer.key is not None))

    @property
    def is_empty(self) -> bool:
        """Whether there are no labels at all; its length is the number of slides that have one."""
        return not self._rows

    @property
    def slides(self) -> list[str]:
        """Ids of the slides that were added."""
        return self._names.ids

    @property
    def match(self) -> LabelMatch:
        """Which labels meet which slides."""
        if self._match is None:
            self._match = match_labels((self._with_known_name(row) for row in self._rows), self._names)
        return self._match

    def _with_known_name(self, row: LabelRow) -> LabelRow:
        """A row whose name is that of a slide: with pseudonyms, the pseudonym of a slide whose file is not here now."""
        if self._pseudonymizer.key is None or row["level"] != "slide" or self._names.meant_by(row["name"]):
            return row
        ids = (self._pseudonymizer.slide(stem) for stem in _stems(row["name"]))
        return {**row, "name": next((slide_id for slide_id in ids if slide_id in self._names), row["name"])}

    def __getitem__(self, slide_id: str) -> Row:
        return self._as_stored(self.match.labels[slide_id], slide_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.match.labels)

    def __len__(self) -> int:
        return len(self.match.labels)

    def _as_stored(self, row: LabelRow, slide_id: str) -> Row:
        """A label as the cohort stores it."""
        names = self._pseudonymizer if self._sheet is not None else Pseudonymizer()  # stored names are pseudonyms
        return {
            **row,
            "slide_id": slide_id,
            "patient_id": names.patient(row["patient_id"]),
            "site": names.site(row["site"]),
            READINGS: hide_readers(row.get(READINGS), names),
            "name": row["name"] if self._pseudonymizer.key is None else None,
        }

    def stored_rows(self) -> list[Row]:
        """All labels as the cohort stores them, in the order of the sheet: met ones by slide, the others by name."""
        match = self.match
        met: dict[int, list[str]] = {}
        for slide_id, row in match.labels.items():
            met.setdefault(row["number"], []).append(slide_id)
        unclear = {row["number"] for row, _ in match.ambiguous}
        unclear |= {row["number"] for pair in match.doubled.values() for row in pair}
        rows = []
        for row in self._rows:
            if row["number"] in met:
                rows += [self._as_stored(row, slide_id) for slide_id in sorted(met[row["number"]])]
            elif row["number"] not in unclear:
                rows.append(self._as_stored(row, self._unmet_id(row)))
            elif self._pseudonymizer.key is None:  # a pseudonym alone would be the id of one of the slides
                rows.append({**self._as_stored(row, f"{row['name']} ({AMBIGUOUS})"), "level": AMBIGUOUS})
        return rows

    def _unmet_id(self, row: LabelRow) -> str:
        """The id of a label that meets no slide: the name of the sheet, or its pseudonym."""
        if self._pseudonymizer.key is None or self._sheet is None:
            return str(row["slide_id"])
        return self._pseudonymizer.slide(strip_slide_suffix(row["name"]))

    def check(self) -> None:
        """Raise InputError for two lines of one slide, and for the first label that could mean two slides.

        The labels that the cohort has are not checked: what is unclear was reported when they were given.
        """
        if self._sheet is None:
            return
        for one, other in self.match.doubled.values():
            raise doubled_error(self._sheet.path, one, other, self._sheet.unit)
        for row, slides in self.match.ambiguous[:1]:
            raise self._ambiguity(self._sheet, row, slides)

    def _ambiguity(self, sheet: LabelSheet, row: LabelRow, slides: list[str]) -> InputError:
        paths = " or ".join(self._display(slide_id) for slide_id in slides)
        name = f" {row['name']!r}" if self._pseudonymizer.key is None else ""
        more = len(self.match.ambiguous) - 1
        count = f"; so could {more} more" if more else ""
        what = f"{sheet.unit} {row['line']}: {sheet.header.names['slide_id']}{name} could mean {paths}{count}"
        return InputError(what, sheet.path, "write the path or the slide id there, instead of the name")

    def _display(self, slide_id: str) -> str:
        return self._names.display(slide_id) if self._pseudonymizer.key is None else slide_id

    def report(self, slides: Iterable[str]) -> LabelsReport:
        """What became of the labels.  slides: ids of the slides of the scan folder."""
        match, hidden = self.match, self._pseudonymizer.key is not None

        def entry(row: LabelRow) -> Row:
            return {"line": row.get("line"), "slide_id": None if hidden else row["name"]}

        unclear = [(row, ids) for row, ids in match.ambiguous]
        unclear += [(row, [slide_id]) for slide_id, pair in match.doubled.items() for row in pair]
        return LabelsReport(
            len(self._rows),
            len(match.labels),
            [entry(row) for row in match.unmet],
            [{**entry(row), "paths": [self._display(slide_id) for slide_id in ids]} for row, ids in unclear],
            sorted(set(slides) - match.labels.keys()),
            list(self._sheet.notes) if self._sheet is not None else [],
            self._sheet.unit if self._sheet is not None else "line",
        )


def _stems(name: str) -> tuple[str, ...]:
    """The stems that the slide id of a file can be made of."""
    bare = strip_slide_suffix(name)
    return (name, bare, name.rpartition(".")[0] or name)


def open_labels(sheet: LabelSheet | None, cohort: Cohort, pseudonymizer: Pseudonymizer) -> LabelBook:
    """The labels of a sheet, or those of an earlier ingest, with the slides that the cohort has."""
    book = LabelBook(sheet.rows, pseudonymizer, sheet) if sheet is not None else stored_book(cohort, pseudonymizer)
    if not book.is_empty:  # without labels, thousands of names need not be read
        book.add_cohort(cohort)
    return book


def stored_book(cohort: Cohort, pseudonymizer: Pseudonymizer) -> LabelBook:
    """The labels that the cohort has, to meet the slides of a further ingest. Raises StoreError: damaged.

    Labels of patients are one row again, which meets the slides that come.
    """
    rows: dict[tuple[str, str], Row] = {}
    for row in stored_label_table(cohort).to_pylist():
        level = row["level"] if row["level"] in ("patient", "sample") else "slide"
        if level != "slide" and row["name"] is None:  # with pseudonyms the barcode is not known any more
            level = "slide"
        name = row["name"] or row["slide_id"]
        slide_id = row["slide_id"] if row["name"] is None else strip_slide_suffix(name) if level == "slide" else name
        rows.setdefault((level, name), {**row, "name": name, "level": level, "slide_id": slide_id})
    return LabelBook(rows.values(), pseudonymizer)


def slide_paths(cohort: Cohort, hidden: bool = False) -> Iterator[tuple[str, str | None]]:
    """Ids and paths of a cohort's slides; a copy's path is one more of its slide.  hidden: pseudonyms, ids only."""
    for slide_id, row in cohort.rows(("slide_id", "path")).items():
        yield slide_id, None if hidden else row["path"]
    try:
        entries = [] if hidden else cohort.read_intake()
    except StoreError:  # a torn table: the ingest rebuilds it
        entries = []
    for entry in entries:
        if entry["slide_id"] is not None and entry["outcome"] in ("slide", "duplicate"):
            yield entry["slide_id"], entry["path"]
