"""A matrix of readers' disagreement, which smooths labels: how often readers call a slide of one class another.

Label smoothing: Szegedy et al., CVPR 2016; with confusions of people in place of equal shares: Peterson et al., ICCV
2019.  The file is a CSV.  Its first row names the classes that were read, its first column the reference classes;
each further cell is a count or a share.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from her2batch.errors import InputError
from her2batch.settings import Matrix, Training
from her2batch.training.readers.targets import needs_readers

REMEDY: Final = "see docs/training.md for the form of the file"


def with_smoothing(training: Training) -> Training:
    """Return settings that contain the matrix of --disagreement, so that a run depends on its content, not its path.

    Every task has the matrix in the order of its own classes.  Raises InputError where the file cannot be read, or a
    task of the run has other classes, and for two options that contradict each other.
    """
    if training.readers is not None and training.disagreement is not None:
        what = "--readers soft and --disagreement both replace the labels"
        raise InputError(what, None, "omit one of them")
    numbers = [name for name in training.tasks if training.task(name).is_number]
    if needs_readers(training) and numbers:
        what = f"readers' labels are of classes, but {numbers[0]} is a number"
        raise InputError(what, None, "omit --readers and --disagreement, or the task")
    if training.disagreement is None or needs_readers(training):
        return training
    path, matrices = Path(training.disagreement), {}
    for name in training.tasks:
        task = training.task(name)
        if task.is_number:
            what = f"smooths labels of classes, but {name} is a number"
            raise InputError(what, path, "omit --disagreement, or the task")
        matrices[name] = read_disagreement(path, task.classes)
    return training.model_copy(update={"smoothing": matrices})


def read_disagreement(path: Path, classes: Sequence[str]) -> Matrix:
    """Read a matrix for a task with these classes, in any order; rows are scaled to the sum 1.

    Raises InputError with the line and the remedy: other classes, a cell that is no share or count, an empty row.
    """
    try:
        lines = list(csv.reader(path.read_text("utf-8-sig").splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read as a CSV ({type(error).__name__})", path, REMEDY) from error
    rows = [(number, [cell.strip() for cell in cells]) for number, cells in enumerate(lines, start=1) if any(cells)]
    if not rows:
        raise InputError("is empty", path, REMEDY)
    columns = _check_names(path, "columns", rows[0][1][1:], classes)
    _check_names(path, "rows", [cells[0] for _, cells in rows[1:]], classes)
    found = {cells[0]: _shares(path, number, cells[1:], columns) for number, cells in rows[1:]}
    return tuple(tuple(found[name][other] for other in classes) for name in classes)


def _check_names(path: Path, what: str, names: list[str], classes: Sequence[str]) -> list[str]:
    """Return the names of rows or columns. Raises InputError unless they are the classes, each once."""
    if sorted(names) != sorted(classes):
        words = f"its {what} are {', '.join(names) or 'none'}; the classes of the task are {', '.join(classes)}"
        raise InputError(words, path, "give one row and one column for each class")
    return names


def _shares(path: Path, line: int, cells: list[str], columns: list[str]) -> dict[str, float]:
    """Return read class → share of a row. Raises InputError."""
    if len(cells) != len(columns):
        raise InputError(f"line {line} has {len(cells)} values for {len(columns)} classes", path, REMEDY)
    values = {}
    for name, cell in zip(columns, cells, strict=True):
        try:
            values[name] = float(cell)
        except ValueError:
            values[name] = math.nan
        if not 0 <= values[name] < math.inf:
            raise InputError(f"line {line}, column {name}: {cell!r} is no share or count", path, REMEDY)
    total = sum(values.values())
    if total == 0:
        raise InputError(f"line {line} has no reading at all", path, "state how the class is read")
    return {name: value / total for name, value in values.items()}
