"""Assessment of a slide: its one result, what follows from it, and whether and why a pathologist should look at it.

`assess_slide` decides this for the page, the report, the night and all lists. `prediction_review` decides the column
`review` of one prediction with the same reasons. All functions are pure functions of rows.

The result of a HER2 slide is its IHC score: that of the newest verdict, else of the membrane rule, else of the first
trained method. A score of 2+ is equivocal (ASCO/CAP 2018, affirmed 2023): without an ISH result the classes that follow
from it (low or high, negative or positive) are not determined, and no probability of a model replaces the test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from her2batch.errors import REMEDIES
from her2batch.method_results import DERIVED_TASKS, Fields, MethodResult, disagreements, method_result
from her2batch.reasons import NOT_ASKING, REASONS, WEIGHTS
from her2batch.task_names import stain_name, task_name
from her2batch.tasks import (
    CELL_RULE,
    CLASSES,
    CONTRADICTIONS,
    GUIDELINE_RULES,
    HER2_TASKS,
    MEMBRANE_RULE,
    SCORE_TASKS,
    her2_class,
    ihc_score,
    is_calibration,
    task_applies,
    task_order,
)

SomeFields = TypeVar("SomeFields", bound=Fields)

IHC_TASK: Final = "her2-4way"
"""Task whose class is the IHC score, the result of a HER2 slide."""

NO_METHOD: Final = "none"
"""Bundle and method of a verdict on a slide that failed."""

INFORMATIVE_FLAGS: Final = frozenset(
    {"control-slide", "microarray", "pyramid-retired", "colour-tag-mended", "associated-image-damaged", "mpp-forced"}
)
"""Flags that do not concern the quality of the image. Every other flag asks for a review."""

UNCALIBRATED_NOTE: Final = (
    "Not calibrated: the thresholds are those of the guideline, and staining differs between laboratories. "
    "Learn this laboratory's from labelled slides with her2batch calibrate."
)
"""What page, report and screen say once where a rule scored slides without a calibration."""

CONTROL_SLIDE: Final = "control-slide"
"""Flag of a slide that consists of control tissue: it has no result and belongs to no patient."""

MICROARRAY: Final = "microarray"
"""Flag of a slide that is a tissue microarray: its cores have scores and patients, the slide as a whole has none."""

WITHOUT_PATIENT: Final = frozenset({CONTROL_SLIDE, "only-controls", MICROARRAY})
"""Flags of slides without tissue of one patient."""


class Reason(NamedTuple):
    """A reason to look at a slide. code: stable word.  kind: key of KINDS.  words: for readers."""

    code: str
    kind: str
    words: str
    asks: bool

    @property
    def weight(self) -> int:
        """Position in REASONS; unknown reasons stand with the quality flags."""
        return WEIGHTS.get(self.code, WEIGHTS["dark-background"])


@dataclass(frozen=True)
class Assessment:
    """What is shown of a slide.

    state: `review`, a pathologist should look · `decided`, a verdict was given · `clear` · `other`, of a marker that
    nothing scores.  result: IHC score of a HER2 slide, class of an ER or PR slide; None without.  meaning: of the
    result, in words.  by: who gave the result, `pathologist` or the name of a method.  derived: HER2 task → its class,
    None where it hangs on ISH.  needs_ish: the result is equivocal and there is no ISH result.  reasons: the weightiest
    first.  main: the prediction that a verdict refers to; without a class where nothing scores the slide.  label,
    label_detail, ish: the laboratory's own results.
    not_scorable: no method's class counts, for a reason of this kind.
    """

    state: str
    result: str | None
    meaning: str
    by: str | None
    task: str | None
    derived: Mapping[str, str | None]
    needs_ish: bool
    reasons: tuple[Reason, ...]
    methods: tuple[MethodResult, ...]
    main: Fields | None
    verdict: Fields | None
    label: str | None
    label_detail: str | None
    ish: str | None
    not_scorable: bool = False

    @property
    def review(self) -> bool:
        """Whether a pathologist should look at the slide; False once there is a verdict."""
        return self.state == "review"

    @property
    def rank(self) -> tuple[int, int, int]:
        """Key that sorts work: slides for review first, by their weightiest reason, then by the number of reasons."""
        asking = [reason.weight for reason in self.reasons if reason.asks]
        return (0 if self.review else 1, min(asking, default=len(REASONS)), -len(asking))

    @property
    def verdict_target(self) -> Fields | None:
        """The prediction that a verdict refers to; of a failed slide one without a class: its glass can be scored."""
        if self.main is not None or self.task is None:
            return self.main
        return {"bundle": NO_METHOD, "method": NO_METHOD, "task": self.task, "predicted": None}

    @property
    def quality(self) -> tuple[Reason, ...]:
        """The reasons that concern the quality of the image: the banner of the slide's page."""
        return tuple(reason for reason in self.reasons if reason.kind == "quality")


