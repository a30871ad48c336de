"""The folder of a training run: its paths, settings and tables. No other module spells a path of it.

RUN/run.toml  labels.parquet  excluded.parquet  folds.parquet  predictions.parquet  metrics.parquet
RUN/bundle/  report.html
RUN/units/UNIT/        one fold of one method: predictions.parquet comes last and is its commit
RUN/untuned/UNIT/      of a search: the same fold with the settings without the search
RUN/cache/             inputs that all units share, memory-mapped; may be deleted at any time
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import tomli_w

from her2batch.errors import InputError, StoreError
from her2batch.files.atomic import atomic_write
from her2batch.files.locks import lock_folder
from her2batch.files.new_folder import remove_if_refused
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store.tables.runs import run_schema
from her2batch.tasks import BUILTIN_TASKS, Task

FORMAT = 1
"""Version of the layout of a run folder."""

FINAL_FOLD = -1
"""Fold number of the model for the bundle, which is trained on all slides and tests none."""


@dataclass(frozen=True, order=True)
class Unit:
    """One fold of a method, on one input, for one task: what is trained independently of the others."""

    task: str
    method: str
    input: str
    fold: int

    @property
    def name(self) -> str:
        """Name of the unit's folder."""
        fold = "final" if self.fold == FINAL_FOLD else f"{self.fold:02d}"
        return f"{self.task}.{encoder_folder(self.method)}.{encoder_folder(self.input)}.{fold}"


def encoder_folder(name: str) -> str:
    """The name of an encoder or input as a folder name: `timm:resnet18.a1` has a colon, which some disks refuse."""
    return name.replace(":", "-").replace("/", "-")


TASKS_KEY: Final = b"her2batch.tasks"
"""Metadata of a table of predictions or metrics: the definitions of its tasks, as JSON, where they are not built in."""


def with_tasks(table: pa.Table, tasks: Iterable[Task]) -> pa.Table:
    """Return a table whose metadata define its tasks; unchanged where all of them are built in."""
    own = [task.model_dump(mode="json", exclude_none=True) for task in tasks if not task.is_builtin]
    return table.replace_schema_metadata({TASKS_KEY: json.dumps(own, sort_keys=True)}) if own else table


def tasks_of_table(table: pa.Table) -> dict[str, Task]:
    """Return the built-in tasks and those that a table's metadata define, by name."""
    own = json.loads((table.schema.metadata or {}).get(TASKS_KEY, b"[]"))
    return {**BUILTIN_TASKS, **{row["name"]: Task.model_validate(row) for row in own}}


def _conform(table: pa.Table, name: str) -> pa.Table:
    """Return a table of a run with the types of its schema, which keeps the definitions of its tasks."""
    schema = run_schema(name, numbers=name in ("metrics", "untuned_metrics") and "c_index" in table.column_names)
    return table.cast(schema.with_metadata(table.schema.metadata))


