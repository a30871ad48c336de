"""Slides whose DICOM instances lie in several folders or series. OpenSlide opens one series of one folder at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from her2batch.slides.dicom.instances import UNUSED_FLAVORS, read_instance
from her2batch.slides.openslide import OpenSlideSlide
from her2batch.slides.slide import Box, Level, MissingArea, Slide


def series_files(members: Sequence[Path]) -> list[Path]:
    """Return one file of each series and folder among the DICOM files of a slide; label images are left out."""
    first: dict[tuple[str, Path], Path] = {}
    for path in members:
        instance = read_instance(path)
        if instance is not None and instance.flavor not in UNUSED_FLAVORS:
            first.setdefault((instance.series, path.parent), path)
    return list(first.values())


class JoinedDicomSlide(Slide):
    """A slide whose levels are read from several series, each through OpenSlide. Of equal levels the first is used."""

    def __init__(self, path: Path, files: Sequence[Path], members: tuple[Path, ...]) -> None:
        """Open a slide.  files: one of each series.  members: all files.  Raises SlideError unreadable or truncated."""
        with ExitStack() as opened:
            self._parts = [opened.enter_context(OpenSlideSlide(file)) for file in files]
            opened.pop_all()
        levels: dict[tuple[int, int], tuple[Level, OpenSlideSlide, int]] = {}
        for part in self._parts:
            for number, level in enumerate(part.info.levels):
                levels.setdefault((level.width, level.height), (level, part, number))
        self._levels = sorted(levels.values(), key=lambda entry: -entry[0].width)
        info = self._levels[0][1].info
        notes = tuple(dict.fromkeys(note for part in self._parts for note in part.info.notes))
        levels_of_all = tuple(entry[0] for entry in self._levels)
        self.info = replace(info, path=path, levels=levels_of_all, members=members, notes=notes)

    def close(self) -> None:
        """Close all files."""
        for part in self._parts:
            part.close()

    def validate(self, holes: tuple[tuple[int, int], ...] = ()) -> None:
        """Check every series as OpenSlideSlide does."""
        for part in self._parts:
            part.validate(holes)

    def missing_area(self) -> MissingArea | None:
        """Return where the finest level is transparent."""
        return self._levels[0][1].missing_area()

    def _pixels(self, box: Box, level: int) -> NDArray[np.uint8]:
        _, part, number = self._levels[level]
        return part.read(box, number)