def is_control_slide(row: Fields) -> bool:
    """Return whether a slide consists of control tissue. row: of the table slides."""
    return CONTROL_SLIDE in (row.get("flags") or ())


def has_no_result(row: Fields) -> bool:
    """Return whether no method gives a slide a result: of control slides and microarrays. row: of the table slides."""
    return is_control_slide(row) or MICROARRAY in (row.get("flags") or ())


def quality_flags(flags: Iterable[str]) -> list[str]:
    """Return the flags that ask for a review, in their order."""
    return [flag for flag in flags if flag not in INFORMATIVE_FLAGS]


def prediction_review(task: str, predicted: str, reasons: Iterable[str]) -> bool:
    """Return whether one prediction asks for a review: for 2+, and for every reason outside NOT_ASKING."""
    return (task in SCORE_TASKS and predicted == "2+") or any(reason not in NOT_ASKING for reason in reasons)


def without_superseded(predictions: Iterable[SomeFields]) -> list[SomeFields]:
    """Return predictions without those of a method that a calibration has calibrated for the same task."""
    predictions = list(predictions)
    calibrated = {(one["task"], one["method"]) for one in predictions if is_calibration(one["bundle"])}
    return [
        one for one in predictions if is_calibration(one["bundle"]) or (one["task"], one["method"]) not in calibrated
    ]


def ordered_predictions(predictions: Iterable[SomeFields]) -> list[SomeFields]:
    """Return predictions in the order of their tasks, those of the membrane rule first, then those of the cells.

    A calibrated prediction takes the place of the uncalibrated one of its method.
    """
    predictions = without_superseded(predictions)
    tasks = task_order(row["task"] for row in predictions)
    return sorted(
        predictions,
        key=lambda row: (tasks.index(row["task"]), _method_order(row)),
    )


def _method_order(row: Fields) -> tuple[bool, bool, str, str]:
    return row["method"] != MEMBRANE_RULE, row["method"] != CELL_RULE, row["bundle"], row["method"]


def assess_slide(
    row: Fields, predictions: Iterable[Fields] = (), label: Fields | None = None, reviews: Sequence[Fields] = ()
) -> Assessment:
    """Assess one slide.

    row: of the table slides.  predictions: its rows of the predictions tables, each with its `bundle`.  label: its row
    of the labels, the laboratory's own results.  reviews: its entries of the table reviews, in order.
    """
    every = [] if MICROARRAY in (row.get("flags") or ()) else ordered_predictions(predictions)
    label = label or {}
    own = [one for one in every if one["predicted"] is not None]
    refusals = [one for one in every if one["predicted"] is None and one["method"] == CELL_RULE]
    is_failed = row["status"] == "failed"
    is_her2 = any(one["task"] in HER2_TASKS for one in every) or (is_failed and task_applies(IHC_TASK, row["stain"]))
    main = next((one for one in (*own, *refusals) if one["task"] in SCORE_TASKS or not is_her2), None)
    task = main["task"] if main is not None else IHC_TASK if is_her2 else _failed_marker(row)
    verdict = newest_verdict(reviews, "her2" if is_her2 else task)
    ish = label.get("ish") if is_her2 else None
    no_score = bool(refusals) and verdict is None
    result, by = (None, None) if no_score else _result(main, verdict, task)
    needs_ish = not no_score and is_her2 and ish is None and _is_equivocal(own, verdict, result)
    derived = _derived_classes(result, ish, verdict, needs_ish) if is_her2 else {}
    of_ish = {"needs-ish": ""} if needs_ish else {}
    if by != "pathologist" and (result, ish) in CONTRADICTIONS:
        of_ish["ish-contradicts"] = f"{result}, ISH {ish}"
    reasons = _reasons(row, refusals or own, of_ish)
    no_result = has_no_result(row)
    other = not every and row["status"] == "done" and (no_result or not task_applies(IHC_TASK, row["stain"]))
    asked = (no_result or not other) and any(reason.asks for reason in reasons)
    state = "decided" if verdict is not None else "review" if asked else "other" if other else "clear"
    methods = () if no_score else tuple(method_result(one, needs_ish, result) for one in own)
    meaning = _meaning(row, result, ish, needs_ish, derived, reasons if no_score else ())
    return Assessment(
        state, result, meaning or _marker_meaning(task, main, result), by, task, derived, needs_ish, reasons, methods,
        main, verdict, _laboratory_class(label, "her2" if is_her2 or task is None else task),
        label.get("her2_detail"), label.get("ish"), bool(refusals),
    )  # fmt: skip


