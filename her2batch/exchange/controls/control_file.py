"""The file of `--controls`: where the control tissue of a laboratory's slides is, as TOML.

    [[place]]                        # a strip along a side, or a box
    side = "left"                    # of the image: where the label is
    mm = 12                          # depth of the strip
    expected = ["0", "2+", "3+"]     # of its pieces, from the top

    [annotations]                    # QuPath regions, SLIDE.geojson
    folder = "controls"              # relative to this file; `Control: 3+` names the expected class too

    [[slide]]                        # slides that are controls as a whole
    name = "CTRL-3-*"
    expected = "3+"

The plan contains everything but the folder, so that a second ingest needs the file only for the annotations.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from shapely.geometry.base import BaseGeometry

from her2batch.control_settings import ControlAnnotations, Controls
from her2batch.errors import InputError
from her2batch.exchange.annotations import SCORE_PATTERN, read_areas
from her2batch.exchange.regions import check_inside, normalized_class
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort
from her2batch.tasks import IHC_SCORES

AUTO: Final = "auto"
"""Value of `--controls` that needs no file."""

TABLES: Final = {"place": "places", "slide": "slides", "annotations": "annotations"}
"""Table of the file → field of Controls."""

REMEDY: Final = "correct it; docs/controls.md has an example"


class ControlFile(NamedTuple):
    """What a file of `--controls` states.  folder: of the annotations, None without."""

    controls: Controls
    folder: Path | None = None


class ControlRegion(NamedTuple):
    """An annotated region.  role: `control` or `excluded`.  expected: class of the control.  shape: level-0 px."""

    role: str
    expected: str | None
    shape: BaseGeometry


def choose_controls(wanted: Plan, cohort: Cohort, given: str | None, needed: bool = True) -> Plan:
    """Return the plan with the controls of the option `--controls`.

    given: `auto` or a file; None: the controls of the cohort.  needed: slides will be processed, for which a plan with
    annotated controls needs the file.  Raises InputError.
    """
    if given is None:
        own = cohort.plan().controls if cohort.settings.is_file() else None
        own = wanted.controls if "controls" in wanted.model_fields_set else own
        if needed and own is not None and own.annotations is not None:
            what = "the plan takes controls from annotations"
            raise InputError(what, cohort.root, "give --controls FILE again, which names their folder")
        return wanted
    found = ControlFile(Controls(auto=True)) if given == AUTO else read_control_file(Path(given))
    return wanted.model_copy(update={"controls": found.controls})


def control_folder(given: str | None) -> Path | None:
    """Return the folder of the annotations that the option `--controls` names; None without. Raises InputError."""
    return None if given in (None, AUTO) else read_control_file(Path(str(given))).folder


def read_control_file(path: Path) -> ControlFile:
    """Read a file of `--controls`. Raises InputError with the key, or the line, and what is wrong with it."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        remedy = "give a TOML file, or auto"
        raise InputError(f"the file of controls cannot be read ({error.strerror})", path, remedy) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"is not valid TOML ({error})", path, REMEDY) from error
    if unknown := sorted(data.keys() - TABLES.keys()):
        known = ", ".join(TABLES)
        raise InputError(f"{unknown[0]}: there is no such table", path, f"use {known}; docs/controls.md has an example")
    folder = _annotation_folder(path, data)
    try:
        controls = Controls.model_validate(
            {TABLES[name]: _with_tuples(path, name, value) for name, value in data.items()}
        )
    except ValidationError as error:
        first = error.errors()[0]
        names = {field: table for table, field in TABLES.items()}
        where = _place_words([names.get(str(part), part) for part in first["loc"]])
        raise InputError(f"{where}: {first['msg']}", path, REMEDY) from error
    _check_controls(path, controls)
    return ControlFile(controls, folder)


def _annotation_folder(path: Path, data: dict[str, Any]) -> Path | None:
    """Take the folder out of the table of annotations. Raises InputError if it is not there."""
    table = data.get("annotations")
    if not isinstance(table, dict):
        return None
    text = table.pop("folder", None)
    if not isinstance(text, str) or not text:
        raise InputError("annotations.folder is missing", path, "name the folder with SLIDE.geojson files")
    folder = path.absolute().parent / text
    if not folder.is_dir():
        raise InputError(f"annotations.folder: there is no folder {folder}", path, "correct the path")
    return folder


def _with_tuples(path: Path, name: str, value: Any) -> Any:
    """Return a table with lists where one text was given. Raises InputError for a table of the wrong kind."""
    is_list = name != "annotations"
    if not isinstance(value, list if is_list else dict):
        brackets = f"[[{name}]]" if is_list else f"[{name}]"
        raise InputError(f"{name}: is not a table", path, f"write it as {brackets}; docs/controls.md has an example")
    listed = ("expected", "control", "exclude")

    def convert(table: Any) -> Any:
        if not isinstance(table, dict):
            return table
        return {key: [item] if key in listed and isinstance(item, str) else item for key, item in table.items()}

    return [convert(table) for table in value] if is_list else convert(value)


def _place_words(parts: list[Any]) -> str:
    """Return the place of an error as text: `place 2, mm`."""
    words = [f"{parts[0]} {parts[1] + 1}", *parts[2:]] if len(parts) > 1 and isinstance(parts[1], int) else parts
    return ", ".join(str(part) for part in words if not isinstance(part, int))


def _check_controls(path: Path, controls: Controls) -> None:
    """Check what the types do not say. Raises InputError."""
    if controls == Controls():
        raise InputError("the file names no controls", path, "add [[place]], [annotations] or [[slide]]")
    for number, place in enumerate(controls.places, start=1):
        if (place.mm is None) == (place.box is None):
            raise InputError(f"place {number}: give either mm or box", path, REMEDY)
        box = place.box or (0.0, 1.0, 0.0, 1.0)
        if not all(map(math.isfinite, box)) or box[0] < 0 or box[0] >= box[1] or box[2] < 0 or box[2] >= box[3]:
            what = f"place {number}, box: is not [nearest, farthest, first, last] in mm"
            raise InputError(what, path, "distances from the side grow, and so do positions along it")
    named = {f"place {number}": place.expected for number, place in enumerate(controls.places, start=1)}
    named |= {f"slide {number}": slide.expected for number, slide in enumerate(controls.slides, start=1)}
    named |= {"annotations": controls.annotations.expected} if controls.annotations is not None else {}
    for name, classes in named.items():
        if unknown := [one for one in classes if one not in IHC_SCORES]:
            what = f"{name}, expected: {unknown[0]!r} is no class"
            raise InputError(what, path, f"use {', '.join(IHC_SCORES)}")


def read_control_regions(path: Path, classes: ControlAnnotations, size: tuple[int, int]) -> tuple[ControlRegion, ...]:
    """Read the annotated controls of one slide; a region of both kinds is excluded. size: of the slide, level-0 px.

    Raises InputError with the file and the feature for what cannot be read, and for a region outside the slide.
    """
    control, excluded = ({normalized_class(name) for name in names} for names in (classes.control, classes.exclude))
    regions = []
    for area in read_areas(path):
        names = {normalized_class(name) for name in area.classes}
        role = "excluded" if names & excluded else "control" if names & control else None
        if role is None:
            continue
        check_inside(path, area, size)
        scores = [match[1] for name in area.classes if (match := SCORE_PATTERN.match(name.strip())) is not None]
        own = ("0" if scores[0] == "0" else f"{scores[0]}+") if scores else next(iter(classes.expected), None)
        regions.append(ControlRegion(role, own if role == "control" else None, area.shape))
    return tuple(regions)
