"""A training run on disk: the only module that spells a path of it.

RUN/run.toml  labels.parquet  excluded.parquet  folds.parquet  predictions.parquet  metrics.parquet
RUN/bundle/  report.html
RUN/units/UNIT/        one fold of one method: predictions.parquet comes last and is its commit
RUN/cache/             what all units read, memory-mapped; may be removed at any time
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import tomli_w

from her2batch.errors import InputError, StoreError
from her2batch.files.atomic import atomic_write
from her2batch.files.locks import lock_folder
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store.schemas import run_schema

FORMAT = 1
"""Version of a run's layout."""

FINAL_FOLD = -1
"""Fold of the model that goes into the bundle: it tests nothing."""


@dataclass(frozen=True, order=True)
class Unit:
    """One fold of one method on one input for one task: what is trained by itself."""

    task: str
    method: str
    input: str
    fold: int

    @property
    def name(self) -> str:
        """As a folder name. An encoder's name may hold what shares refuse."""
        fold = "final" if self.fold == FINAL_FOLD else f"{self.fold:02d}"
        return f"{self.task}.{self.method}.{encoder_folder(self.input)}.{fold}"


def encoder_folder(name: str) -> str:
    """An input's name as a file name: 'timm:resnet18.a1' has a colon."""
    return name.replace(":", "-").replace("/", "-")


@dataclass(frozen=True)
class TrainingRun:
    """A run's folder."""

    root: Path

    @property
    def settings(self) -> Path:
        """What decides the run's figures."""
        return self.root / "run.toml"

    @property
    def bundle(self) -> Path:
        """What scores the next slide."""
        return self.root / "bundle"

    @property
    def report(self) -> Path:
        """What was found, for people."""
        return self.root / "report.html"

    def table(self, name: str) -> Path:
        """'labels', 'excluded', 'folds', 'predictions', 'metrics', …"""
        return self.root / f"{name}.parquet"

    def cache(self, name: str) -> Path:
        """A file or folder that all units read."""
        return self.root / "cache" / name

    def unit(self, unit: Unit) -> Path:
        """A unit's folder."""
        return self.root / "units" / unit.name

    def is_done(self, unit: Unit) -> bool:
        """Whether a unit has ended."""
        return (self.unit(unit) / "predictions.parquet").is_file()

    # -- opening -----------------------------------------------------------------------------------------------

    def open_or_create(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or go on with the run that it holds; one that trained nothing yet gives way.

        Raises InputError when it holds a run with other settings, naming them; StoreError when it can't be written.
        """
        text = tomli_w.dumps({"format": FORMAT, **settings})
        if self.settings.exists():
            changed = _changes(self.read_settings(), tomllib.loads(text))
            if not changed:
                return
            if (self.root / "units").exists():
                remedy = "choose another --out, or leave the options as they were"
                raise InputError(f"holds a run with other settings ({', '.join(changed)})", self.root, remedy)
            self._clear()
        elif self.root.exists() and any(one.name != ".lock" for one in self.root.iterdir()):
            raise StoreError("the folder is not empty and holds no run", self.root, "choose another --out")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.settings) as part:
                part.write_text(text)
        except OSError as error:
            raise StoreError(f"can't be written to ({error.strerror})", self.root, "check space and rights") from error

    def _clear(self) -> None:
        """Away with what a run left that trained nothing: it may have stopped on what it was given."""
        for name in ("labels", "excluded", "folds"):
            self.table(name).unlink(missing_ok=True)
        self.drop_cache()

    def read_settings(self) -> dict[str, Any]:
        """What run.toml says. Raises InputError."""
        try:
            found = tomllib.loads(self.settings.read_text())
        except OSError as error:
            raise InputError(
                "there is no run here", self.root, "start one with: her2batch train COHORT --out RUN"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(
                f"is no TOML ({error})", self.settings, "restore it, or train into another --out"
            ) from error
        if found.get("format") != FORMAT:
            raise InputError(f"has format {found.get('format')}, this her2batch reads {FORMAT}", self.settings)
        return found

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for one driver. Raises StoreError naming the holder."""
        self.root.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.root):
            yield

    # -- tables ------------------------------------------------------------------------------------------------

    def write(self, name: str, table: pa.Table) -> None:
        """Replace one of the run's tables."""
        with atomic_write(self.table(name)) as part:
            write_parquet(table.cast(run_schema(name)), part)

    def read(self, name: str) -> pa.Table:
        """One of the run's tables. Raises InputError when it is missing or damaged."""
        try:
            return read_parquet(self.table(name))
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"can't be read ({type(error).__name__})", self.table(name), "train again") from error

    def commit(self, unit: Unit, predictions: pa.Table) -> None:
        """A unit has ended: its predictions, then away with its checkpoint."""
        folder = self.unit(unit)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "predictions.parquet") as part:
            write_parquet(predictions.cast(run_schema("predictions")), part)
        self.checkpoint(unit).unlink(missing_ok=True)

    def checkpoint(self, unit: Unit) -> Path:
        """Where a unit keeps how far it is."""
        return self.unit(unit) / "checkpoint.safetensors"

    def write_unit_table(self, unit: Unit, name: str, table: pa.Table) -> None:
        """A table of a unit beside its predictions: 'attention', 'counts', 'history'."""
        folder = self.unit(unit)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"{name}.parquet") as part:
            write_parquet(table.cast(run_schema(name)), part)

    def read_unit_table(self, unit: Unit, name: str) -> pa.Table:
        """A unit's table. Raises InputError."""
        path = self.unit(unit) / f"{name}.parquet"
        try:
            return read_parquet(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"can't be read ({type(error).__name__})", path, f"remove {path.parent}, then resume"
            ) from error

    def drop_cache(self) -> None:
        """Remove what can be made again."""
        shutil.rmtree(self.root / "cache", ignore_errors=True)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Names of the settings that differ."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _changes(a, b, f"{where}{key}.")
        elif a != b:
            found.append(f"{where}{key}")
    return found