def _failed_marker(row: Fields) -> str | None:
    """Return the task of a failed slide of another marker than HER2, which a pathologist can score by microscope."""
    return row["stain"] if row["status"] == "failed" and row["stain"] in CLASSES else None


def _laboratory_class(label: Fields, column: str) -> str | None:
    """Return the laboratory's own class: sheets have '+' and '-' for ER and PR."""
    value = label.get(column)
    return {"+": "positive", "-": "negative"}.get(str(value), value)


def newest_verdict(reviews: Sequence[Fields], column: str | None) -> Fields | None:
    """Return the newest entry that counts: not superseded, and of a task of this column of the labels."""
    superseded = {entry.get("supersedes") for entry in reviews}
    counting = [
        entry
        for entry in reviews
        if entry.get("number") not in superseded - {None} and marker_of(entry["task"]) == column
    ]
    return counting[-1] if counting else None


def marker_of(task: str) -> str:
    """Return the column of the labels that determines the class of a task."""
    return "her2" if task in HER2_TASKS else task


def _result(main: Fields | None, verdict: Fields | None, task: str | None) -> tuple[str | None, str | None]:
    """Return the result and who gave it."""
    if verdict is not None and verdict["verdict"] == "needs-ish":
        return "2+", "pathologist"
    scores = task in SCORE_TASKS
    if verdict is not None and (verdict["task"] == task or (scores and verdict["task"] in SCORE_TASKS)):
        return ihc_score(verdict["label"]) if scores else verdict["label"], "pathologist"
    if main is None:
        return None, None
    return ihc_score(main["predicted"]) if scores else main["predicted"], main["method"]


def _is_equivocal(predictions: Sequence[Fields], verdict: Fields | None, result: str | None) -> bool:
    """Return whether the slide is 2+: by the verdict, or without one by any method."""
    if verdict is not None:
        return verdict["verdict"] == "needs-ish" or (result == "2+" and verdict["task"] not in DERIVED_TASKS)
    return any(
        (one["task"] in SCORE_TASKS and one["predicted"] == "2+") or "needs-ish" in (one["reasons"] or ())
        for one in predictions
    )


def _derived_classes(
    result: str | None, ish: str | None, verdict: Fields | None, needs_ish: bool
) -> dict[str, str | None]:
    """Return the class of each derived task: None without a score, and where ISH decides."""
    if needs_ish or result is None:
        found: dict[str, str | None] = dict.fromkeys(DERIVED_TASKS)
    elif result == "2+" and ish is None:
        found = dict.fromkeys(DERIVED_TASKS)
    else:
        found = {task: her2_class(task, result, ish) for task in DERIVED_TASKS}
    if verdict is not None and verdict["task"] in DERIVED_TASKS and verdict["label"] is not None:
        found[verdict["task"]] = verdict["label"]
    return found


def _meaning(
    row: Fields,
    result: str | None,
    ish: str | None,
    needs_ish: bool,
    derived: Mapping[str, str | None],
    refused: Iterable[Reason] = (),
) -> str:
    """Return what the result means, in words.  refused: the reasons of a slide that cannot be scored."""
    if row["status"] == "failed" and result is None:
        return f"no result: the slide failed ({row['error_code']})"
    if is_control_slide(row):
        return "control slide"
    if has_no_result(row):
        return "tissue microarray: each core has its own score"
    if words := [reason.words for reason in refused if reason.kind == "not-scorable"]:
        return f"not scorable: {words[0]}"
    if result is None:
        known = task_applies(IHC_TASK, row["stain"])
        return "no IHC score" if known else f"{stain_name(row['stain'])} slide: no method scores this marker"
    if needs_ish:
        return "equivocal, ISH needed" if result == "2+" else "ISH needed: another method gives 2+"
    if result == "2+" and ish is not None:
        return f"equivocal by IHC, ISH {'positive' if ish == '+' else 'negative'}: HER2 {derived['her2-binary']}"
    if not derived:
        return ""
    named = {"0": "HER2 zero", "low": "HER2-low", "high": "HER2 positive"}
    return named.get(derived.get("her2-3way") or "", "")


