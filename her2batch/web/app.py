"""The application: pages, pictures and the REST API over one cohort. ASGI; it knows no Ray.

Whatever an address names is looked up in the store's own rows, never taken for a path.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from her2batch.errors import Her2BatchError, InputError
from her2batch.store import reviews
from her2batch.store.cohort import Cohort, Row
from her2batch.tasks import CLASSES
from her2batch.web import overlays
from her2batch.web.api_models import (
    CohortFacts,
    JobStatus,
    NewReview,
    NewSlide,
    Problem,
    ReviewEntry,
    SlideDetail,
    SlidePage,
)
from her2batch.web.auth import AuthMiddleware
from her2batch.web.catalog import Catalog
from her2batch.web.ingest_jobs import checked
from her2batch.web.listing import SlideFilter, chosen

STATIC = Path(__file__).parent / "static"

ABOUT = """Slides of one cohort, what is predicted of them and why, and what pathologists say of it.
Every call needs the header Authorization: Bearer TOKEN. For research use."""

NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem}}

Ask = Callable[..., Awaitable[Any]]
"""A question to the desk, which may be in another process: method's name, arguments."""


@dataclass(frozen=True)
class ServerState:
    """What an application serves, and from whom it takes what."""

    catalog: Catalog
    ask: Ask
    scans: Path | None = None  # whose slides may be posted


def create_app(cohort: Path, token: str, ask: Ask, scans: Path | None = None) -> ASGIApp:
    """The application behind its gate. Raises StoreError when there is no cohort."""
    app = FastAPI(
        title="her2batch",
        version="1",
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        responses={401: {"model": Problem, "description": "No token, or another server's"}},
    )
    app.state.served = ServerState(Catalog(Cohort(cohort)), ask, scans)
    app.include_router(api, prefix="/api/v1")
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for address, page in (("/", "index.html"), ("/api/v1/docs", "api.html")):
        app.add_route(address, _page(STATIC / page))
    app.add_exception_handler(Her2BatchError, _said)
    return AuthMiddleware(app, token, partial(ask, "spend"))


def _page(file: Path) -> Callable[[Request], FileResponse]:
    """What answers with a file."""
    return lambda _: FileResponse(file)


def _served(request: Request) -> ServerState:
    served: ServerState = request.app.state.served
    return served


def _catalog(request: Request) -> Catalog:
    return _served(request).catalog


Here = Annotated[ServerState, Depends(_served)]
Known = Annotated[Catalog, Depends(_catalog)]
api = APIRouter()


def _said(_: Request, error: Exception) -> JSONResponse:
    """An error of ours, as it is said on the command line: a wrong name is 404, a slide that can't be read 500."""
    status = 404 if isinstance(error, InputError) else 500
    return JSONResponse({"detail": str(error)}, status)


# -- slides ------------------------------------------------------------------------------------------------------------


@api.get("/cohort")
def cohort_facts(here: Here) -> CohortFacts:
    """What is served."""
    tasks = {task: list(classes) for task, classes in CLASSES.items()}
    catalog = here.catalog
    return CohortFacts(
        name=catalog.cohort.root.name, slides=len(catalog.rows()), posting=here.scans is not None, tasks=tasks
    )


@api.get("/slides")
def list_slides(catalog: Known, wanted: Annotated[SlideFilter, Query()]) -> SlidePage:
    """The slides that are asked for, page by page."""
    found = chosen(catalog.lines(), wanted)
    page = found[wanted.offset : wanted.offset + wanted.limit]
    return SlidePage.model_validate({"total": len(found), "offset": wanted.offset, "slides": page})


@api.get("/slides/{slide_id}", responses=NOT_FOUND)
def one_slide(catalog: Known, slide_id: str) -> SlideDetail:
    """One slide with its evidence."""
    return detail(catalog, slide_id)


def detail(catalog: Catalog, slide_id: str) -> SlideDetail:
    """A slide's row, predictions, membrane figures, reviews, and what there is to look at."""
    row = catalog.row(slide_id)
    here = f"/api/v1/slides/{slide_id}"
    there = catalog.has_pyramid(row)
    kinds = ("tiles", "membrane", "attention", "patches")
    picture = row["status"] == "done"
    return SlideDetail.model_validate(
        {
            "row": {name: value for name, value in row.items() if name != "files"},
            "predictions": catalog.predictions(slide_id),
            "shares": catalog.shares(slide_id),
            "reviews": [one for one in catalog.reviews() if one["slide_id"] == slide_id],
            "deepzoom": f"{here}/deepzoom.dzi" if there else None,
            "tile_size": catalog.zoom(slide_id).tile if there else None,
            "thumbnail": f"{here}/thumbnail.jpg" if picture else None,
            "overlays": [kind for kind in kinds if catalog.named(slide_id, kind)],
        }
    )


@api.get("/slides/{slide_id}/tiles", responses=NOT_FOUND)
def slide_tiles(catalog: Known, slide_id: str) -> Response:
    """Tiles by column: tile, x, y, size (level-0 px), tissue, dab, blur, and the shares of the table membrane."""
    table = _table(catalog, "tiles", slide_id)
    return _json(overlays.tiles(table, catalog.table("membrane", slide_id)))


