"""Everything that determines the predictions of a validation, as checksums: software, plan, bundle and tables.

A validation report is void as soon as one of them differs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from her2batch.errors import InputError
from her2batch.files.atomic import file_sha256
from her2batch.settings import ALGORITHMS
from her2batch.store.cohort import Cohort

SCORING_PACKAGES: Final = (
    "her2batch", "numpy", "opencv-python-headless", "scikit-image", "scipy", "simplejpeg", "torch", "timm",
)  # fmt: skip
"""Packages whose versions can change a score."""

Fingerprint = dict[str, Any]
"""versions, algorithms, code_sha256, plan_sha256, plan_ids, predictions, bundle, tables; see `take_fingerprint`."""


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that can change a score."""
    return {name: importlib.metadata.version(name) for name in SCORING_PACKAGES}


@cache
def code_sha256() -> str:
    """Return the checksum of all modules of her2batch, with their paths."""
    digest = hashlib.sha256()
    root = Path(str(resources.files("her2batch")))
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def take_fingerprint(cohort: Cohort, slide_ids: Iterable[str], predictions: str, bundle: Path | None) -> Fingerprint:
    """Return the fingerprint of predictions of some slides.

    predictions: name of the table without `predictions/`, such as `membrane` or the id of a bundle.  bundle: the folder
    of the bundle, or the calibration file, that made them; None: it is not recorded.
    The checksum of a slide's predictions is None where the table is missing.  Raises InputError, StoreError, OSError.
    """
    rows = cohort.rows()
    tables = {}
    for slide_id in sorted(slide_ids):
        row = rows.get(slide_id)
        path = cohort.table(f"predictions/{predictions}", slide_id)
        tables[slide_id] = {
            "slide": None if row is None else row["sha256"],
            "predictions": file_sha256(path) if path.exists() else None,
        }
    plan_ids = {rows[slide_id]["plan_id"] for slide_id in tables if slide_id in rows} - {None}
    return {
        "versions": package_versions(),
        "algorithms": ALGORITHMS,
        "code_sha256": code_sha256(),
        "plan_sha256": file_sha256(cohort.settings),
        "plan_ids": sorted(plan_ids),
        "predictions": predictions,
        "bundle": None if bundle is None else bundle_files(bundle),
        "tables": tables,
    }


def bundle_files(path: Path) -> dict[str, str]:
    """Return the checksum of each file of a bundle, or of one file. Raises InputError when there is none."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    if not files:
        raise InputError("holds no file of a bundle", path, "name the folder of the bundle, or the calibration file")
    root = path.parent if path.is_file() else path
    return {file.relative_to(root).as_posix(): file_sha256(file) for file in files}


def find_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each difference between two fingerprints; without any, the report holds."""
    found = []
    for name in sorted(recorded["versions"].keys() | now["versions"].keys()):
        before, after = recorded["versions"].get(name), now["versions"].get(name)
        if before != after:
            found.append(f"the version of {name} differs: {before} was validated, {after} is installed")
    for name, words in (("algorithms", "the version of the algorithms"), ("code_sha256", "the code of her2batch")):
        if recorded[name] != now[name]:
            found.append(f"{words} differs from the validated one")
    if recorded["plan_sha256"] != now["plan_sha256"]:
        found.append("the plan of the cohort (cohort.toml) differs from the validated one")
    if recorded["plan_ids"] != now["plan_ids"]:
        found.append("slides have another plan than the validated one")
    if recorded["bundle"] is not None:
        found += _bundle_differences(recorded["bundle"], now["bundle"])
    return [*found, *_table_differences(recorded["tables"], now["tables"])]


def _bundle_differences(recorded: Mapping[str, str], now: Mapping[str, str] | None) -> list[str]:
    if now is None:
        return ["the bundle can't be checked: name it with --bundle"]
    different = [name for name in sorted(recorded.keys() | now.keys()) if recorded.get(name) != now.get(name)]
    return [f"the file {name} of the bundle differs from the validated one" for name in different]


def _table_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    for slide_id, before in recorded.items():
        after = now.get(slide_id) or {"slide": None, "predictions": None}
        if after["slide"] is None:
            found.append(f"slide {slide_id} is no longer in the cohort")
        elif after["slide"] != before["slide"]:
            found.append(f"slide {slide_id} is another scan than the validated one")
        elif after["predictions"] != before["predictions"]:
            found.append(f"the predictions of slide {slide_id} differ from the validated ones")
    return found
