"""The slides of one patient side by side: blocks, markers, methods; and where they contradict each other.

No class is made up for a case: the highest that any of its slides got is shown, and said to be that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from her2batch.store.cohort import Cohort, Row
from her2batch.tasks import CLASSES, HER2_TASKS

UNKNOWN = ("ihc", None)
"""Stains of which the marker is not known."""


@dataclass(frozen=True)
class Call:
    """What one method says of one slide for one task."""

    slide_id: str
    task: str
    method: str
    predicted: str
    plausible: tuple[str, ...]
    review: bool
    score: float | None


@dataclass
class Case:
    """One patient's slides. A slide without a patient is a case of its own."""

    patient_id: str | None
    slides: list[Row]
    calls: list[Call] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The patient, or the slide where nobody says whose it is."""
        return self.patient_id or str(self.slides[0]["slide_id"])

    def highest(self) -> dict[tuple[str, str], str]:
        """(task, method) → the highest HER2 class that any of the slides got."""
        found: dict[tuple[str, str], str] = {}
        for call in self.calls:
            if call.task in HER2_TASKS:
                key, classes = (call.task, call.method), CLASSES[call.task]
                found[key] = max(found.get(key, call.predicted), call.predicted, key=classes.index)
        return found


def cases(cohort: Cohort, fresh: Iterable[str]) -> list[Case]:
    """Cases that own one of the given slides, whole: with their slides of other nights. In order of name."""
    folders = [name for name in cohort.names() if name.startswith("predictions/")]

    def said(slide_id: str) -> Iterable[Row]:
        for name in folders:
            if cohort.table(name, slide_id).exists():
                yield from cohort.read(name, slide_id).to_pylist()

    return joined(cohort.rows(), fresh, said)


def joined(rows: Mapping[str, Row], fresh: Iterable[str], said: Callable[[str], Iterable[Row]]) -> list[Case]:
    """The same from the slides' rows and what is said of each done slide: rows of the predictions table."""
    wanted = set(fresh)
    patients = {rows[one]["patient_id"] for one in wanted if one in rows} - {None}
    owned: dict[str, list[Row]] = defaultdict(list)
    for slide_id, row in sorted(rows.items()):
        if row["patient_id"] in patients:
            owned[row["patient_id"]].append(row)
        elif slide_id in wanted:
            owned[f"\0{slide_id}"].append(row)
    found = [_joined(said, slides) for _, slides in sorted(owned.items())]
    return sorted(found, key=lambda case: case.name)


def _joined(said: Callable[[str], Iterable[Row]], slides: list[Row]) -> Case:
    calls = [_call(one) for row in slides if row["status"] == "done" for one in said(row["slide_id"])]
    case = Case(slides[0]["patient_id"], slides, calls)
    case.conflicts = [*_failed(case), *_unknown(case), *between_slides(calls), *between_methods(calls)]
    return case


def _call(row: Row) -> Call:
    plausible = tuple(row["plausible"] or (row["predicted"],))
    return Call(
        row["slide_id"], row["task"], row["method"], row["predicted"], plausible, bool(row["review"]), row["score"]
    )


def _failed(case: Case) -> list[str]:
    if len(case.slides) < 2:
        return []
    return [f"{row['slide_id']} failed: {row['error_code']}" for row in case.slides if row["status"] == "failed"]


def _unknown(case: Case) -> list[str]:
    unknown = [row["slide_id"] for row in case.slides if row["status"] == "done" and row["stain"] in UNKNOWN]
    return [f"marker not known: {', '.join(unknown)}"] if unknown and len(case.slides) > 1 else []


def between_slides(calls: Iterable[Call]) -> list[str]:
    """One method, one task, several slides: classes that can't all be right, for no class is plausible on all."""
    groups: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in calls:
        groups[call.task, call.method].append(call)
    found = []
    for (task, method), group in sorted(groups.items()):
        common = set.intersection(*(set(one.plausible) for one in group))
        if not common and len({one.predicted for one in group}) > 1:
            said = ", ".join(f"{one.predicted} on {one.slide_id}" for one in group)
            found.append(f"slides differ, {task} by {method}: {said}")
    return found


def between_methods(calls: Iterable[Call]) -> list[str]:
    """One slide, one task, several methods: classes that differ."""
    groups: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in calls:
        groups[call.slide_id, call.task].append(call)
    found = []
    for (slide_id, task), group in sorted(groups.items()):
        if len({one.predicted for one in group}) > 1:
            said = ", ".join(f"{one.predicted} by {one.method}" for one in group)
            found.append(f"methods differ on {slide_id}, {task}: {said}")
    return found