@api.get("/slides/{slide_id}/outline", responses=NOT_FOUND)
def slide_outline(catalog: Known, slide_id: str) -> Response:
    """Rings round the tiles: a list of x, y corners each, level-0 px."""
    return _json(overlays.outline(_table(catalog, "tiles", slide_id)))


@api.get("/slides/{slide_id}/attention", responses=NOT_FOUND)
def slide_attention(catalog: Known, slide_id: str) -> Response:
    """For each head of a bundle that attends to tiles: x, y, size and attention, of the slide's largest: 0–1."""
    found = []
    for bundle in catalog.named(slide_id, "attention"):
        table = _table(catalog, f"attention/{bundle}", slide_id)
        heads = overlays.attention(table, _table(catalog, "tiles", slide_id))
        found += [{"bundle": bundle, **one} for one in heads]
    return _json(found)


@api.get("/slides/{slide_id}/patches", responses=NOT_FOUND)
def slide_patches(catalog: Known, slide_id: str) -> Response:
    """For each bundle and resolution: x, y, size of its patches, their likeliest class (0 … 3) and its probability."""
    found = []
    for bundle in catalog.named(slide_id, "patches"):
        parts = overlays.patches(_table(catalog, f"patches/{bundle}", slide_id))
        found += [{"bundle": bundle, **one} for one in parts]
    return _json(found)


def _table(catalog: Catalog, name: str, slide_id: str) -> Any:
    table = catalog.table(name, slide_id)
    if table is None:
        raise HTTPException(404, f"there is no table {name} of this slide")
    return table


def _json(data: Any) -> Response:
    return Response(json.dumps(data, separators=(",", ":")), media_type="application/json")


# -- pictures ----------------------------------------------------------------------------------------------------------

JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}, **NOT_FOUND}


@api.get("/slides/{slide_id}/deepzoom.dzi", responses=NOT_FOUND)
def deepzoom(catalog: Known, slide_id: str) -> Response:
    """The Deep Zoom descriptor."""
    return Response(catalog.zoom(slide_id).descriptor(), media_type="application/xml")


@api.get("/slides/{slide_id}/deepzoom_files/{level}/{column}_{row}.jpg", responses=JPEG, response_class=Response)
def deepzoom_tile(catalog: Known, slide_id: str, level: int, column: int, row: int) -> Response:
    """A Deep Zoom tile: a stored chunk as it is, or what is put together from the pyramid; white without tissue."""
    try:
        return Response(catalog.tile(slide_id, level, column, row), media_type="image/jpeg")
    except ValueError as error:
        raise HTTPException(404, str(error)) from error


@api.get("/slides/{slide_id}/thumbnail.jpg", responses=JPEG, response_class=Response)
def thumbnail(catalog: Known, slide_id: str) -> Response:
    """The stored overview picture, long edge 2048 px at most."""
    return Response(catalog.thumbnail(slide_id), media_type="image/jpeg")


# -- reviews -----------------------------------------------------------------------------------------------------------


@api.get("/reviews")
def list_reviews(
    catalog: Known,
    slide_id: str | None = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> list[ReviewEntry]:
    """Verdicts in the order in which they were given."""
    found = [one for one in catalog.reviews() if slide_id in (None, one["slide_id"])]
    return [ReviewEntry.model_validate(one) for one in found[offset : offset + limit]]


@api.post("/reviews", status_code=201, responses={**NOT_FOUND, 409: {"model": Problem}, 422: {"model": Problem}})
def add_review(catalog: Known, given: NewReview) -> ReviewEntry:
    """Give a verdict on a prediction. It can't be taken back: the newest one of a slide counts."""
    seen = {name: getattr(given, name) for name in ("bundle", "task", "method")}
    predictions = catalog.predictions(catalog.row(given.slide_id)["slide_id"])
    now = [one["predicted"] for one in predictions if seen.items() <= one.items()]
    if given.predicted not in now:
        words = f"the prediction is {now[0]} by now: look again" if now else "there is no such prediction"
        raise HTTPException(409, words)
    label = given.predicted if given.verdict == "agree" else given.label
    try:
        entry = reviews.append_review(catalog.cohort, reviews.Review(**{**given.model_dump(), "label": label}))
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    return ReviewEntry.model_validate(entry)


# -- posting -----------------------------------------------------------------------------------------------------------


@api.post("/slides", status_code=202, responses={403: {"model": Problem}})
async def post_slide(here: Here, given: NewSlide, answer: Response) -> JobStatus:
    """Have a slide read into the cohort. Its ticket says what becomes of it."""
    try:
        found = await here.ask("submit", str(checked(given.path, here.scans)))
    except InputError as error:
        raise HTTPException(403, str(error)) from error
    answer.headers["location"] = f"/api/v1/tickets/{found['id']}"
    return JobStatus.model_validate(found)


@api.get("/tickets/{ticket}", responses=NOT_FOUND)
async def one_ticket(here: Here, ticket: str) -> JobStatus:
    """What has become of a posted slide; its result once it is done."""
    found: Row | None = await here.ask("look", ticket)
    if found is None:
        raise HTTPException(404, "there is no such ticket; tickets end with the server, slides stay in the cohort")
    if found["state"] == "done" and found.get("slide_id"):
        here.catalog.stale()
        found = {**found, "slide": detail(here.catalog, found["slide_id"])}
    return JobStatus.model_validate(found)
