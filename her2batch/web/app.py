"""The ASGI application: web pages, images and the REST API of one cohort. It is independent of Ray.

Names in an address are looked up in the rows of the store and are never used as paths.
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

from her2batch.assessment import UNCALIBRATED_NOTE
from her2batch.errors import Her2BatchError, InputError
from her2batch.slides.slide import Box
from her2batch.store import reviews
from her2batch.store.cohort import Cohort, Row
from her2batch.tasks import CLASSES
from her2batch.web import cell_overlay, overlays
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
from her2batch.web.ingest_jobs import resolve_scan_path
from her2batch.web.listing import SlideFilter, assessment_words, count_slides, filter_slides, verdict_classes
from her2batch.web.proxy import NO_PROXY, ProxyAccess, ProxyUser
from her2batch.web.report_files import (
    REPORT,
    SLIDE_PAGES,
    has_nights,
    has_report,
    report_address,
    serve_night,
    serve_report,
)

STATIC = Path(__file__).parent / "static"

API_DESCRIPTION = """Slides of one cohort, their predictions with the reasons, and the reviews of pathologists.
Every request needs the header Authorization: Bearer TOKEN. For research use."""

NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem}}

CallJobs = Callable[..., Awaitable[Any]]
"""Calls a method of `IngestJobs`, which may run in another process: name of the method, arguments."""


@dataclass(frozen=True)
class ServerState:
    """What the application serves.

    call_jobs: access to the ingest jobs.  scans: folder whose slides may be posted; None: no slide may be.  prefix:
    path under which a proxy shows the server.
    """

    catalog: Catalog
    call_jobs: CallJobs
    scans: Path | None = None
    prefix: str = ""


def create_app(
    cohort: Path, token: str, call_jobs: CallJobs, scans: Path | None = None, access: ProxyAccess = NO_PROXY
) -> ASGIApp:
    """Return the application with its authentication. Raises StoreError when there is no cohort."""
    app = FastAPI(
        title="her2batch",
        version="1",
        description=API_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        responses={401: {"model": Problem, "description": "The token is missing or wrong"}},
    )
    app.state.server_state = ServerState(Catalog(Cohort(cohort)), call_jobs, scans, access.prefix)
    app.include_router(api, prefix="/api/v1")
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for address, page in (("/", "index.html"), ("/api/v1/docs", "api.html")):
        app.add_route(address, _serve_file(STATIC / page))
    catalog = app.state.server_state.catalog
    for address in (f"/{REPORT}", f"/{SLIDE_PAGES}/{{slide_id}}.html"):
        app.add_route(address, partial(serve_report, catalog))
    for address in ("/nights/", "/nights/{night}/report.html"):
        app.add_route(address, partial(serve_night, catalog))
    app.add_exception_handler(Her2BatchError, _error_response)
    return AuthMiddleware(app, token, partial(call_jobs, "redeem_code"), access)


def _serve_file(file: Path) -> Callable[[Request], FileResponse]:
    """Return a route that serves a file."""
    return lambda _: FileResponse(file)


def _server_state(request: Request) -> ServerState:
    state: ServerState = request.app.state.server_state
    return state


def _catalog(request: Request) -> Catalog:
    return _server_state(request).catalog


StateDep = Annotated[ServerState, Depends(_server_state)]
CatalogDep = Annotated[Catalog, Depends(_catalog)]


def _user(request: Request) -> ProxyUser | None:
    """Return the user whom a proxy has authenticated; None for whoever has the token."""
    user: ProxyUser | None = request.scope["state"]["user"]
    return user


UserDep = Annotated[ProxyUser | None, Depends(_user)]
api = APIRouter()


def _error_response(_: Request, error: Exception) -> JSONResponse:
    """Return an error message as JSON: status 404 for an unknown name, 500 for data that can't be read."""
    status = 404 if isinstance(error, InputError) else 500
    return JSONResponse({"detail": str(error)}, status)


# -- slides ------------------------------------------------------------------------------------------------------------


