"""Request and response bodies of the REST API, as described in OpenAPI. Table columns come from `store.schemas`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, create_model

from her2batch.store import schemas
from her2batch.store.tables.column import Column


def _json_type(arrow: pa.DataType) -> Any:
    """Return the Python type of an Arrow type in JSON."""
    if pa.types.is_list(arrow):
        return list[_json_type(arrow.value_type)]  # type: ignore[misc]
    if pa.types.is_boolean(arrow):
        return bool
    if pa.types.is_integer(arrow):
        return int
    if pa.types.is_floating(arrow):
        return float
    return datetime if pa.types.is_timestamp(arrow) else str


def _model_fields(columns: tuple[Column, ...], leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of a model: one for each column, with its description."""
    included = (column for column in columns if column.name not in leave_out)
    return {
        column.name: (_json_type(column.type) | None, Field(None, description=column.description))
        for column in included
    }


SlideRow = create_model(
    "SlideRow", __doc__="A row of the table slides.", **_model_fields(schemas.SLIDE_COLUMNS, ("files",))
)

Prediction = create_model(
    "Prediction",
    __doc__="A row of the table predictions.",
    bundle=(str, Field(description="membrane, cells, or the id of the bundle that made the prediction")),
    **_model_fields(schemas.TABLES["predictions/cells"], ("slide_id", "patient_id")),
    **_model_fields(schemas.CALIBRATED_COLUMNS[-1:]),
)

ReviewEntry = create_model(
    "ReviewEntry",
    __doc__="An entry of the table reviews.",
    **_model_fields(schemas.REVIEW_COLUMNS, ("salt", "body_sha256")),
)


class Strict(BaseModel):
    """A request body. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class NewReview(Strict):
    """A reviewer's verdict on a prediction."""

    slide_id: str
    reviewer: str = Field(min_length=1, max_length=100, description="name of the reviewer")
    bundle: str = Field(
        description="bundle of the prediction: membrane, cells, or the id of a bundle; none of a slide that failed"
    )
    task: str
    method: str
    predicted: str | None = Field(
        description="the class or number that the reviewer saw, null of a slide that could not be scored or failed; "
        "409 if it has changed"
    )
    verdict: Literal["agree", "change", "needs-ish"]
    label: str | None = Field(None, description="with `change`: the class that the reviewer chooses")
    comment: str = Field("", max_length=2000)
    supersedes: int | None = Field(
        None, description="number of an own review that this one replaces; the comment then states the reason"
    )


class NewSlide(Strict):
    """A slide to ingest."""

    path: str = Field(
        min_length=1, max_length=4096, description="path of the slide file, under the folder given by --scans"
    )


