"""A few fixed slides, scored again every night: whether the software still says what it said.

The first night's figures are kept as the reference, with what decided them: plan, bundle, versions. A later night that
differs by more than the tolerance, or whose plan or bundle is another, is held back until somebody has looked and
removed the reference file; the next night then makes a new one. So it is the check after any update, too.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from her2batch.errors import InputError
from her2batch.files.atomic import atomic_write
from her2batch.settings import SentinelSettings
from her2batch.store.cohort import Cohort, Row

PACKAGES = ("her2batch", "numpy", "opencv-python-headless", "scikit-image", "scipy", "simplejpeg", "torch", "timm")
"""Whose versions can move a score."""

SlidePredictions = dict[str, dict[str, Any]]
"""'task · method' → predicted, p, score; or, of a slide that failed, 'failed' → its code."""


@dataclass
class SentinelResult:
    """new: there was no reference; tonight's figures are it now."""

    slides: int
    new: bool = False
    deviations: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)  # packages whose version is another

    @property
    def held(self) -> bool:
        """Whether the night's report is held back."""
        return bool(self.deviations)


def check_sentinels(
    cohort: Cohort, reference: Path, settings: SentinelSettings, ids: Mapping[str, str]
) -> SentinelResult:
    """The sentinels' cohort, as it was scored tonight, against what was kept.

    ids: what decides a score: 'plan', 'bundle'.  Raises InputError when the reference can't be read.
    """
    tonight, versions = collect_predictions(cohort), _versions()
    if not tonight:
        return SentinelResult(0, deviations=[f"there is no slide among the sentinels in {settings.folder}"])
    if not reference.exists():
        broken = [f"{slide_id} can't be a sentinel: it failed" for slide_id, one in tonight.items() if "failed" in one]
        if not broken:
            save_reference(reference, {**ids, "versions": versions, "slides": tonight})
        return SentinelResult(len(tonight), new=not broken, deviations=broken)
    kept = load_reference(reference)
    verdict = SentinelResult(len(tonight))
    verdict.updated = [
        f"{name} {kept['versions'].get(name)} → {now}"
        for name, now in versions.items()
        if kept["versions"].get(name) != now
    ]
    for name, now in ids.items():
        if kept.get(name) != now:
            verdict.deviations.append(f"the {name} is another than the reference's ({kept.get(name)} → {now})")
    verdict.deviations += find_deviations(kept["slides"], tonight, settings)
    return verdict


def find_deviations(
    kept: Mapping[str, SlidePredictions], tonight: Mapping[str, SlidePredictions], settings: SentinelSettings
) -> list[str]:
    """Every way in which tonight's sentinels differ from the kept ones, a sentence each."""
    found = [f"{one} is not among the sentinels any more" for one in sorted(kept.keys() - tonight.keys())]
    found += [f"{one} is new among the sentinels" for one in sorted(tonight.keys() - kept.keys())]
    for slide_id in sorted(kept.keys() & tonight.keys()):
        before, now = kept[slide_id], tonight[slide_id]
        if "failed" in now:
            found.append(f"{slide_id} failed: {now['failed']['code']}")
            continue
        found += [f"{slide_id}, {key}: no prediction any more" for key in sorted(before.keys() - now.keys())]
        found += [f"{slide_id}, {key}: no prediction before" for key in sorted(now.keys() - before.keys())]
        for key in sorted(before.keys() & now.keys()):
            if (what := _describe_change(before[key], now[key], settings)) is not None:
                found.append(f"{slide_id}, {key}: {what}")
    return found


def _describe_change(before: Mapping[str, Any], now: Mapping[str, Any], settings: SentinelSettings) -> str | None:
    if before["predicted"] != now["predicted"]:
        return f"class {before['predicted']} → {now['predicted']}"
    pairs = zip(before["p"], now["p"], strict=False)
    moved = max((abs(a - b) for a, b in pairs), default=0.0)
    if len(before["p"]) != len(now["p"]) or not moved <= settings.probability:
        return f"a probability moved by {moved:.3g} (allowed {settings.probability:g})"
    a, b = before["score"], now["score"]
    if (a is None) != (b is None) or (a is not None and not abs(a - b) <= settings.score):
        return f"score {_score_text(a)} → {_score_text(b)} (allowed {settings.score:g})"
    return None


def _score_text(score: float | None) -> str:
    return "none" if score is None else f"{score:.3f}"


def collect_predictions(cohort: Cohort) -> dict[str, SlidePredictions]:
    """What the tables of a cohort say of each slide."""
    found: dict[str, SlidePredictions] = {}
    folders = [name for name in cohort.table_names() if name.startswith("predictions/")]
    for slide_id, row in sorted(cohort.rows().items()):
        if row["status"] == "failed":
            found[slide_id] = {"failed": {"code": row["error_code"]}}
            continue
        rows: list[Row] = []
        for name in folders:
            if cohort.table(name, slide_id).exists():
                rows += cohort.read(name, slide_id).to_pylist()
        facts = ("predicted", "p", "score")
        found[slide_id] = {f"{one['task']} · {one['method']}": {name: one[name] for name in facts} for one in rows}
    return found


def save_reference(reference: Path, kept: Mapping[str, Any]) -> None:
    """Keep a reference."""
    with atomic_write(reference) as part:
        part.write_text(json.dumps(kept, indent=1))


def load_reference(reference: Path) -> dict[str, Any]:
    """A kept reference. Raises InputError when it is damaged."""
    try:
        kept: dict[str, Any] = json.loads(reference.read_text())
        if not {"plan", "bundle", "versions", "slides"} <= kept.keys():
            raise ValueError("parts are missing")
    except (OSError, ValueError) as error:
        raise InputError(
            f"is no reference of sentinels ({error})", reference, "remove it: the next night makes one"
        ) from error
    return kept


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