def _marker_meaning(task: str | None, main: Fields | None, result: str | None) -> str:
    """Return the result of another marker than HER2 with the marker's name: a class alone could be read as HER2."""
    if task is None or task in HER2_TASKS or result is None:
        return ""
    if main is None or main.get("classes", True):
        return f"{task_name(task)} {result}"
    return f"{task_name(task)}: {result}" + ("\u00a0% of the tumour cells" if main["method"] == CELL_RULE else "")


# -- reasons -----------------------------------------------------------------------------------------------------


def make_reason(code: str, detail: str = "", asks: bool | None = None) -> Reason:
    """Return a reason by its code, with a detail in brackets. A code that is not in REASONS is shown as it is."""
    kind, words = REASONS.get(code, ("quality", code.replace("-", " ")))
    return Reason(
        code, kind, f"{words} ({detail})" if detail else words, code not in NOT_ASKING if asks is None else asks
    )


def _reasons(row: Fields, predictions: Sequence[Fields], of_ish: Mapping[str, str]) -> tuple[Reason, ...]:
    """Return every reason once, the weightiest first. of_ish: reasons that concern ISH, with their details."""
    found: dict[str, Reason] = {}

    def add(code: str, detail: str = "", asks: bool | None = None) -> None:
        found.setdefault(code, make_reason(code, detail, asks))

    if row["status"] == "failed":
        code = row["error_code"]
        add("failed", f"{code}: {REMEDIES[code]}" if code in REMEDIES else str(code))
        return tuple(found.values())
    flags = quality_flags(row["flags"] or ())
    if row.get("blank_tiles"):
        add("missing-tiles", f"{row['blank_tiles']} tiles, {row['n_tiles']} with an image")
    for flag in flags:
        add(flag)
    scored = not has_no_result(row) and task_applies(IHC_TASK, row["stain"])
    if not predictions and not flags and row["n_tiles"] and scored:
        add("no-method")
    for code, detail in of_ish.items():
        add(code, detail)
    for code, task, classes in disagreements(predictions, "needs-ish" in of_ish):
        add(code, f"{task_name(task)}: {classes}")
    by_code: dict[str, list[Fields]] = {}
    settled = {"unconfirmed-3-plus"} if is_confirmed(predictions) else set()
    for one in predictions:
        codes = [code for code in one["reasons"] or () if code not in said_elsewhere(one)]
        for code in (code for code in codes if code not in settled):
            by_code.setdefault(code, []).append(one)
        if one["review"] and not prediction_review("", "", codes) and not _asks_for_ish(one):
            add("method-asks", one["method"])
    for code, asking in by_code.items():
        methods = dict.fromkeys(one["method"] for one in asking)
        trained = code in ("undecided", "uncalibrated")
        known = code in REASONS
        add(code, ", ".join(methods) if trained else "", None if known else any(one["review"] for one in asking))
    return tuple(sorted(found.values(), key=lambda reason: (not reason.asks, reason.weight)))


def said_elsewhere(prediction: Fields) -> frozenset[str]:
    """Return the reasons of a prediction that its slide does not repeat.

    ISH is a reason of its own. That a rule is not calibrated holds for the whole cohort, and is said once.
    """
    return frozenset({"needs-ish", *(("uncalibrated",) if prediction["method"] in GUIDELINE_RULES else ())})


def is_confirmed(predictions: Iterable[Fields]) -> bool:
    """Return whether both rules, on area and on cells, give 3+."""
    positive = {one["method"] for one in predictions if (one["task"], one["predicted"]) == (IHC_TASK, "3+")}
    return positive.issuperset(GUIDELINE_RULES)


def is_uncalibrated(predictions: Iterable[Fields]) -> bool:
    """Return whether a rule scored the slide without a calibration, or outside its range."""
    own = without_superseded(predictions)
    return any(one["method"] in GUIDELINE_RULES and "uncalibrated" in (one["reasons"] or ()) for one in own)


def _asks_for_ish(prediction: Fields) -> bool:
    """Return whether a prediction asks for a review because it is 2+."""
    is_equivocal = prediction["task"] in SCORE_TASKS and prediction["predicted"] == "2+"
    return is_equivocal or "needs-ish" in (prediction["reasons"] or ())
