"""Sentinels: a few fixed slides that are scored again every night, to detect changes of the software's results.

The results of the first night are kept as the reference, with the plan, the bundle and the package versions. The report
of a later night is held back when its results differ by more than the tolerance, or when its plan or bundle differs.
Somebody must then investigate and remove the reference file; the next night makes a new one. The sentinels also serve
as the check after an update.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from her2batch.errors import InputError
from her2batch.files.atomic import atomic_write
from her2batch.job_settings import SentinelSettings
from her2batch.method_results import DERIVED_TASKS
from her2batch.store.cohort import Cohort, Row
from her2batch.store.validation.fingerprint import package_versions
from her2batch.tasks import SCORE_TASKS

SlidePredictions = dict[str, dict[str, Any]]
"""'task · method' → predicted, p, score; for a failed slide, 'failed' → its error code."""


@dataclass
class SentinelResult:
    """Result of the comparison with the reference.

    slides: number of sentinels.  new: there was no reference; tonight's results are the reference now.  deviations: one
    sentence for each difference.  updated: packages with another version, which alone is no deviation.
    """

    slides: int
    new: bool = False
    deviations: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether the night's report is held back."""
        return bool(self.deviations)


def check_sentinels(
    cohort: Cohort, reference: Path, settings: SentinelSettings, ids: Mapping[str, str]
) -> SentinelResult:
    """Compare the sentinels' cohort, as scored tonight, with the reference; make the reference if there is none.

    ids: what determines a score: 'plan', 'bundle'.  Raises InputError when the reference cannot be read.
    """
    tonight, versions = collect_predictions(cohort), package_versions()
    if not tonight:
        return SentinelResult(0, deviations=[f"there are no sentinel slides in {settings.folder}"])
    if not reference.exists():
        failed = [slide_id for slide_id, predictions in tonight.items() if "failed" in predictions]
        if not failed:
            save_reference(reference, {**ids, "versions": versions, "slides": tonight})
        deviations = [f"{slide_id} cannot be a sentinel: it failed" for slide_id in failed]
        return SentinelResult(len(tonight), new=not failed, deviations=deviations)
    kept = load_reference(reference)
    result = SentinelResult(len(tonight))
    result.updated = [
        f"{name} {kept['versions'].get(name)} → {now}"
        for name, now in versions.items()
        if kept["versions"].get(name) != now
    ]
    for name, now in ids.items():
        if kept.get(name) != now:
            result.deviations.append(f"the {name} differs from the reference ({kept.get(name)} → {now})")
    result.deviations += find_deviations(kept["slides"], tonight, settings)
    return result


def find_deviations(
    kept: Mapping[str, SlidePredictions], tonight: Mapping[str, SlidePredictions], settings: SentinelSettings
) -> list[str]:
    """Return a sentence for every difference between tonight's sentinels and the reference."""
    deviations = [f"{slide_id} is no longer among the sentinels" for slide_id in sorted(kept.keys() - tonight.keys())]
    deviations += [f"{slide_id} is new among the sentinels" for slide_id in sorted(tonight.keys() - kept.keys())]
    for slide_id in sorted(kept.keys() & tonight.keys()):
        before, now = kept[slide_id], tonight[slide_id]
        if "failed" in now:
            deviations.append(f"{slide_id} failed: {now['failed']['code']}")
            continue
        deviations += [f"{slide_id}, {key}: the prediction is missing" for key in sorted(before.keys() - now.keys())]
        deviations += [f"{slide_id}, {key}: the prediction is new" for key in sorted(now.keys() - before.keys())]
        for key in sorted(before.keys() & now.keys()):
            if (change := _describe_change(before[key], now[key], settings)) is not None:
                if before[key]["predicted"] != now[key]["predicted"] and _hangs_on_ish(key, before, now):
                    change = "the class changed; with 2+ only ISH decides it"
                deviations.append(f"{slide_id}, {key}: {change}")
    return deviations


def _hangs_on_ish(key: str, *predictions: SlidePredictions) -> bool:
    """Return whether a prediction is of a task that ISH decides, of a slide that is 2+ in any of these predictions."""
    scores = [own for of_slide in predictions for name, own in of_slide.items() if _task_of(name) in SCORE_TASKS]
    return _task_of(key) in DERIVED_TASKS and any(own["predicted"] == "2+" for own in scores)


def _task_of(key: str) -> str:
    return key.partition(" · ")[0]


def _describe_change(before: Mapping[str, Any], now: Mapping[str, Any], settings: SentinelSettings) -> str | None:
    """Return what changed beyond the tolerance between two predictions, or None."""
    if before["predicted"] != now["predicted"]:
        return f"class {before['predicted']} → {now['predicted']}"
    pairs = zip(before["p"], now["p"], strict=False)
    change = max((abs(a - b) for a, b in pairs), default=0.0)
    if len(before["p"]) != len(now["p"]) or not change <= settings.probability:
        return f"a probability changed by {change:.3g} (allowed {settings.probability:g})"
    a, b = before["score"], now["score"]
    if (a is None) != (b is None) or (a is not None and not abs(a - b) <= settings.score):
        return f"score {_score_text(a)} → {_score_text(b)} (allowed {settings.score:g})"
    return None


def _score_text(score: float | None) -> str:
    return "none" if score is None else f"{score:.3f}"


def collect_predictions(cohort: Cohort) -> dict[str, SlidePredictions]:
    """Return the predictions of each slide in a cohort's tables."""
    predictions: dict[str, SlidePredictions] = {}
    folders = [name for name in cohort.table_names() if name.startswith("predictions/")]
    for slide_id, row in sorted(cohort.rows().items()):
        if row["status"] == "failed":
            predictions[slide_id] = {"failed": {"code": row["error_code"]}}
            continue
        rows: list[Row] = []
        for name in folders:
            if cohort.table(name, slide_id).exists():
                rows += cohort.read(name, slide_id).to_pylist()
        names = ("predicted", "p", "score")
        predictions[slide_id] = {
            f"{row['task']} · {row['method']}": {name: row[name] for name in names} for row in rows
        }
    return predictions


def save_reference(reference: Path, kept: Mapping[str, Any]) -> None:
    """Write a reference file."""
    with atomic_write(reference) as part:
        part.write_text(json.dumps(kept, indent=1), "utf-8")


def load_reference(reference: Path) -> dict[str, Any]:
    """Read a reference file. Raises InputError when it is damaged."""
    try:
        kept: dict[str, Any] = json.loads(reference.read_text("utf-8"))
        if not {"plan", "bundle", "versions", "slides"} <= kept.keys():
            raise ValueError("parts are missing")
    except (OSError, ValueError) as error:
        raise InputError(
            f"is not a valid reference of the sentinels ({error})",
            reference,
            "remove it; the next night makes a new one",
        ) from error
    return kept
