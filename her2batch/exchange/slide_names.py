"""Files of other programs that belong to slides, found by their names: annotations, regions, embeddings.

Programs name a file after the slide's id, after the slide file with or without its suffix (QuPath's project scripts
write `S01.svs.geojson`), or after both with a word more (`S01_regions.geojson`, `S01.vsi - Series 1.geojson`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Final, NamedTuple

from her2batch.slides.discover import SLIDE_SUFFIXES
from her2batch.store.pseudonyms import slide_id_of

IMAGE_OF_FILE: Final = re.compile(r"(?P<name>.+\.[A-Za-z]{3,8}) - .+")
"""Name that QuPath gives one of several images in a file: `S01.vsi - 20x_01`."""

ADDED_WORD: Final = re.compile(r"(?P<name>.+?)[ _.-]+(?:annotations?|regions?|rois?|objects?|polygons?|tumou?r)", re.I)
"""Name of a slide with a word for what the file contains."""


class FileMatches(NamedTuple):
    """Result of matching files to slides by name.

    found: slide id → file.  unmatched: file → reason why it belongs to no slide, or is not used.
    """

    found: dict[str, Path]
    unmatched: dict[Path, str]

    @property
    def notes(self) -> list[str]:
        """The unmatched files with their reasons, as text."""
        return [f"{path.name}: {reason}" for path, reason in self.unmatched.items()]


def match_files(files: Iterable[Path], slides: Mapping[str, str | None], suffixes: tuple[str, ...]) -> FileMatches:
    """Match files to slides. A name that fits two slides, in which no folder decides, fits neither.

    slides: slide id → path of the slide file; None where only the id is known.  suffixes: of the files, the preferred
    one first.  Upper and lower case are ignored where no slide has the exact name. Of several files of one slide the
    one with the most exact name is used.
    """
    exact, any_case = _index(slides, str), _index(slides, str.casefold)
    found: dict[str, tuple[tuple[int, int, str], Path]] = {}
    unmatched: dict[Path, str] = {}
    for path in sorted(files):
        base, suffix = _without_suffix(path, suffixes)
        rank, owners = _owners(base, exact, any_case)
        owners = _in_folder(owners, path, slides) if len(owners) > 1 else owners
        if not owners:
            unmatched[path] = "no slide has this name"
        elif len(owners) > 1:
            unmatched[path] = f"the name fits slides {', '.join(sorted(owners))}; name the file by slide_id"
        else:
            (slide_id,) = owners
            entry = (rank, suffixes.index(suffix), str(path)), path
            first, second = sorted([entry, found[slide_id]]) if slide_id in found else (entry, None)
            found[slide_id] = first
            if second is not None:
                unmatched[second[1]] = f"not used, because {first[1].name} belongs to slide {slide_id} too"
    return FileMatches({slide_id: path for slide_id, (_, path) in found.items()}, dict(sorted(unmatched.items())))


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files with one of these suffixes, in any case, in a folder and its subfolders; no hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(suffixes)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _without_suffix(path: Path, suffixes: tuple[str, ...]) -> tuple[str, str]:
    name = unicodedata.normalize("NFC", path.name)
    suffix = next(suffix for suffix in suffixes if name.lower().endswith(suffix))
    return name[: -len(suffix)], suffix


def _index(slides: Mapping[str, str | None], convert: Callable[[str], str]) -> dict[str, set[str]]:
    """Return name → ids of the slides that bear it: as id, as file name, as file name without suffix."""
    index: dict[str, set[str]] = defaultdict(set)
    for slide_id, path in slides.items():
        names = {slide_id}
        if path is not None:
            file = PurePath(unicodedata.normalize("NFC", path))
            names |= {file.name, file.stem, slide_id_of(file.stem)}
        for name in names:
            index[convert(name)].add(slide_id)
    return index


def _owners(base: str, exact: Mapping[str, set[str]], any_case: Mapping[str, set[str]]) -> tuple[int, frozenset[str]]:
    """Return how far a name had to be changed until it is that of a slide, and the ids of the slides that bear it."""
    for rank, name in enumerate(_candidates(base)):
        owners = exact.get(name) or any_case.get(name.casefold())
        if owners:
            return rank, frozenset(owners)
    return 0, frozenset()


def _candidates(base: str) -> Iterator[str]:
    """Yield the names of a slide that a file may be named after, the most exact first."""
    names = [base]
    for pattern in (IMAGE_OF_FILE, ADDED_WORD):
        if matched := pattern.fullmatch(names[-1]):
            names.append(matched["name"])
    for name in names:
        yield name
        yield slide_id_of(name)
        while PurePath(name).suffix.lower() in SLIDE_SUFFIXES:
            name = PurePath(name).stem
            yield name
            yield slide_id_of(name)


def _in_folder(owners: frozenset[str], path: Path, slides: Mapping[str, str | None]) -> frozenset[str]:
    """Return the slides that lie in a folder of the same name as the file, if there are any; else all."""
    folder = path.parent.name.casefold()
    near = {each for each in owners if PurePath(slides[each] or "").parent.name.casefold() == folder}
    return frozenset(near) or owners
