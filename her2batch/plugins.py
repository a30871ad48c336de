"""Names that other packages add: encoders and MIL methods, by entry point or by a call in the running program.

An installed package adds a row by an entry point. Its name is the name that users give; its target is the row:

    [project.entry-points."her2batch.encoders"]
    my-encoder = "my_package:MY_ENCODER"

A built-in name is found without reading any package metadata, so the command line stays quick.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from her2batch.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""What a name may be: it becomes a command-line value and part of file names."""

Row = TypeVar("Row")

_registered: dict[str, dict[str, Any]] = {}
"""Rows registered in this process: entry point group → name → row."""


@dataclass(frozen=True)
class Package:
    """The installed package that adds a row, and its version."""

    name: str
    version: str


class Registry(Generic[Row]):
    """Rows by name: built in, registered in this process, or added by an installed package. Built-in rows come first.

    noun: what a row is, for messages ("encoder").  group: the entry points' group.  kinds: classes of a valid row.
    builtin: the rows of her2batch.  reserved: further names that no row may have.  convert: makes a row of what
    packages and programs may give instead; it returns anything else as it is.
    """

    def __init__(
        self,
        noun: str,
        group: str,
        kinds: tuple[type, ...],
        builtin: Mapping[str, Row],
        reserved: Collection[str] = (),
        convert: Callable[[Any], Any] = lambda row: row,
    ) -> None:
        self._convert = convert
        self.noun, self.group, self._kinds = noun, group, kinds
        self._builtin, self._reserved = builtin, reserved
        self._registered: dict[str, Row] = _registered.setdefault(group, {})
        self._loaded: dict[str, Row] = {}
        self._points: dict[str, EntryPoint] | None = None

    def find(self, name: str) -> Row | None:
        """Return the row of a name, or None. Raises InputError when the package that adds it cannot be loaded."""
        for rows in (self._builtin, self._registered, self._loaded):
            if name in rows:
                return rows[name]
        point = self._entry_points().get(name)
        if point is None:
            return None
        self._loaded[name] = self._load(point)
        return self._loaded[name]

    def names(self) -> tuple[str, ...]:
        """Return every name, built-in ones first. No package is loaded. Raises InputError for a name given twice."""
        return tuple(dict.fromkeys([*self._builtin, *self._registered, *sorted(self._entry_points())]))

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._registered or name in self._entry_points()

    def package_of(self, name: str) -> Package | None:
        """Return the package that adds a name; None for a built-in row and for one registered in this process."""
        if name in self._builtin or name in self._registered:
            return None
        point = self._entry_points().get(name)
        return _package(point) if point is not None else None

    def is_builtin(self, name: str) -> bool:
        """Return whether a name is one of her2batch's own rows."""
        return name in self._builtin

    def register(self, name: str, row: Row) -> None:
        """Add a row for this process. Raises InputError for a name that is taken or not valid, and for another type.

        Registering a name a second time replaces its row, so that a notebook cell can be run again.
        """
        row = self._convert(row)
        self._check(name, row, f"the {self.noun} {name!r} cannot be registered", "register it under another name")
        if name in self._entry_points():
            package = _package(self._entry_points()[name])
            what = f"the {self.noun} {name!r} cannot be registered: package {package.name} adds one of this name"
            raise InputError(what, None, "register it under another name")
        self._registered[name] = row

    def unregister(self, name: str) -> None:
        """Remove a row registered in this process; a name that is not there is no error."""
        self._registered.pop(name, None)

    def _entry_points(self) -> dict[str, EntryPoint]:
        """Return the group's entry points by name. They are read once, when the first name is not built in."""
        from importlib.metadata import entry_points

        if self._points is None:
            found: dict[str, EntryPoint] = {}
            for point in entry_points(group=self.group):
                other = found.get(point.name)
                if other is not None and _package(other) != _package(point):
                    names = f"{_package(other).name} and {_package(point).name}"
                    what = f"the packages {names} both add the {self.noun} {point.name!r}"
                    raise InputError(what, None, "uninstall one of them")
                self._check_name(point)
                found[point.name] = point
            self._points = found
        return self._points

    def _check_name(self, point: EntryPoint) -> None:
        if reason := self._refusal(point.name):
            package = _package(point)
            what = f"package {package.name} {package.version} adds the {self.noun} {point.name!r}: {reason}"
            raise InputError(what, None, f"uninstall it with `pip uninstall {package.name}`, or rename its entry point")

    def _load(self, point: EntryPoint) -> Row:
        """Return an entry point's row. Raises InputError naming the package."""
        package = _package(point)
        what = f"the {self.noun} {point.name!r} of package {package.name} {package.version} cannot be loaded"
        remedy = f"run `pip install --upgrade {package.name}`, or `pip uninstall {package.name}`"
        try:
            row: Row = self._convert(point.load())
        except Exception as error:  # the code of another package may raise anything
            raise InputError(f"{what} ({type(error).__name__}: {error})", None, remedy) from error
        self._check(point.name, row, what, remedy)
        return row

    def _check(self, name: str, row: object, what: str, remedy: str) -> None:
        if reason := self._refusal(name):
            raise InputError(f"{what}: {reason}", None, remedy)
        if not isinstance(row, self._kinds):
            kinds = " or ".join(kind.__name__ for kind in self._kinds)
            raise InputError(f"{what}: it is a {type(row).__name__}, not a {kinds}", None, remedy)

    def _refusal(self, name: str) -> str | None:
        """Return why a name cannot be added; None for a good one."""
        if name in self._builtin or name in self._reserved:
            return "her2batch itself uses this name"
        if NAME.fullmatch(name) is None:
            return "a name has lower-case letters, digits, '-' and '_' only, at most 64"
        return None


def registered_rows() -> dict[str, dict[str, Any]]:
    """Return all rows registered in this process, to be sent to another one (see `restore_rows`)."""
    return {group: dict(rows) for group, rows in _registered.items() if rows}


def restore_rows(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the rows that `registered_rows` returned in the process that started this one."""
    for group, of_group in rows.items():
        _registered.setdefault(group, {}).update(of_group)


def resolve(target: Any) -> Any:
    """Return what a text "package.module:name" names; anything else is returned as it is.

    A row that names its code as text costs no import until the code is used. Raises ImportError, AttributeError.
    """
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _package(point: EntryPoint) -> Package:
    if point.dist is None:
        return Package("unknown", "unknown")
    return Package(point.dist.name, point.dist.version)