@api.get("/cohort")
def cohort_facts(state: StateDep, user: UserDep) -> CohortFacts:
    """The cohort that is served."""
    tasks = {task: list(classes) for task, classes in CLASSES.items()}
    catalog = state.catalog
    return CohortFacts(
        name=catalog.cohort.root.name, slides=len(catalog.rows()), posting=state.scans is not None, tasks=tasks,
        report=has_report(catalog.cohort), nights=has_nights(catalog.cohort),
        user=user.name if user is not None else None, may_review=user is None or user.is_reviewer,
        note=UNCALIBRATED_NOTE if any(one["uncalibrated"] for one in catalog.slide_summaries()) else None,
    )  # fmt: skip


@api.get("/slides")
def list_slides(catalog: CatalogDep, slide_filter: Annotated[SlideFilter, Query()]) -> SlidePage:
    """The slides that match the filter, page by page."""
    summaries = catalog.slide_summaries()
    matching = filter_slides(summaries, slide_filter)
    start = slide_filter.offset
    page = matching[start : start + slide_filter.limit]
    counts = count_slides(summaries)
    return SlidePage.model_validate({"total": len(matching), "offset": start, "slides": page, **counts})


@api.get("/slides/{slide_id}", responses=NOT_FOUND)
def one_slide(state: StateDep, slide_id: str) -> SlideDetail:
    """One slide with its evidence."""
    return slide_detail(state.catalog, slide_id, state.prefix)


def slide_detail(catalog: Catalog, slide_id: str, prefix: str = "") -> SlideDetail:
    """Return a slide's row, predictions, membrane shares, reviews, and the addresses of its images and overlays."""
    row = catalog.row(slide_id)
    address = f"{prefix}/api/v1/slides/{slide_id}"
    report = report_address(catalog.cohort, slide_id)
    has_pyramid = catalog.has_pyramid(row)
    kinds = ("tiles", "membrane", "attention", "patches", "saliency", "cells")
    has_thumbnail = row["status"] == "done"
    return SlideDetail.model_validate(
        {
            "row": {name: value for name, value in row.items() if name != "files"},
            "predictions": catalog.predictions(slide_id),
            "assessment": assessment_words(catalog.assessment(slide_id)),
            "case": catalog.case_slides(slide_id),
            "report": f"{prefix}{report}" if report is not None else None,
            "shares": catalog.shares(slide_id),
            "reviews": [review for review in catalog.reviews() if review["slide_id"] == slide_id],
            "deepzoom": f"{address}/deepzoom.dzi" if has_pyramid else None,
            "tile_size": catalog.deep_zoom(slide_id).tile if has_pyramid else None,
            "thumbnail": f"{address}/thumbnail.jpg" if has_thumbnail else None,
            "overlays": [kind for kind in kinds if catalog.table_names(slide_id, kind)]
            + (["pieces"] if catalog.has_controls(row) else []),
        }
    )


@api.get("/slides/{slide_id}/tiles", responses=NOT_FOUND)
def slide_tiles(catalog: CatalogDep, slide_id: str) -> Response:
    """Tiles by column: tile, x, y, size (level-0 px), tissue, dab, blur, and the shares of the table membrane."""
    table = _require_table(catalog, "tiles", slide_id)
    return _json_response(overlays.tile_overlay(table, catalog.table("membrane", slide_id)))


@api.get("/slides/{slide_id}/outline", responses=NOT_FOUND)
def slide_outline(catalog: CatalogDep, slide_id: str) -> Response:
    """Outline of the tiles: a list of rings, each a list of [x, y] corners in level-0 px."""
    return _json_response(overlays.tissue_outline(_require_table(catalog, "tiles", slide_id)))


@api.get("/slides/{slide_id}/pieces", responses=NOT_FOUND)
def slide_pieces(catalog: CatalogDep, slide_id: str) -> Response:
    """Pieces of tissue: number, role, expected and own class, corner (level-0 px), and the rings of its outline."""
    tiles = _require_table(catalog, "tiles", slide_id)
    return _json_response(overlays.piece_overlays(_require_table(catalog, "pieces", slide_id), tiles))