class JobStatus(BaseModel):
    """Status of a slide that was posted."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    waiting: str | None = Field(None, description="why it waits, for example because another run holds the cohort")
    slide_id: str | None = Field(None, description="once done; once failed, if the slide has a row")
    error_code: str | None = None
    error: str | None = Field(None, description="what failed, with the remedy")
    queued: datetime
    started: datetime | None = None
    ended: datetime | None = None
    slide: SlideDetail | None = Field(None, description="once done: the same as GET /slides/{slide_id}")


class SlideSummary(BaseModel):
    """A slide in the list of slides."""

    slide_id: str
    patient_id: str | None
    stain: str | None
    status: str
    error_code: str | None
    tissue_mm2: float | None
    n_tiles: int | None
    flags: list[str]
    rule: str | None = Field(description="HER2 score by the membrane rule")
    score: float | None = Field(description="the rule's continuous score, 0–3")
    predicted: dict[str, str] = Field(description="BUNDLE/TASK/METHOD → class, of all predictions")
    review: bool = Field(
        description="needs review: a prediction needs it or the slide failed, and there is no verdict yet"
    )
    state: str = Field(description="review, decided, clear, or other: of a marker that no method scores")
    result: str | None = Field(description="IHC score of a HER2 slide, class of an ER or PR slide")
    meaning: str = Field(description="what the result means, in words")
    needs_ish: bool = Field(description="2+ without an ISH result: no class follows from it")
    reasons: list[str] = Field(description="reasons for review, as fixed codes, the weightiest first")
    reason_words: list[str] = Field(description="the same reasons in words")
    kinds: list[str] = Field(description="kinds of the reasons")
    verdict: str | None = Field(description="the newest verdict on the slide")
    label: str | None = Field(description="the class according to the newest verdict")
    reviewer: str | None = Field(description="who gave the newest verdict")
    lab_label: str | None = Field(description="the laboratory's own result")
    ish: str | None = Field(description="the laboratory's ISH result: + or -")
    finished: datetime | None = Field(description="when the slide was processed")
    marker: str = Field(description="name of the marker: HER2, ER, PR, Ki-67, …")
    is_number: bool = Field(description="the result is a number, such as the Ki-67 index")


class SlidePage(BaseModel):
    """A page of the list of slides."""

    total: int = Field(description="matching slides on all pages")
    offset: int
    slides: list[SlideSummary]
    states: dict[str, int] = Field(description="slides of the cohort in each state, and those that need ISH")
    results: dict[str, int] = Field(description="slides of the cohort with each result")
    markers: dict[str, dict[str, int]] = Field(
        description="slides of the cohort with each result, by marker; numbers are counted as measured"
    )


class ReasonWords(BaseModel):
    """A reason for review."""

    code: str
    kind: str
    words: str


class ClassWords(BaseModel):
    """A class that follows from the result, or that one method gives."""

    task: str
    name: str = Field(description="name of the task for readers")
    method: str | None = None
    bundle: str | None = None
    predicted: str | None = Field(description="null where an ISH result decides")
    text: str


class SlideAssessment(BaseModel):
    """The result of a slide and the reasons for review; see `her2batch.assessment`."""

    state: str
    review: bool
    result: str | None
    meaning: str
    by: str | None = Field(description="who gave the result: pathologist, or a method")
    task: str | None
    needs_ish: bool
    reasons: list[ReasonWords]
    derived: list[ClassWords]
    methods: list[ClassWords]
    label: str | None = Field(description="the laboratory's own result")
    label_detail: str | None = Field(description="the laboratory's sub-score of 0: null or ultralow")
    ish: str | None = Field(description="the laboratory's ISH result")
    main: dict[str, str | None] | None = Field(description="the prediction that a verdict refers to")
    choices: list[str] = Field(description="classes that a verdict can give")
    is_number: bool = Field(description="a verdict gives a number")


class CaseSlide(BaseModel):
    """Another slide of the same patient."""

    slide_id: str
    marker: str
    stain: str | None
    result: str | None
    meaning: str


class SlideDetail(BaseModel):
    """One slide: its row, predictions with their reasons, reviews, and the addresses of its images and overlays."""

    row: SlideRow  # type: ignore[valid-type]
    predictions: list[Prediction]  # type: ignore[valid-type]
    assessment: SlideAssessment
    case: list[CaseSlide] = Field(description="the other slides of the patient")
    report: str | None = Field(description="address of the slide in the report; null without a report in the cohort")
    shares: dict[str, float] | None = Field(
        description="membrane shares that the membrane rule uses; see the table membrane"
    )
    reviews: list[ReviewEntry]  # type: ignore[valid-type]
    deepzoom: str | None = Field(description="address of the Deep Zoom descriptor; null without a pyramid")
    tile_size: int | None = Field(description="edge of a Deep Zoom tile, px")
    thumbnail: str | None = Field(description="address of the thumbnail")
    overlays: list[str] = Field(description="overlays: tiles, membrane, attention, patches, saliency, cells, pieces")


class CohortFacts(BaseModel):
    """The cohort that is served."""

    name: str
    slides: int
    posting: bool = Field(description="true if slides can be posted")
    tasks: dict[str, list[str]] = Field(description="task → its classes")
    report: bool = Field(description="true if the folder of the cohort contains a report, which is served")
    nights: bool = Field(description="true if there are reports of nights; /nights/ lists them")
    user: str | None = Field(description="the user, where a reverse proxy authenticates users; the reviewer of reviews")
    may_review: bool = Field(description="false for a user who may only read")
    note: str | None = Field(None, description="what holds for all slides: the rules are not calibrated")


class Problem(BaseModel):
    """An error message."""

    detail: str


JobStatus.model_rebuild()