@dataclass(frozen=True)
class TrainingRun:
    """The folder of a training run. unit_folder: name of the folder that has the units."""

    root: Path
    unit_folder: str = "units"

    @property
    def settings(self) -> Path:
        """The settings that decide the results."""
        return self.root / "run.toml"

    @property
    def bundle(self) -> Path:
        """Folder of the trained bundle."""
        return self.root / "bundle"

    @property
    def report(self) -> Path:
        """The report of the run."""
        return self.root / "report.html"

    def table(self, name: str) -> Path:
        """Path of a table: `labels`, `excluded`, `folds`, `predictions`, `metrics`, …"""
        return self.root / f"{name}.parquet"

    def cache(self, name: str) -> Path:
        """Path of an input that all units share."""
        return self.root / "cache" / name

    def unit(self, unit: Unit) -> Path:
        """Folder of a unit."""
        return self.root / self.unit_folder / unit.name

    def is_done(self, unit: Unit) -> bool:
        """Whether a unit is trained and its predictions are written."""
        return (self.unit(unit) / "predictions.parquet").is_file()

    # -- opening -----------------------------------------------------------------------------------------------

    def open_or_create(self, settings: Mapping[str, Any]) -> None:
        """Create the folder, or resume its run if it has these settings. A run that has trained nothing is replaced.

        Raises InputError with the settings that differ; StoreError if the folder has other files or can't be written.
        """
        text = tomli_w.dumps({"format": FORMAT, **settings})
        if self.settings.exists():
            changed = _changes(self.read_settings(), tomllib.loads(text))
            if not changed:
                return
            if (self.root / "units").exists():
                remedy = "choose another --out, or use the options of that run"
                raise InputError(f"contains a run with other settings ({', '.join(changed)})", self.root, remedy)
            self._clear()
        elif self.root.exists() and any(path.name != ".lock" for path in self.root.iterdir()):
            raise StoreError("the folder is not empty and is not a run", self.root, "choose another --out")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.settings) as part:
                part.write_text(text, "utf-8")
        except OSError as error:
            raise StoreError(
                f"can't be written to ({error.strerror})", self.root, "check free space and access rights"
            ) from error

    def _clear(self) -> None:
        """Delete the tables of a run that has trained nothing, for instance because its labels were refused."""
        for name in ("labels", "readings", "excluded", "folds"):
            self.table(name).unlink(missing_ok=True)
        self.drop_cache()

    def read_settings(self) -> dict[str, Any]:
        """Read run.toml. Raises InputError."""
        try:
            settings = tomllib.loads(self.settings.read_text("utf-8"))
        except OSError as error:
            raise InputError(
                "there is no training run here", self.root, "start one: her2batch train COHORT --out RUN"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(
                f"is not valid TOML ({error})", self.settings, "restore it from a backup, or train into another --out"
            ) from error
        if settings.get("format") != FORMAT:
            what = f"has format {settings.get('format')}; this her2batch reads format {FORMAT}"
            raise InputError(what, self.settings, "train into another --out")
        return settings

    def removed_if_refused(self) -> AbstractContextManager[None]:
        """Context of a command on this run: a new folder is removed if the command is refused before it has trained."""

        def has_trained() -> bool:
            return any((self.root / name).exists() for name in ("units", "tune"))

        return remove_if_refused(self.root, has_trained, locked=False)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for one process. Raises StoreError with the process that holds the lock."""
        self.root.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.root):
            yield

    # -- tables ------------------------------------------------------------------------------------------------

    def write(self, name: str, table: pa.Table) -> None:
        """Replace a table of the run."""
        with atomic_write(self.table(name)) as part:
            write_parquet(_conform(table, name), part)

    def read(self, name: str) -> pa.Table:
        """Read a table of the run. Raises InputError if it is missing or damaged."""
        try:
            return read_parquet(self.table(name))
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"can't be read ({type(error).__name__})", self.table(name), "train again") from error

    def read_or_empty(self, name: str) -> pa.Table:
        """Read a table that not every run has: without rows where it is missing. Raises InputError if it is damaged."""
        return self.read(name) if self.table(name).is_file() else run_schema(name).empty_table()

    def commit(self, unit: Unit, predictions: pa.Table) -> None:
        """Write the predictions of a unit, which commits it, and delete its checkpoint."""
        folder = self.unit(unit)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "predictions.parquet") as part:
            write_parquet(_conform(predictions, "predictions"), part)
        self.checkpoint(unit).unlink(missing_ok=True)

    def checkpoint(self, unit: Unit) -> Path:
        """Path of a unit's checkpoint."""
        return self.unit(unit) / "checkpoint.safetensors"

    def write_unit_table(self, unit: Unit, name: str, table: pa.Table) -> None:
        """Write a table of a unit beside its predictions, such as `attention` or `counts`."""
        folder = self.unit(unit)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"{name}.parquet") as part:
            write_parquet(table.cast(run_schema(name)), part)

    def read_unit_table(self, unit: Unit, name: str) -> pa.Table:
        """Read a table of a unit. Raises InputError if it is missing or damaged."""
        path = self.unit(unit) / f"{name}.parquet"
        try:
            return read_parquet(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"can't be read ({type(error).__name__})", path, f"delete the folder {path.parent}, then resume"
            ) from error

    def write_notes(self, name: str, notes: Sequence[str]) -> None:
        """Write what the user should know about an input, one line each, such as files that were not used."""
        with atomic_write(self.root / f"{name}.notes.txt") as part:
            part.write_text("".join(f"{note}\n" for note in notes), encoding="utf-8")

    def read_notes(self, name: str) -> list[str]:
        """Return the notes on an input; empty where there are none."""
        path = self.root / f"{name}.notes.txt"
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    def drop_cache(self) -> None:
        """Delete the inputs that all units share; they can be computed again."""
        shutil.rmtree(self.root / "cache", ignore_errors=True)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Names of the settings that differ."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += _changes(a, b, f"{where}{key}.")
        elif a != b:
            changed.append(f"{where}{key}")
    return changed
