"""Cases: all slides of one patient side by side, with the conflicts between slides and between methods.

A case has no class of its own. Reports show the highest class of any of its slides and name it as such.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from her2batch.assessment import has_no_result
from her2batch.method_results import DERIVED_TASKS
from her2batch.store.cohort import Cohort, Row
from her2batch.task_names import task_name
from her2batch.tasks import CLASSES, HER2_TASKS, SCORE_TASKS

UNKNOWN_MARKERS = ("ihc", None)
"""Values of the column `stain` of a slide whose marker is not known."""


@dataclass(frozen=True)
class SlidePrediction:
    """The prediction of one method for one slide and task."""

    slide_id: str
    task: str
    method: str
    predicted: str
    plausible: tuple[str, ...]
    review: bool
    score: float | None


@dataclass
class Case:
    """The slides of one patient. A slide without a patient is a case of its own."""

    patient_id: str | None
    slides: list[Row]
    predictions: list[SlidePrediction] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The patient id; the slide id where the patient is not known."""
        return self.patient_id or str(self.slides[0]["slide_id"])

    def highest_classes(self) -> dict[tuple[str, str], str]:
        """Return the highest HER2 class of any of the slides: (task, method) → class."""
        highest: dict[tuple[str, str], str] = {}
        for prediction in self.predictions:
            if prediction.task in HER2_TASKS:
                key, classes = (prediction.task, prediction.method), CLASSES[prediction.task]
                highest[key] = max(highest.get(key, prediction.predicted), prediction.predicted, key=classes.index)
        return highest


def find_cases(cohort: Cohort, slide_ids: Iterable[str]) -> list[Case]:
    """Return the cases of these slides, sorted by name. Each contains all slides of its patient."""
    folders = [name for name in cohort.table_names() if name.startswith("predictions/")]

    def read_predictions(slide_id: str) -> Iterable[Row]:
        for name in folders:
            if cohort.table(name, slide_id).exists():
                yield from cohort.read(name, slide_id).to_pylist()

    return group_into_cases(cohort.rows(), slide_ids, read_predictions)


def group_into_cases(
    rows: Mapping[str, Row], slide_ids: Iterable[str], predictions_of: Callable[[str], Iterable[Row]]
) -> list[Case]:
    """Return the cases of these slides, sorted by name, from rows that are in memory.

    Control slides belong to no patient.  rows: slide_id → its row of the table `slides`.  predictions_of: returns the
    rows of the predictions table of a slide; it is called for slides with the status `done`.
    """
    rows = {slide_id: row for slide_id, row in rows.items() if not has_no_result(row)}
    wanted = set(slide_ids)
    patients = {rows[slide_id]["patient_id"] for slide_id in wanted if slide_id in rows} - {None}
    groups: dict[str, list[Row]] = defaultdict(list)
    for slide_id, row in sorted(rows.items()):
        if row["patient_id"] in patients:
            groups[row["patient_id"]].append(row)
        elif slide_id in wanted:
            groups[f"\0{slide_id}"].append(row)
    cases = [_make_case(predictions_of, slides) for _, slides in sorted(groups.items())]
    return sorted(cases, key=lambda case: case.name)


def _make_case(predictions_of: Callable[[str], Iterable[Row]], slides: list[Row]) -> Case:
    predictions = [
        _slide_prediction(prediction)
        for row in slides
        if row["status"] == "done"
        for prediction in predictions_of(row["slide_id"])
        if prediction["predicted"] is not None
    ]
    case = Case(slides[0]["patient_id"], slides, predictions)
    case.conflicts = [
        *_failed_slides(case),
        *_unknown_markers(case),
        *conflicts_between_slides(predictions),
        *conflicts_between_methods(predictions),
    ]
    return case


def _slide_prediction(row: Row) -> SlidePrediction:
    plausible = tuple(row["plausible"] or (row["predicted"],))
    return SlidePrediction(
        row["slide_id"], row["task"], row["method"], row["predicted"], plausible, bool(row["review"]), row["score"]
    )


def _failed_slides(case: Case) -> list[str]:
    if len(case.slides) < 2:
        return []
    return [f"{row['slide_id']} failed: {row['error_code']}" for row in case.slides if row["status"] == "failed"]


def _unknown_markers(case: Case) -> list[str]:
    unknown = [row["slide_id"] for row in case.slides if row["status"] == "done" and row["stain"] in UNKNOWN_MARKERS]
    return [f"marker not known: {', '.join(unknown)}"] if unknown and len(case.slides) > 1 else []


def _definite(predictions: Iterable[SlidePrediction]) -> list[SlidePrediction]:
    """Return the predictions without those of derived tasks of slides that are 2+ by any method."""
    own = list(predictions)
    equivocal = {one.slide_id for one in own if one.task in SCORE_TASKS and one.predicted == "2+"}
    return [one for one in own if one.task not in DERIVED_TASKS or one.slide_id not in equivocal]


def conflicts_between_slides(predictions: Iterable[SlidePrediction]) -> list[str]:
    """Describe slides that contradict each other: one method and task, and no class is plausible on all slides.

    Classes that hang on an ISH result are left out: the IHC scores show the conflict.
    """
    groups: dict[tuple[str, str], list[SlidePrediction]] = defaultdict(list)
    for prediction in _definite(predictions):
        groups[prediction.task, prediction.method].append(prediction)
    conflicts = []
    for (task, method), group in sorted(groups.items()):
        common = set.intersection(*(set(prediction.plausible) for prediction in group))
        if not common and len({prediction.predicted for prediction in group}) > 1:
            classes = ", ".join(f"{prediction.predicted} on {prediction.slide_id}" for prediction in group)
            conflicts.append(f"slides differ, {task_name(task)} by {method}: {classes}")
    return conflicts


def conflicts_between_methods(predictions: Iterable[SlidePrediction]) -> list[str]:
    """Describe methods that contradict each other: one slide and task, and the predicted classes differ.

    Classes that hang on an ISH result are left out.
    """
    groups: dict[tuple[str, str], list[SlidePrediction]] = defaultdict(list)
    for prediction in _definite(predictions):
        groups[prediction.slide_id, prediction.task].append(prediction)
    conflicts = []
    for (slide_id, task), group in sorted(groups.items()):
        if len({prediction.predicted for prediction in group}) > 1:
            classes = ", ".join(f"{prediction.predicted} by {prediction.method}" for prediction in group)
            conflicts.append(f"methods differ on {slide_id}, {task_name(task)}: {classes}")
    return conflicts
