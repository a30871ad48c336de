"""Adoption of a public set: its pictures become tiled slides with a stated resolution, with a label sheet beside them.

    SCANS/slides/NAME.tiff   one slide a picture (or a link to a slide of the set)
    SCANS/labels.csv         slide_id, patient_id, her2, ish, stain, site: what `ingest --labels` takes
    SCANS/adopted.json       layout, resolution and its source, how the pictures were stored, all problems
    SCANS/adopted.jsonl      one line a finished picture, by which a second run goes on

One picture is in memory at a time. A slide appears whole or not at all, and its line is written after it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from her2batch.errors import InputError
from her2batch.exchange.adopt.layouts import HE, Layout, LayoutRequest, Picture, doubled_names, find_layout
from her2batch.exchange.adopt.pictures import MAX_BYTES, encode_picture, write_tiff
from her2batch.files.atomic import atomic_write, disk_errors, fsync
from her2batch.store.pseudonyms import escape_formula, slide_id_of

LABEL_COLUMNS: Final = ("slide_id", "patient_id", "her2", "ish", "stain", "site")

MPP_RANGE: Final = (0.05, 20.0)

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class AdoptRequest:
    """What the user asks for. folder: of the set.  out: for the slides.  mpp: µm/px of pictures.  stain: to adopt.

    slide_pattern: regular expression with a group `slide`, by which names of pictures state their slide.
    """

    layout: str
    folder: Path
    out: Path
    mpp: float | None = None
    stain: str | None = None
    slide_pattern: str | None = None


@dataclass
class AdoptSummary:
    """Result. stored: how pictures were stored → number.  problems: file → what is wrong.  failed: that are damaged.

    slides: of the label sheet.  already: of these, finished by an earlier run.  groups: number of patients.
    """

    out: Path
    mpp: float | None
    source: str
    slides: int = 0
    already: int = 0
    groups: int = 0
    labelled: int = 0
    stored: dict[str, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count_stored(self, how: str, number: int = 1) -> None:
        """Count pictures that were stored in one way."""
        self.stored[how] = self.stored.get(how, 0) + number

    @property
    def exit_code(self) -> int:
        """0: every picture is a slide; 3: some are damaged."""
        return 3 if self.failed else 0


def adopt(request: AdoptRequest, progress: ProgressCallback = lambda *_: None) -> AdoptSummary:
    """Turn a set into slides and a label sheet. Run again, it goes on where it was stopped.

    progress: called with the number of finished pictures and of all.  Raises InputError for a set that is not there, of
    another layout, of the wrong stain or without a resolution; StoreError when the disk refuses.
    """
    layout = find_layout(request.layout)
    stain = _stain(request, layout)
    mpp = _resolution(request, layout)
    found = layout.find(LayoutRequest(request.folder, _files(request), stain, _pattern(request)))
    summary = AdoptSummary(request.out, mpp, layout.source, problems=found.problems, notes=found.notes)
    if stain == HE:
        summary.notes.append("the slides are H&E: IHC tasks leave them out (column stain of the labels)")
    if not found.pictures:
        shown = "; ".join(f"{name}: {problem}" for name, problem in list(found.problems.items())[:3])
        what = f"the folder has no {stain} pictures in the layout {request.layout}" + (f" ({shown})" if shown else "")
        raise InputError(what, request.folder, "give the folder as the set is unpacked, or another layout")
    with disk_errors(request.out):
        (request.out / "slides").mkdir(parents=True, exist_ok=True)
        journal = _Journal(request.out / "adopted.jsonl", {"layout": request.layout, "mpp": mpp, "stain": stain})
        rows = _store_pictures(request, layout, _usable(found.pictures, summary), journal, summary, progress)
        _write_labels(request.out / "labels.csv", rows)
        _count(summary, rows)
        with atomic_write(request.out / "adopted.json") as part:
            part.write_text(
                json.dumps(_report(request, summary), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    return summary


def _stain(request: AdoptRequest, layout: Layout) -> str:
    stain = request.stain or layout.stains[0]
    if stain not in layout.stains:
        what = f"the set {request.layout} has no pictures with the stain {stain!r}"
        raise InputError(what, request.folder, f"choose one of {', '.join(layout.stains)}")
    if stain == HE and request.stain is None:
        what = f"the set {request.layout} is H&E, which no IHC task can be trained or scored on"
        raise InputError(what, request.folder, "adopt it for tasks of your own with --stain he")
    return stain


def _resolution(request: AdoptRequest, layout: Layout) -> float | None:
    if layout.are_slides:
        if request.mpp is not None:
            raise InputError("the slides of this set state their own resolution", request.folder, "leave out --mpp")
        return None
    mpp = request.mpp if request.mpp is not None else layout.mpp
    if mpp is None:
        what = f"the layout {request.layout} does not state the resolution of its pictures"
        raise InputError(what, request.folder, "give it with --mpp, in µm/px: about 0.25 for 40×, 0.5 for 20×")
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise InputError(f"a resolution of {mpp:g} µm/px is implausible", request.folder, "give --mpp in µm/px")
    return mpp


def _pattern(request: AdoptRequest) -> re.Pattern[str] | None:
    if request.slide_pattern is None:
        return None
    remedy = r"for example '(?P<slide>\d+)_.*', which is matched with the name without suffix"
    try:
        pattern = re.compile(request.slide_pattern)
    except re.error as error:
        raise InputError(f"--slide-pattern is no regular expression ({error})", None, remedy) from error
    if "slide" not in pattern.groupindex:
        raise InputError("--slide-pattern has no group named slide", None, remedy)
    return pattern


def _files(request: AdoptRequest) -> list[PurePosixPath]:
    """Return the files of a set below its folder, sorted; without hidden ones and those of the output."""
    if not request.folder.is_dir():
        raise InputError("there is no such folder", request.folder, "give the folder of the set")
    out, found = request.out.absolute(), []
    if request.folder.absolute().is_relative_to(out):
        raise InputError("the set lies in the folder for the slides", out, "choose another --out")
    for folder, names, files in os.walk(request.folder):
        here = Path(folder)
        names[:] = sorted(name for name in names if name[0] != "." and (here / name).absolute() != out)
        found += [PurePosixPath((here / name).relative_to(request.folder)) for name in files if name[0] != "."]
    return sorted(found)


def _usable(pictures: list[Picture], summary: AdoptSummary) -> list[Picture]:
    """Return the pictures with names as slides have them; of those with one name only the first is kept."""
    named = [picture._replace(name=slide_id_of(picture.name)) for picture in pictures]
    dropped: set[PurePosixPath] = set()
    for same in doubled_names(named).values():
        first, *others = same
        dropped |= {picture.path for picture in others}
        summary.problems |= {str(picture.path): f"doubled: {first.path} has the same name" for picture in others}
    return [picture for picture in named if picture.path not in dropped]


class _Journal:
    """Lines of finished pictures. The first line states the settings, with which all of them were made."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Raises InputError when the folder has slides that were made with other settings."""
        self._path, self.lines = path, dict[str, dict[str, Any]]()
        if path.is_file():
            entries = list(_json_lines(path))
            if entries and entries[0] != settings:
                old, new = (
                    ", ".join(f"{key} {value}" for key, value in item.items()) for item in (entries[0], settings)
                )
                raise InputError(f"the folder has slides of another set or resolution ({old}; now {new})",
                                 path.parent, "choose another --out")  # fmt: skip
            self.lines = {entry["path"]: entry for entry in entries[1:]}
            self._end_line()
        if not path.is_file() or not path.stat().st_size:
            self._append(settings)

    def add(self, entry: dict[str, Any]) -> None:
        """Note a picture whose slide is written."""
        self.lines[entry["path"]] = entry
        self._append(entry)

    def _end_line(self) -> None:
        """End the line that a killed run has begun."""
        with self._path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.write(b"\n")

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    """Yield the complete lines of a journal: a run that was killed may leave half of the last one."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry


def _store_pictures(
    request: AdoptRequest, layout: Layout, pictures: list[Picture], journal: _Journal, summary: AdoptSummary,
    progress: ProgressCallback,
) -> list[Picture]:  # fmt: skip
    """Store every picture as a slide; returns those that have one, once.

    Of equal pictures the first is kept, and none where their labels differ: nobody knows which is right.
    """
    by_digest: dict[str, Picture] = {}
    contradicted: set[str] = set()
    for count, picture in enumerate(pictures, start=1):
        try:
            entry = _store_picture(request, layout, picture, journal, summary)
        except InputError as error:
            summary.failed[str(picture.path)] = f"{error.message}; {error.remedy}"
        else:
            first = by_digest.setdefault(entry["sha256"], picture)
            if first is not picture:
                _drop_slide(request, picture, entry["how"], summary, f"doubled: the same picture as {first.path}")
                if (first.her2, first.ish) != (picture.her2, picture.ish):
                    contradicted.add(entry["sha256"])
                    what = f"the same picture as {picture.path}, with another label ({first.her2}, {picture.her2})"
                    _drop_slide(request, first, entry["how"], summary, f"left out: {what}")
        progress(count, len(pictures))
    return [picture for digest, picture in by_digest.items() if digest not in contradicted]


def _drop_slide(request: AdoptRequest, picture: Picture, how: str, summary: AdoptSummary, problem: str) -> None:
    """Remove the slide of a picture that is left out, and list it."""
    target = request.out / "slides" / f"{picture.name}.tiff"
    if target.exists():
        target.unlink()
        summary.count_stored(how, -1)
    summary.problems[str(picture.path)] = problem


def _store_picture(
    request: AdoptRequest, layout: Layout, picture: Picture, journal: _Journal, summary: AdoptSummary
) -> dict[str, Any]:
    """Write the slide of a picture, if it is not there yet; returns its line of the journal. Raises InputError."""
    source, facts = request.folder / picture.path, _facts(request.folder / picture.path)
    known = journal.lines.get(str(picture.path))
    target = request.out / "slides" / (f"{picture.name}{source.suffix if layout.are_slides else '.tiff'}")
    if known is not None and [known["bytes"], known["mtime_ns"]] == facts and target.exists():
        summary.already += 1
        summary.count_stored(known["how"])
        return known
    if layout.are_slides:
        how, digest = _link_slide(source, target), f"{facts} {picture.path}"  # slides are compared by the ingest
    else:
        assert summary.mpp is not None
        if facts[0] > MAX_BYTES:
            raise InputError(f"the picture has {facts[0] / 1e9:.1f} GB", source, "convert it to a tiled slide")
        data = source.read_bytes()
        encoded, digest = encode_picture(source, data), hashlib.sha256(data).hexdigest()
        with atomic_write(target) as part:
            write_tiff(part, encoded, summary.mpp)
        how = encoded.how
    entry = {"path": str(picture.path), "bytes": facts[0], "mtime_ns": facts[1], "sha256": digest, "how": how}
    journal.add(entry)
    summary.count_stored(how)
    return entry


def _facts(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror})", path, "check the file") from error
    return [found.st_size, found.st_mtime_ns]


def _link_slide(source: Path, target: Path) -> str:
    """Make a slide of the set known in the scan folder without copying it, with the files in its folder (MRXS)."""
    folder = source.with_suffix("")
    if source.suffix.lower() == ".mrxs":
        target.with_suffix("").mkdir(exist_ok=True)
        for path in sorted(folder.iterdir()):
            if path.is_file():
                _link(path, target.with_suffix("") / path.name)
    _link(source, target)
    fsync(target.parent)
    return "linked"


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # another disk
        target.symlink_to(source.absolute())


def _write_labels(path: Path, pictures: list[Picture]) -> None:
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(LABEL_COLUMNS)
        for picture in sorted(pictures, key=lambda picture: picture.name):
            values = (picture.name, picture.patient_id, picture.her2, picture.ish, picture.stain, picture.site)
            writer.writerow([escape_formula(value or "") for value in values])


def _count(summary: AdoptSummary, pictures: list[Picture]) -> None:
    summary.slides = len(pictures)
    summary.groups = len({picture.patient_id for picture in pictures})
    summary.labelled = sum(picture.her2 is not None or picture.ish is not None for picture in pictures)
    summary.stored = {how: count for how, count in summary.stored.items() if count}


def _report(request: AdoptRequest, summary: AdoptSummary) -> dict[str, Any]:
    return {
        "layout": request.layout, "mpp": summary.mpp, "source": summary.source, "slides": summary.slides,
        "groups": summary.groups, "labelled": summary.labelled, "stored": summary.stored,
        "problems": summary.problems, "failed": summary.failed, "notes": summary.notes,
    }  # fmt: skip
