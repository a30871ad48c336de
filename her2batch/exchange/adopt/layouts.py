"""Layouts of public HER2 sets: which files are pictures or slides, their labels, and which belong to one slide.

A layout reads names, folders and tables only. Labels in a name are those of the slide, not of the patch. Groups are
given as patients: all pictures of one slide (or patient, where the set states it) are on one side of every fold.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from her2batch.errors import InputError
from her2batch.exchange.adopt.pictures import PICTURE_SUFFIXES
from her2batch.exchange.adopt.tables import TABLE_SUFFIXES, read_table
from her2batch.store.label_sheets.values import UnclearValueError, read_her2, read_sign

HE: Final = "he"
"""Stain of H&E, on which no IHC task may be trained."""


class Picture(NamedTuple):
    """A picture or slide of a set. path: below its folder.  name: of the slide that is made of it, without suffix."""

    path: PurePosixPath
    name: str
    stain: str
    patient_id: str | None = None
    her2: str | None = None
    ish: str | None = None
    site: str | None = None


@dataclass
class LayoutFiles:
    """What a layout has found.

    problems: path or name → why it is missing, misnamed or left out.  notes: what a person should know of the set.
    """

    pictures: list[Picture] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LayoutRequest:
    """What a layout is asked for. files: all below root, in order.  stain: wanted.  slide_pattern: of the user."""

    root: Path
    files: Sequence[PurePosixPath]
    stain: str
    slide_pattern: re.Pattern[str] | None = None

    def tables(self) -> list[PurePosixPath]:
        """The files that may be label tables."""
        return [path for path in self.files if path.suffix.lower() in TABLE_SUFFIXES]


FindFiles = Callable[[LayoutRequest], LayoutFiles]


@dataclass(frozen=True)
class Layout:
    """A layout of a public set.

    stains: that it has, the usual one first.  mpp: of its pictures, µm/px; None where the set does not state it.
    are_slides: its files are slides with a resolution of their own, which are linked and not converted.
    """

    find: FindFiles
    stains: tuple[str, ...]
    mpp: float | None
    are_slides: bool
    source: str


# -- single folder ---------------------------------------------------------------------------------------------

SCORE_NAME: Final = re.compile(r"(?P<score>[0-3])\+?_(?P<name>.+)")

CORE_COLUMNS: Final = {
    "file": ("filename", "file", "path", "image", "imagepath", "filepath"),
    "her2": ("ihcscore", "score", "her2", "her2score", "label"),
    "status": ("her2status", "status", "ish", "fish"),
    "patient": ("patientid", "patient", "case", "caseid", "slide", "slideid"),
}


def find_single_folder(request: LayoutRequest) -> LayoutFiles:
    """Cores named SCORE_NAME.jpg, with a table of file, score and status. The table counts before the name."""
    found, stated, unclear, table = LayoutFiles(), dict[str, dict[str, str]](), set[str](), None
    for path in request.tables():
        try:
            rows = read_table(request.root / path, CORE_COLUMNS, ("file", "her2"))
        except InputError as error:
            found.problems[str(path)] = error.message
            continue
        table = path
        for row in rows:
            name = PurePosixPath(row["file"].replace("\\", "/")).name
            if name in stated and stated[name] | {"line": ""} != row | {"line": ""}:
                what = f"contradicts line {stated[name]['line']} on {name}, which gets no label"
                found.problems[f"{path} line {row['line']}"] = what
                unclear.add(name)
            stated.setdefault(name, row)
    missing = dict(stated)
    for path in request.files:
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        row = missing.pop(path.name, {})
        named = SCORE_NAME.fullmatch(path.stem)
        if named is None and not row:
            found.problems[str(path)] = "misnamed: not SCORE_NAME with a score of 0 to 3, and no table names it"
            continue
        by_name = _score(named["score"]) if named is not None else None
        score = _read_score(found, f"{table} line {row['line']}", row["her2"]) if row else by_name
        if row and by_name is not None and score is not None and score != by_name:
            found.problems[str(path)] = (
                f"its name says {by_name}, line {row['line']} of {table} {score}: the table counts"
            )
        sign = _read_sign(found, f"{table} line {row['line']}", row["status"]) if row else None
        score = None if path.name in unclear else score
        ish = sign if score == "2+" else None  # of other scores the status is the score's own
        found.pictures.append(Picture(path, path.stem, request.stain, row.get("patient") or path.stem, score, ish))
    found.problems |= {name: f"missing: listed in {table} line {row['line']}" for name, row in missing.items()}
    found.notes.append("one core counts as one patient, unless the table has a column patient")
    return found


def _score(digit: str) -> str:
    return "0" if digit == "0" else f"{digit}+"


def _read_score(found: LayoutFiles, place: str, text: str) -> str | None:
    try:
        score = read_her2(text)
    except UnclearValueError as error:
        found.problems[place] = f"the score {text!r} is not understood ({error})"
        return None
    return score.score if score is not None else None


def _read_sign(found: LayoutFiles, place: str, text: str) -> str | None:
    folded = {"0": "-", "1": "+", "0.0": "-", "1.0": "+"}.get(text, text)
    try:
        return read_sign(folded, "ish")[0]
    except UnclearValueError as error:
        found.problems[place] = f"the status {text!r} is not understood ({error})"
        return None


# -- Warwick ---------------------------------------------------------------------------------------------------

WARWICK_NAME: Final = re.compile(r"(?P<case>\d+)_(?P<stain>her2|he)", re.IGNORECASE)
WARWICK_COLUMNS: Final = {"case": ("caseno", "case", "caseid"), "her2": ("her2score", "her2", "score")}


def find_warwick(request: LayoutRequest) -> LayoutFiles:
    """Slides NN_Her2.ndpi and NN_HE.ndpi, with a table of CaseNo and HeR2 SCORE."""
    found, scores = LayoutFiles(), dict[int, tuple[str | None, str]]()
    for path in request.tables():
        try:
            rows = read_table(request.root / path, WARWICK_COLUMNS, ("case", "her2"))
        except InputError as error:
            found.problems[str(path)] = error.message
            continue
        for row in rows:
            place = f"{path} line {row['line']}"
            if not row["case"].isdecimal():
                found.problems[place] = f"the case {row['case']!r} is no number"
            elif int(row["case"]) in scores:
                found.problems[place] = f"doubled: case {row['case']} is on {scores[int(row['case'])][1]}, too"
            else:
                scores[int(row["case"])] = (_read_score(found, place, row["her2"]), place)
    unseen = dict(scores)
    for path in request.files:
        if path.suffix.lower() not in (".ndpi", ".svs", ".tif", ".tiff"):
            continue
        named = WARWICK_NAME.fullmatch(path.stem)
        if named is None:
            found.problems[str(path)] = "misnamed: not NN_Her2 or NN_HE"
        elif (named["stain"].lower() == HE) == (request.stain == HE):
            case = int(named["case"])
            score, _ = scores.get(case, (None, ""))
            unseen.pop(case, None)
            if case not in scores:
                found.problems[str(path)] = "no label: no table has this case"
            found.pictures.append(Picture(path, path.stem, request.stain, f"case-{case:02}", score))
    found.problems |= {f"case {case}": f"missing: no slide, but {place}" for case, (_, place) in unseen.items()}
    return found


# -- BCI -------------------------------------------------------------------------------------------------------

BCI_NAME: Final = re.compile(r"(?P<number>\d+)_(?P<split>train|test)_(?P<score>0|[123]\+?)")


def find_bci(request: LayoutRequest) -> LayoutFiles:
    """Patches {HE,IHC}/{train,test}/NNNNN_{train,test}_SCORE.png. No slide is known, so that a split is one group."""
    found, pairs = LayoutFiles(), defaultdict[str, set[str]](set)
    for path in request.files:
        folders = [part.lower() for part in path.parts[:-1]]
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        named = BCI_NAME.fullmatch(path.stem)
        stain = next((part for part in folders if part in ("he", "ihc")), None)
        split = next((part for part in folders if part in ("train", "test")), None)
        if named is None or stain is None or named["split"] != split:
            found.problems[str(path)] = "misnamed: not {HE,IHC}/SPLIT/NNNNN_SPLIT_SCORE.png with one split"
            continue
        pairs[path.stem].add(stain)
        if (stain == HE) == (request.stain == HE):
            score = _score(named["score"][0])
            found.pictures.append(Picture(path, path.stem, request.stain, f"bci-{split}", score, site=split))
    for stem, stains in pairs.items():
        if len(stains) == 1:
            found.problems[stem] = f"missing: its {'IHC' if stains == {'he'} else 'HE'} picture"
    found.notes.append(
        "the set does not say which patches are of one slide: all of train count as one group, and all of test as "
        "another (columns patient_id and site), so that no cross-validation splits them as if they were independent"
    )
    return found


# -- HER2-IHC-40x ----------------------------------------------------------------------------------------------

CLASS_FOLDER: Final = re.compile(r"class_?(?P<score>0|[123]\+?)", re.IGNORECASE)
SPLIT_FOLDER: Final = re.compile(r"(?P<split>train|test|val|valid)_data_(?P<kind>patch|wsi)", re.IGNORECASE)
SLIDE_OF_NAME: Final = re.compile(
    r"(?P<slide>.*?[A-Za-z0-9])"
    r"(?:[ _-]*(?:patch|tile|crop|img|image|row|col)[ _=-]?\d+.*|[ _-]+[xyrc][ _=-]?\d+.*|[ _-]*\(\d+\)|(?:[ _-]\d+)+)",
    re.IGNORECASE,
)
"""Name of a patch that begins with the id of its slide: `12_34`, `S12_x0_y224`, `12_patch_3`, `12 (3)`."""


def find_her2_ihc_40x(request: LayoutRequest) -> LayoutFiles:
    """Pictures {train,test}_data_{patch,wsi}/class_SCORE/NAME.png, whose names begin with the id of their slide."""
    found, examples = LayoutFiles(), Counter[str]()
    pattern = request.slide_pattern or SLIDE_OF_NAME
    for path in request.files:
        if path.suffix.lower() == ".zip":
            found.problems[str(path)] = f"not unpacked: unzip -d '{path.with_suffix('')}' '{path}'"
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        label = next((match for part in path.parts[:-1] if (match := CLASS_FOLDER.fullmatch(part))), None)
        split = next((match for part in path.parts[:-1] if (match := SPLIT_FOLDER.fullmatch(part))), None)
        slide = pattern.fullmatch(path.stem)
        if label is None or split is None:
            found.problems[str(path)] = "misnamed: not in SPLIT_data_KIND/class_SCORE"
        elif slide is None and (request.slide_pattern is not None or split["kind"].lower() == "patch"):
            found.problems[str(path)] = "misnamed: its name has no id of a slide; --slide-pattern says where it is"
        else:
            group = slide["slide"] if slide is not None else path.stem
            examples[group] += 1
            name = "-".join((split["kind"].lower(), split["split"].lower(), label["score"].rstrip("+"), path.stem))
            patient, score = f"slide-{group}", _score(label["score"][0])
            found.pictures.append(Picture(path, name, request.stain, patient, score, site=split["split"].lower()))
    shown = ", ".join(f"{group} ({count})" for group, count in examples.most_common(3))
    found.notes.append(
        f"{len(examples)} slides were read from the names of the pictures: {shown}; if that is wrong, give "
        "--slide-pattern with a group named slide"
    )
    return found


# -- IHC4BC ----------------------------------------------------------------------------------------------------

IHC4BC_MARKERS: Final = {"her2": "her2", "er": "er", "pr": "pr", "ki67": "ki67"}


def find_ihc4bc(request: LayoutRequest) -> LayoutFiles:
    """Patches Images/{HandE,IHC}/MARKER/PATIENT/SUBREGION/*.jpg."""
    found = LayoutFiles()
    for path in request.files:
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        parts = [part.lower() for part in path.parts]
        at = next((k for k, part in enumerate(parts[:-4]) if part in ("hande", "ihc")), None)
        marker = IHC4BC_MARKERS.get(parts[at + 1]) if at is not None else None
        if at is None or marker is None:
            found.problems[str(path)] = "misnamed: not {HandE,IHC}/MARKER/PATIENT/SUBREGION/NAME.jpg"
            continue
        stain = HE if parts[at] == "hande" else marker
        if stain == request.stain:
            patient, name = path.parts[at + 2], "-".join((marker, *path.parts[at + 2 : -1], path.stem))
            found.pictures.append(Picture(path, name, stain, patient))
    found.notes.append(
        "the labels of the set are of two classes (0 and 1+ against 3+) and are not read: fill in the column her2 of "
        "the labels by patient"
    )
    return found


# -- HEROHE ----------------------------------------------------------------------------------------------------

HEROHE_COLUMNS: Final = {
    "name": ("name", "case", "file", "filename", "slide", "slideid", "caseid"),
    "status": ("status", "her2status", "result", "her2", "label", "soft"),
}
WITHOUT_TUMOUR: Final = frozenset({"325"})
"""Slides of HEROHE that hold no tumour, as its organizers say."""


def find_herohe(request: LayoutRequest) -> LayoutFiles:
    """H&E slides N.mrxs with their folders, and a table of name and status."""
    found, status = LayoutFiles(), dict[str, str | None]()
    for path in request.tables():
        try:
            for row in read_table(request.root / path, HEROHE_COLUMNS, ("name", "status")):
                place, name = f"{path} line {row['line']}", PurePosixPath(row["name"]).name.removesuffix(".mrxs")
                sign = _read_sign(found, place, row["status"])
                if name in status:
                    found.problems[place] = f"doubled: slide {name}"
                    if sign != status[name]:
                        found.problems[place] += "; the results differ, and the slide gets no label"
                        status[name] = None
                status.setdefault(name, sign)
        except InputError as error:
            found.problems[str(path)] = error.message
    folders = {path.parent for path in request.files}
    unseen = dict(status)
    for path in request.files:
        if path.suffix.lower() != ".mrxs":
            continue
        unseen.pop(path.stem, None)
        if path.stem in WITHOUT_TUMOUR:
            found.problems[str(path)] = "left out: this slide holds no tumour"
        elif path.with_suffix("") not in folders:
            found.problems[str(path)] = f"missing: its folder {path.stem}/"
        else:
            if path.stem not in status:
                found.problems[str(path)] = "no label: no table has this slide"
            found.pictures.append(Picture(path, path.stem, HE, f"herohe-{path.stem}", None, status.get(path.stem)))
    found.problems |= {name: "missing: no slide, but a line in the table" for name in unseen}
    found.notes.append("the status is in the column ish of the labels; the set states no IHC scores")
    return found


LAYOUTS: Final[dict[str, Layout]] = {
    "warwick": Layout(
        find_warwick, ("her2", HE), None, True, "HER2 Scoring Contest, Warwick (Qaiser et al. 2018, Histopathology 72)"
    ),
    "bci": Layout(find_bci, ("her2", HE), 0.46, False, "BCI (Liu et al. 2022, CVPRW, arXiv:2204.11425): 0.46 µm/px"),
    "her2-ihc-40x": Layout(find_her2_ihc_40x, ("her2",), None, False, "HER2-IHC-40x: 40×, no µm/px stated"),
    "ihc4bc": Layout(
        find_ihc4bc, ("her2", "er", "pr", "ki67", HE), None, False, "IHC4BC (Akbarnejad et al. 2023): no µm/px stated"
    ),
    "herohe": Layout(find_herohe, (HE,), None, True, "HEROHE (Conde-Sousa et al. 2022, J. Imaging 8)"),
    "single-folder": Layout(find_single_folder, ("her2", "er", "pr", HE), None, False, "cores named SCORE_NAME.jpg"),
}
"""Name of a layout → how it is read."""


def find_layout(name: str) -> Layout:
    """Return a layout by its name. Raises InputError."""
    if name not in LAYOUTS:
        raise InputError(f"there is no layout {name!r}", None, f"choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def doubled_names(pictures: Iterable[Picture]) -> dict[str, list[Picture]]:
    """Return the names that several pictures would have, case aside."""
    by_name: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_name[picture.name.casefold()].append(picture)
    return {name: same for name, same in by_name.items() if len(same) > 1}
