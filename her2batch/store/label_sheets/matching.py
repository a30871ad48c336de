"""Which slide a label means: by the slide's id, the name of its file with or without suffix, or its path.

Names are compared in Unicode's composed form, exactly first, then without regard to case and blanks, and last, for
numbers, without leading zeros, which spreadsheets lose. A name that could mean two slides means neither, unless the
other labels leave one slide only.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from her2batch.store.label_sheets.cells import clean_text, fold_text
from her2batch.store.label_sheets.clinical_tables import begins_with_barcode
from her2batch.store.label_sheets.rows import LabelRow, strip_slide_suffix

SEPARATORS = re.compile(r"[/\\]+")
"""Between the folders of a path, on any system."""

ABSOLUTE = re.compile(r"[A-Za-z]:|[/\\]")
"""Beginning of a path that is complete, perhaps on another machine."""


FOLDER_SUFFIXES = (".dcm", ".dicom")
"""Suffixes of files that have numbers for names: the slide is named by its folder."""


@dataclass
class SlideNames:
    """The names of slides, by which labels find them. Slides may be added at any time."""

    _paths: dict[str, list[str]] = field(default_factory=dict)
    _files: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _folded: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _numbers: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    _sorted: list[tuple[str, str]] = field(default_factory=list)

    def add(self, slide_id: str, path: str | None = None) -> bool:
        """Add a slide by its id, and by the path of its file where it is known. A slide may have several paths.

        Returns whether the slide or the path is new.
        """
        if slide_id in self._paths and (path is None or path in self._paths[slide_id]):
            return False
        known = self._paths.setdefault(slide_id, [])
        names = {slide_id}
        if path is not None:
            known.append(path)
            file = _parts(path)[-1]
            self._files[file].add(slide_id)
            self._folded[fold_text(file)].add(slide_id)
            names |= {strip_slide_suffix(file), file.rpartition(".")[0] or file}
            if file.casefold().endswith(FOLDER_SUFFIXES):
                names |= set(_parts(path)[-2:-1])
        for name in names:
            self._names[name].add(slide_id)
            self._folded[fold_text(name)].add(slide_id)
            if name.isascii() and name.isdigit():
                self._numbers[int(name)].add(slide_id)
        self._sorted = []
        return True

    def __contains__(self, slide_id: str) -> bool:
        return slide_id in self._paths

    @property
    def ids(self) -> list[str]:
        """Ids of all slides, sorted."""
        return sorted(self._paths)

    def display(self, slide_id: str) -> str:
        """Return the path of a slide, or its id where the path is not known."""
        return (self._paths[slide_id] or [slide_id])[0]

    def meant_by(self, name: str) -> set[str]:
        """Return the ids of the slides that a name could mean."""
        name = clean_text(name)
        bare = strip_slide_suffix(name)
        if bare != name and (found := self._files.get(name)):
            return found
        for text in (name, bare):
            if found := self._names.get(text):
                return found
        if SEPARATORS.search(name):
            return self._meant_by_path(name)
        for text in (name, bare):
            if found := self._folded.get(fold_text(text)):
                return found
        return self._numbers.get(int(bare), set()) if bare.isascii() and bare.isdigit() else set()

    def _meant_by_path(self, name: str) -> set[str]:
        """Return the slides whose paths end with a path. The beginning of a complete one may be of another machine."""
        parts = _parts(name)
        shortest = min(2, len(parts)) if ABSOLUTE.match(name) else len(parts)
        for length in range(len(parts), shortest - 1, -1):
            tail = parts[-length:]
            files = self._files.get(tail[-1]) or self._names.get(tail[-1]) or set()
            found = {slide for slide in files if any(_ends_with(path, tail) for path in self._paths[slide])}
            if found:
                return found
        return set()

    def meant_by_barcode(self, barcode: str) -> set[str]:
        """Return the ids of the slides whose names begin with the barcode of a patient or sample."""
        if not self._sorted:
            self._sorted = sorted((name.casefold(), slide) for name, ids in self._names.items() for slide in ids)
        start, found = barcode.casefold(), set()
        for name, slide_id in self._sorted[bisect_left(self._sorted, (start, "")) :]:
            if not name.startswith(start):
                break
            if begins_with_barcode(name, barcode):
                found.add(slide_id)
        return found


def _parts(path: str) -> list[str]:
    return [part for part in SEPARATORS.split(clean_text(path)) if part not in ("", ".")] or [path]


def _ends_with(path: str, tail: Sequence[str]) -> bool:
    """Whether a path ends with these folders and this file, whose suffix may be left out."""
    own = _parts(path)[-len(tail) :]
    names = {own[-1], strip_slide_suffix(own[-1]), own[-1].rpartition(".")[0]}
    return len(own) == len(tail) and own[:-1] == list(tail[:-1]) and tail[-1] in names


@dataclass(frozen=True)
class LabelMatch:
    """Which labels meet which slides.

    labels: slide id → row of the sheet.  unmet: rows that meet no slide.  ambiguous: rows that could mean several, each
    with their ids.  doubled: slides that several rows mean, each with two of them; they get no label.
    """

    labels: dict[str, LabelRow]
    unmet: list[LabelRow]
    ambiguous: list[tuple[LabelRow, list[str]]]
    doubled: dict[str, tuple[LabelRow, LabelRow]]


def match_labels(rows: Iterable[LabelRow], names: SlideNames) -> LabelMatch:
    """Match the rows of a sheet to slides. A row of a patient or sample meets any number of slides, others one."""
    match = LabelMatch({}, [], [], {})
    open_rows: list[tuple[LabelRow, set[str]]] = []
    for row in rows:
        if row["level"] in ("patient", "sample"):
            slides = names.meant_by_barcode(row["name"])
            for slide_id in sorted(slides):
                _meet(match, slide_id, row)
        else:
            slides = names.meant_by(row["name"])
            if len(slides) > 1:
                open_rows.append((row, slides))
            elif slides:
                _meet(match, next(iter(slides)), row)
        if not slides:
            match.unmet.append(row)
    taken = match.labels.keys() | match.doubled.keys()
    left = [(row, slides - taken) for row, slides in open_rows]
    for (row, slides), (_, every) in zip(left, open_rows, strict=True):
        if len(slides) == 1 and sum(slides <= other for _, other in left) == 1:
            _meet(match, next(iter(slides)), row)
        else:
            match.ambiguous.append((row, sorted(every)))
    return match


def _meet(match: LabelMatch, slide_id: str, row: LabelRow) -> None:
    """Note that a row means a slide. Of two barcodes that a name begins with, the longer one is meant."""
    other = match.labels.get(slide_id)
    if other is not None and other["level"] != "slide" and len(other["name"]) != len(row["name"]):
        match.labels[slide_id] = max(other, row, key=lambda one: len(one["name"]))
    elif other is not None or slide_id in match.doubled:
        match.doubled.setdefault(slide_id, (other or row, row))
        match.labels.pop(slide_id, None)
    else:
        match.labels[slide_id] = row
