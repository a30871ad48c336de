"""What the REST API takes and gives, as OpenAPI says it. Columns of tables come from `schemas`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, create_model

from her2batch.store import schemas
from her2batch.store.schemas import Column


def _json_type(arrow: pa.DataType) -> Any:
    """The Python type that an Arrow type is in JSON."""
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
    kept = (one for one in columns if one.name not in leave_out)
    return {one.name: (_json_type(one.type) | None, Field(None, description=one.description)) for one in kept}


SlideRow = create_model(
    "SlideRow", __doc__="A row of the table slides.", **_model_fields(schemas.SLIDE_COLUMNS, ("files",))
)

Prediction = create_model(
    "Prediction",
    __doc__="A row of the table predictions.",
    bundle=(str, Field(description="membrane, or the id of the bundle that said it")),
    **_model_fields(schemas.PREDICTION_COLUMNS, ("slide_id", "patient_id")),
)

ReviewEntry = create_model(
    "ReviewEntry",
    __doc__="An entry of the table reviews.",
    **_model_fields(schemas.REVIEW_COLUMNS, ("salt", "body_sha256")),
)


class Strict(BaseModel):
    """A body that is sent; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class NewReview(Strict):
    """A verdict on a prediction, as the reviewer saw it."""

    slide_id: str
    reviewer: str = Field(min_length=1, max_length=100, description="who says it")
    bundle: str = Field(description="of the prediction: membrane, or a bundle's id")
    task: str
    method: str
    predicted: str = Field(description="the class that was seen: refused with 409 if the prediction is another by now")
    verdict: Literal["agree", "change", "needs-ish"]
    label: str | None = Field(None, description="with `change`: the class in the reviewer's eyes")
    comment: str = Field("", max_length=2000)


class NewSlide(Strict):
    """A slide to read."""

    path: str = Field(min_length=1, max_length=4096, description="the slide's file, under the folder given by --scans")


class JobStatus(BaseModel):
    """What has become of a slide that was posted."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    waiting: str | None = Field(None, description="why it waits: another run holds the cohort, say")
    slide_id: str | None = Field(None, description="once done, and once failed where the slide has a row")
    error_code: str | None = None
    error: str | None = Field(None, description="what failed, and the remedy")
    queued: datetime
    started: datetime | None = None
    ended: datetime | None = None
    slide: SlideDetail | None = Field(None, description="once done: the same as GET /slides/{slide_id}")


class SlideSummary(BaseModel):
    """A slide in the list."""

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
    review: bool = Field(description="a prediction asks for a look, or the slide failed, and nobody has said anything")
    reasons: list[str] = Field(description="why, in stable words")
    verdict: str | None = Field(description="the newest verdict on it")
    label: str | None = Field(description="the class of the newest verdict")


class SlidePage(BaseModel):
    """A page of the list."""

    total: int = Field(description="slides that match, on all pages")
    offset: int
    slides: list[SlideSummary]


class SlideDetail(BaseModel):
    """One slide: its row, what is predicted of it and why, and where its pictures and overlays are."""

    row: SlideRow  # type: ignore[valid-type]
    predictions: list[Prediction]  # type: ignore[valid-type]
    shares: dict[str, float] | None = Field(description="membrane figures that the rule judged; see the table membrane")
    reviews: list[ReviewEntry]  # type: ignore[valid-type]
    deepzoom: str | None = Field(description="address of its Deep Zoom descriptor; null without a pyramid")
    tile_size: int | None = Field(description="edge of a Deep Zoom tile, px")
    thumbnail: str | None = Field(description="address of its overview picture")
    overlays: list[str] = Field(description="what there is: tiles, membrane, attention, patches")


class CohortFacts(BaseModel):
    """What is served."""

    name: str
    slides: int
    posting: bool = Field(description="whether slides can be posted")
    tasks: dict[str, list[str]] = Field(description="task → its classes")


class Problem(BaseModel):
    """What went wrong, in the word the status says and in a sentence."""

    detail: str


JobStatus.model_rebuild()