@api.get("/slides/{slide_id}/attention", responses=NOT_FOUND)
def slide_attention(catalog: CatalogDep, slide_id: str) -> Response:
    """For each MIL head: x, y, size and attention of the tiles. Attention is relative to the largest, 0–1."""
    tiles = _require_table(catalog, "tiles", slide_id)
    return _bundle_layers(catalog, slide_id, "attention", lambda table: overlays.attention_overlays(table, tiles))


@api.get("/slides/{slide_id}/patches", responses=NOT_FOUND)
def slide_patches(catalog: CatalogDep, slide_id: str) -> Response:
    """For each bundle and resolution: x, y, size of the patches, most probable class (0–3) and its probability."""
    return _bundle_layers(catalog, slide_id, "patches", overlays.patch_overlays)


@api.get("/slides/{slide_id}/saliency", responses=NOT_FOUND)
def slide_saliency(catalog: CatalogDep, slide_id: str) -> Response:
    """For each network of thumbnails: x, y, size (level-0 px) and saliency of the places of its map, 0–1."""
    return _bundle_layers(catalog, slide_id, "saliency", overlays.saliency_overlays)


def _bundle_layers(catalog: Catalog, slide_id: str, kind: str, layers_of: Callable[..., overlays.Layers]) -> Response:
    """The layers of a slide's tables of one kind, each with the bundle that made it."""
    tables = {name: _require_table(catalog, f"{kind}/{name}", slide_id) for name in catalog.table_names(slide_id, kind)}
    return _json_response([{"bundle": name, **layer} for name, table in tables.items() for layer in layers_of(table)])


@api.get("/slides/{slide_id}/cells", responses=NOT_FOUND)
def slide_cells(
    catalog: CatalogDep,
    slide_id: str,
    x: float,
    y: float,
    width: Annotated[float, Query(gt=0)],
    height: Annotated[float, Query(gt=0)],
    limit: Annotated[int, Query(ge=100, le=cell_overlay.MAX_CELLS)] = cell_overlay.MAX_CELLS,
) -> Response:
    """Cells in a box (level-0 px), by column: cell, x, y, radius_um, category, tumour.

    cells: their number.  one_of: if there are more than `limit`, one of this many is sent.
    """
    table = _require_file(catalog, "cells", slide_id)
    return _json_response(cell_overlay.cells_in_view(table, (x, y, width, height), limit))


@api.get("/slides/{slide_id}/cells/outlines", responses=NOT_FOUND)
def slide_cell_outlines(
    catalog: CatalogDep,
    slide_id: str,
    x: int,
    y: int,
    width: Annotated[int, Query(gt=0)],
    height: Annotated[int, Query(gt=0)],
) -> Response:
    """Outlines of the cells in a small box (level-0 px): cell, and outline, a flat list of x, y, … for each."""
    _require_file(catalog, "cells", slide_id)
    try:
        return _json_response(catalog.cell_outlines(slide_id, Box(x, y, width, height)))
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


@api.get("/slides/{slide_id}/cells/{cell}", responses=NOT_FOUND)
def slide_cell(catalog: CatalogDep, slide_id: str, cell: int) -> Response:
    """All figures of one cell, as in the table cells."""
    found = cell_overlay.one_cell(_require_file(catalog, "cells", slide_id), cell)
    if found is None:
        raise HTTPException(404, f"this slide has no cell {cell}")
    return _json_response(found)


def _require_file(catalog: Catalog, name: str, slide_id: str) -> Path:
    path = catalog.table_file(name, slide_id)
    if path is None:
        raise HTTPException(404, f"this slide has no table {name}")
    return path


def _require_table(catalog: Catalog, name: str, slide_id: str) -> Any:
    table = catalog.table(name, slide_id)
    if table is None:
        raise HTTPException(404, f"this slide has no table {name}")
    return table


def _json_response(data: Any) -> Response:
    return Response(json.dumps(data, separators=(",", ":")), media_type="application/json")


# -- images ------------------------------------------------------------------------------------------------------------

JPEG_RESPONSES: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}, **NOT_FOUND}


@api.get("/slides/{slide_id}/deepzoom.dzi", responses=NOT_FOUND)
def deepzoom(catalog: CatalogDep, slide_id: str) -> Response:
    """The Deep Zoom descriptor."""
    return Response(catalog.deep_zoom(slide_id).descriptor(), media_type="application/xml")


