"""Tasks of the user's own, from a TOML file: one table [tasks.NAME] for each.

    [tasks.ki67-3way]
    column = "ki67"
    classes = ["low", "intermediate", "high"]
    thresholds = ["> 5", ">= 30"]
    stains = ["ki67"]

docs/training.md describes the keys. A file is checked as a whole before anything uses it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from her2batch.errors import InputError
from her2batch.plugins import NAME
from her2batch.settings import Training
from her2batch.tasks import BUILTIN_TASKS, STAINS, Task

REMEDY: Final = "correct it; docs/training.md describes a file of tasks"

KEYS: Final = tuple(name for name in Task.model_fields if name != "name")
"""Keys of a table of the file."""

COLUMN: Final = re.compile(r"[^\s].*")


def read_tasks(path: str | Path) -> dict[str, Task]:
    """Read the tasks of a TOML file, by name, in the order of the file.

    Raises InputError with the file, the table and the key: unreadable, no TOML, no task, the name of a built-in task,
    an unknown or missing key, or parts that do not fit together.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", path, "check the path of the file of tasks") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"is not valid TOML ({error})", path, REMEDY) from error
    if others := sorted(data.keys() - {"tasks"}):
        raise InputError(f"[{others[0]}]: a file of tasks has tables [tasks.NAME] only", path, REMEDY)
    tables = data.get("tasks")
    if not isinstance(tables, dict) or not tables:
        raise InputError("has no task", path, "add a table [tasks.NAME]; docs/training.md has an example")
    return {name: _task(name, table, path) for name, table in tables.items()}


def training_with_tasks(training: Training, path: str | Path | None, named: bool | None = None) -> Training:
    """Return the settings of a training run with the tasks of a file; None leaves them as they are.

    named: whether the user names tasks; None: as the settings say. Otherwise all of the file are
    trained.  Raises InputError as `read_tasks` does.
    """
    if path is None:
        return training
    tasks = read_tasks(path)
    if named is None:
        named = "tasks" in training.model_fields_set
    names = training.tasks if named else tuple(tasks)
    own = tuple(task for name, task in tasks.items() if name in names and not task.is_builtin)
    return training.model_copy(update={"tasks": names, "definitions": own or None})


def _task(name: str, table: Any, path: Path) -> Task:
    """Return the task of one table. Raises InputError."""
    where = f"[tasks.{name}]"
    if NAME.fullmatch(name) is None:
        what = f"{where}: a name has lower-case letters, digits, '-' and '_' only, at most 64"
        raise InputError(what, path, "rename the table")
    if not isinstance(table, dict):
        raise InputError(f"{where}: is no table", path, f"write a line {where}, and its keys below it")
    if unknown := [key for key in table if key not in KEYS]:
        raise InputError(f"{where} {unknown[0]}: there is no such key", path, f"use {', '.join(KEYS)}")
    if "stains" not in table:
        what = f"{where} stains: is missing; the task must not be asked of slides of another marker"
        raise InputError(
            what, path, f'name the stains of its slides, for example stains = ["ki67"]; known: {", ".join(STAINS)}'
        )
    try:
        task = Task.model_validate({"name": name, **table})
    except ValidationError as error:
        raise InputError(f"{where} {_reason(error, table)}", path, REMEDY) from error
    own = BUILTIN_TASKS.get(name)
    if own is not None and (task.classes, task.stains) != (own.classes, own.stains):
        what = f"{where}: her2batch itself has a task of this name, with the classes {', '.join(own.classes)}"
        raise InputError(what, path, "rename the table")
    return own or task


def _reason(error: ValidationError, table: Mapping[str, Any]) -> str:
    """Return the first fault as text: the key, its value, and what is wrong with it."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    key = str(first["loc"][0])
    if first["type"] == "literal_error":
        known = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        message = f"{first['input']!r} is unknown; use {known}"
    elif first["type"] != "value_error":
        message = f"{message}, not {table.get(key)!r}"
    return f"{key}: {message}"
