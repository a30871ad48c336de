"""One changed byte of version, code, plan, bundle or predictions is a difference; nothing else is."""

import copy
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.store.validation.fingerprint import (
    SCORING_PACKAGES,
    bundle_files,
    code_sha256,
    find_differences,
    package_versions,
)

FINGERPRINT = {
    "versions": {"her2batch": "1.0", "numpy": "2.0"},
    "algorithms": 2,
    "code_sha256": "c",
    "plan_sha256": "p",
    "plan_ids": ["plan"],
    "predictions": "membrane",
    "bundle": {"bundle.toml": "b", "head.safetensors": "h"},
    "tables": {"s1": {"slide": "1", "predictions": "x"}, "s2": {"slide": "2", "predictions": "y"}},
}


def test_same_fingerprint_has_no_difference() -> None:
    assert find_differences(FINGERPRINT, copy.deepcopy(FINGERPRINT)) == []


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("versions", "numpy"), "2.0.1", "numpy"),
        (("versions", "her2batch"), "1.0.dev1", "her2batch"),
        (("algorithms",), 3, "algorithms"),
        (("code_sha256",), "d", "code"),
        (("plan_sha256",), "q", "plan"),
        (("plan_ids",), ["other"], "plan"),
        (("bundle", "head.safetensors"), "i", "head.safetensors"),
        (("bundle", "more.safetensors"), "i", "more.safetensors"),
        (("bundle",), None, "--bundle"),
        (("tables", "s1", "predictions"), "z", "s1"),
        (("tables", "s1", "predictions"), None, "s1"),
        (("tables", "s2", "slide"), "9", "another scan"),
        (("tables", "s2", "slide"), None, "no longer"),
    ],
)
def test_each_part_is_compared(keys: tuple[str, ...], value: object, named: str) -> None:
    now = copy.deepcopy(FINGERPRINT)
    part = now
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    found = find_differences(FINGERPRINT, now)
    assert len(found) == 1
    assert named in found[0]


def test_bundle_files_are_those_of_the_folder_or_the_file(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "a.toml").write_text("a")
    assert list(bundle_files(tmp_path / "bundle")) == ["a.toml"]
    assert bundle_files(tmp_path / "bundle" / "a.toml") == bundle_files(tmp_path / "bundle")
    with pytest.raises(InputError, match="folder of the bundle"):
        bundle_files(tmp_path / "missing")


def test_versions_and_code_are_those_installed() -> None:
    assert tuple(package_versions()) == SCORING_PACKAGES
    assert len(code_sha256()) == 64