@api.get(
    "/slides/{slide_id}/deepzoom_files/{level}/{column}_{row}.jpg", responses=JPEG_RESPONSES, response_class=Response
)
def deepzoom_tile(catalog: CatalogDep, slide_id: str, level: int, column: int, row: int) -> Response:
    """A Deep Zoom tile: a stored chunk, or computed from the pyramid; white where there is no tissue."""
    try:
        return Response(catalog.tile(slide_id, level, column, row), media_type="image/jpeg")
    except ValueError as error:
        raise HTTPException(404, str(error)) from error


@api.get("/slides/{slide_id}/thumbnail.jpg", responses=JPEG_RESPONSES, response_class=Response)
def thumbnail(catalog: CatalogDep, slide_id: str, small: bool = False) -> Response:
    """The stored thumbnail, whose long edge has at most 2048 px; small: at most 160 px."""
    jpeg = catalog.small_thumbnail(slide_id) if small else catalog.thumbnail(slide_id)
    return Response(jpeg, media_type="image/jpeg")


# -- reviews -----------------------------------------------------------------------------------------------------------


@api.get("/reviews")
def list_reviews(
    catalog: CatalogDep,
    slide_id: str | None = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> list[ReviewEntry]:
    """Reviews in the order in which they were entered."""
    entries = [review for review in catalog.reviews() if slide_id in (None, review["slide_id"])]
    return [ReviewEntry.model_validate(review) for review in entries[offset : offset + limit]]


@api.post("/reviews", status_code=201, responses={**NOT_FOUND, 409: {"model": Problem}, 422: {"model": Problem}})
def add_review(catalog: CatalogDep, review: NewReview, user: UserDep) -> ReviewEntry:
    """Enter a review of a prediction. The newest one of a slide counts.

    No review is deleted. Its author can supersede it by another one that states the reason. A user whom the proxy has
    authenticated is the reviewer, whatever name the request contains.
    """
    seen = {name: getattr(review, name) for name in ("bundle", "task", "method")}
    target = catalog.assessment(review.slide_id).verdict_target
    predictions = [*catalog.predictions(review.slide_id), *([target] if target is not None else [])]
    matching = [row for row in predictions if seen.items() <= row.items()]
    current = [row["predicted"] for row in matching]
    if review.predicted not in current:
        if not current:
            raise HTTPException(409, "there is no such prediction")
        raise HTTPException(409, f"the prediction has changed to {current[0]}: load the slide again")
    own = {"reviewer": user.name} if user is not None else {}
    label = review.predicted if review.verdict == "agree" else review.label
    try:
        entered = reviews.Review(**{**review.model_dump(), **own, "label": label})
        entry = reviews.append_review(catalog.cohort, entered, verdict_classes(matching[0]))
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    return ReviewEntry.model_validate(entry)


# -- ingest jobs ------------------------------------------------------------------------------------------------------


@api.post("/slides", status_code=202, responses={403: {"model": Problem}})
async def post_slide(state: StateDep, slide: NewSlide, response: Response) -> JobStatus:
    """Ingest a slide. The ticket in the response reports its status."""
    try:
        job = await state.call_jobs("submit", str(resolve_scan_path(slide.path, state.scans)))
    except InputError as error:
        raise HTTPException(403, str(error)) from error
    response.headers["location"] = f"{state.prefix}/api/v1/tickets/{job['id']}"
    return JobStatus.model_validate(job)


@api.get("/tickets/{ticket}", responses=NOT_FOUND)
async def one_ticket(state: StateDep, ticket: str) -> JobStatus:
    """Status of a posted slide, with its result once it is done."""
    job: Row | None = await state.call_jobs("status", ticket)
    if job is None:
        raise HTTPException(
            404, "there is no such ticket. Tickets are lost when the server stops; ingested slides stay in the cohort."
        )
    if job["state"] == "done" and job.get("slide_id"):
        state.catalog.invalidate()
        job = {**job, "slide": slide_detail(state.catalog, job["slide_id"], state.prefix)}
    return JobStatus.model_validate(job)
