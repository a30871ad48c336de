"""Dependencies: pinned with their hashes, without known vulnerabilities, under allowed licences."""

import re
from importlib import metadata

import pytest
from packaging.version import Version

from tests.licences import (
    EXCEPTIONS,
    LOCK,
    PAGE,
    ROOT,
    declared_requirements,
    is_allowed,
    licence_of,
    locked_versions,
    required_packages,
)

KNOWN_HOLES = {
    "ray": ("2.56", "CVE-2025-62593 (job API from a browser), CVE-2026-41486 and CVE-2026-57516 (pickles in data)"),
    "torch": ("2.10", "CVE-2025-32434 and CVE-2026-24747: torch.load(weights_only=True) runs code"),
    "openslide-bin": ("4.0.1", "CVE-2026-48977 (memory write by a crafted BIF), CVE-2026-54604 (uninitialised pixels)"),
}
"""Package → first version without known vulnerabilities. Source: field_notes §5.4."""


@pytest.mark.parametrize("name", KNOWN_HOLES)
def test_versions_with_known_vulnerabilities_are_excluded(name: str) -> None:
    first, holes = KNOWN_HOLES[name]
    asked = [one for some in declared_requirements().values() for one in some if one.name == name]
    assert asked
    assert all(Version(spec.version) >= Version(first) for one in asked for spec in one.specifier), holes
    assert all(spec.operator == ">=" for one in asked for spec in one.specifier)
    assert Version(locked_versions()[name]) >= Version(first)
    assert Version(metadata.version(name)) >= Version(first)


def test_container_installs_pinned_versions_with_hashes() -> None:
    text, pins = LOCK.read_text(), locked_versions()
    assert len(pins) > 100
    entries = re.split(r"\n(?=[\w.-]+(?:\[[\w,-]+\])?==)", text.strip())
    assert len(entries) == len(pins)
    assert all("--hash=sha256:" in one for one in entries)
    install = [line for line in (ROOT / "cluster" / "Containerfile").read_text().splitlines() if "pip install" in line]
    assert any("--require-hashes" in line and "requirements.lock" in line for line in install)
    assert all("--no-deps" in line for line in install)


def test_lock_file_satisfies_pyproject() -> None:
    pins, groups = locked_versions(), declared_requirements()
    for one in [*groups[""], *groups["cluster"], *groups["s3"]]:
        name = one.name.lower()
        assert name in pins, f"{name} is missing: docs/dependencies.md says how the lock is made"
        assert one.specifier.contains(pins[name]), f"{one}, locked at {pins[name]}"


def test_every_package_has_an_allowed_licence() -> None:
    """Exceptions are listed with their reason."""
    found = {name: licence_of(name) for name in sorted(required_packages(declared_requirements()))}
    assert len(found) > 100
    assert {name: said for name, said in found.items() if not is_allowed(name, said)} == {}


def test_licence_that_is_not_allowed_is_reported() -> None:
    assert is_allowed("x", "LGPL-2.1-only AND (BSD-3-Clause OR GPL-2.0-only) AND MIT")
    assert is_allowed("nvidia-cublas", "LicenseRef-NVIDIA-Proprietary")
    for said in ("GPL-3.0-only", "MIT AND AGPL-3.0-only", "unknown", "LicenseRef-NVIDIA-Proprietary"):
        assert not is_allowed("x", said)


def test_page_lists_every_package_of_the_container() -> None:
    page = PAGE.read_text()
    rows = re.findall(
        r"^\| (.+?) \| .+? \|$", page[page.index("| in the container |") :].split("\n\n")[0], re.MULTILINE
    )
    listed = {name for row in rows[2:] for name in row.split(", ")}
    assert listed == set(locked_versions())
    for reason in EXCEPTIONS.values():
        assert reason in page
