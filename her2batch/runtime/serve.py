"""The page of a cohort on Ray Serve: copies of the application, and one desk that reads what is posted.

Everything is bound to 127.0.0.1. The token comes from HER2BATCH_TOKEN, or is made anew and lies in a file that only
its owner can read; the link that is printed works once.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from her2batch.errors import STOPPED, InputError
from her2batch.files.locations import to_location
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pseudonyms import Pseudonymizer, read_key

HOST = "127.0.0.1"

LEAST_TOKEN = 20
"""Characters of a token that was given."""

APP = "her2batch"

TOKEN = "HER2BATCH_TOKEN"  # noqa: S105  (the variable's name)

BUSY = 64
"""Requests that one copy works on at a time."""


@dataclass(frozen=True)
class Offer:
    """What is served. scans: folder whose slides may be posted; None: none may.  bundle: what scores them."""

    cohort: Path
    scans: Path | None = None
    bundle: Path | None = None
    key: Path | None = None
    weights: Path | None = None


Tell = Callable[[str, Path], None]
"""Called once it answers: the link, and the file that holds the token."""


def serve(offer: Offer, port: int, resources: Resources, tell: Tell) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code, 130.

    resources.workers: copies of the application.  Raises InputError, StoreError before anything listens.
    """
    check(offer, port)
    code, token = secrets.token_urlsafe(24), _token()
    with connect(_for_ingest(resources)) as session, tempfile.TemporaryDirectory(prefix="her2batch-") as folder:
        file = Path(folder) / "token"
        file.touch(mode=0o600)
        file.write_text(token)
        start(session, offer, port, resources.workers or 1, token, (code,))
        try:
            tell(f"http://{HOST}:{port}/?token={code}", file)
            while not session.stopped.wait(1.0):
                session.check()
        finally:
            stop()
    return STOPPED


def check(offer: Offer, port: int) -> None:
    """Refuse what can't be served, before anything listens. Raises InputError, StoreError."""
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "starlette")):
        raise InputError("the page needs packages that aren't here", None, "pip install 'her2batch[serve]'")
    cohort = Cohort(to_location(offer.cohort))
    plan = cohort.plan()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"port {port} can't be used ({error.strerror})", None, "choose another --port") from error
    if offer.scans is None:
        return
    if not offer.scans.is_dir():
        raise InputError("there is no such folder", offer.scans, "give --scans the folder that the scanner writes to")
    from her2batch.models.bundle import read_bundle

    bundle = read_bundle(offer.bundle).id if offer.bundle is not None else None
    if plan.bundle not in (None, bundle):
        remedy = f"give --bundle the folder of bundle {plan.bundle}"
        raise InputError("its slides were read with a bundle", cohort.root, remedy)
    pseudonyms = any(row["path"] is None for row in cohort.rows().values())
    if pseudonyms != (offer.key is not None) and (pseudonyms or cohort.rows()):
        words = "has pseudonyms" if pseudonyms else "has no pseudonyms"
        remedy = "give --pseudonymize KEYFILE" if pseudonyms else "leave --pseudonymize away"
        raise InputError(words, cohort.root, remedy)


def start(session: RaySession, offer: Offer, port: int, copies: int, token: str, codes: tuple[str, ...] = ()) -> None:
    """Begin to listen. The desk is one, the application has `copies`; none holds a CPU, which ingest needs."""
    from ray import serve as ray_serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": HOST, "port": port}, logging_config=quiet)
    light = {"num_cpus": 0}
    desk = ray_serve.deployment(
        name="Desk", num_replicas=1, max_ongoing_requests=BUSY, ray_actor_options=light, logging_config=quiet
    )(DeskActor)
    page = ray_serve.deployment(
        name="Page", num_replicas=copies, max_ongoing_requests=BUSY, ray_actor_options=light, logging_config=quiet
    )(ray_serve.ingress()(PageActor))
    work = partial(read_one, offer) if offer.scans is not None else None
    local = session.head is None
    bound = page.bind(offer, token, desk.bind(work, codes, local), local)
    ray_serve.run(bound, name=APP, route_prefix="/", logging_config=quiet)


def stop() -> None:
    """Listen no more. A slide that is being read is left; the cohort's next ingest takes it up."""
    from ray import serve as ray_serve

    ray_serve.shutdown()  # type: ignore[no-untyped-call]


def _on_loopback() -> None:
    """Have this replica listen on loopback alone. Serve's server between replicas binds to all interfaces, and has no
    setting for it (Ray 2.60; it asks for the token). Raises AttributeError in a Ray that does it another way: then
    nothing is served, rather than to everybody.
    """  # fmt: skip
    replica: Any = importlib.import_module("ray.serve._private.replica")
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: bind(server, f"{HOST}:0")


class DeskActor:
    """The desk in a process of its own."""

    def __init__(self, work: Any, codes: tuple[str, ...], local: bool) -> None:
        from her2batch.web.ingest_jobs import IngestJobs

        if local:
            _on_loopback()
        self._desk = IngestJobs(work, codes)

    def redeem_code(self, code: str) -> bool:
        """See IngestJobs."""
        return self._desk.redeem_code(code)

    def submit(self, path: str) -> dict[str, Any]:
        """See IngestJobs."""
        return self._desk.submit(path)

    def status(self, job_id: str) -> dict[str, Any] | None:
        """See IngestJobs."""
        return self._desk.status(job_id)


class PageActor:
    """The application in a process of its own; the desk is asked through Serve."""

    def __init__(self, offer: Offer, token: str, desk: Any, local: bool) -> None:
        if local:
            _on_loopback()
        self._offer, self._token, self._desk = offer, token, desk

    async def _ask(self, method: str, *args: Any) -> Any:
        return await getattr(self._desk, method).remote(*args)

    def __serve_build_asgi_app__(self) -> Any:
        from her2batch.web.app import create_app

        return create_app(to_location(self._offer.cohort), self._token, self._ask, self._offer.scans)


def read_one(offer: Offer, path: Path) -> dict[str, Any]:
    """Read one slide into the cohort, as the last ingest would, and score it: slide_id, error_code, error.

    Raises StoreError while somebody else writes to the cohort.
    """
    from her2batch.runtime.ingest import IngestRequest, ingest
    from her2batch.runtime.score import score

    cohort = Cohort(to_location(offer.cohort))
    plan: Plan = cohort.plan()
    own = offer.bundle if plan.bundle is not None else None
    order = IngestRequest(path.parent, cohort.root, own, None, offer.weights, offer.key, retry_failed=True, only=path)
    summary = ingest(order, plan.model_copy(update={"bundle": None}), Resources())
    if summary.slides:
        row = summary.slides[0]
        if offer.bundle is not None and own is None and row["status"] == "done":
            score(cohort.root, offer.bundle, Resources())
        return {name: row[name] for name in ("slide_id", "error_code", "error")}
    return _other(cohort, path, offer)


def _other(cohort: Cohort, path: Path, offer: Offer) -> Row:
    """What became of a file that is no slide of its own: the slide it is a copy of, or why it is none."""
    names = Pseudonymizer(read_key(offer.key) if offer.key is not None else None)
    entry = next((one for one in cohort.read_intake() if one["path"] == names.path(path)), None)
    if entry is not None and entry["outcome"] == "duplicate":
        return {"slide_id": entry["slide_id"], "error_code": None, "error": None}
    why = entry["reason"] if entry is not None else "was removed from this cohort and must not come back"
    return {"slide_id": None, "error_code": "not-a-slide", "error": str(why)}


def _token() -> str:
    given = os.environ.get(TOKEN)
    if given is None:
        return secrets.token_urlsafe(32)
    if len(given) < LEAST_TOKEN:
        raise InputError(f"{TOKEN} has {len(given)} characters, it needs {LEAST_TOKEN}", None, "choose a longer one")
    return given


def _for_ingest(resources: Resources) -> Resources:
    """Copies of a page are no workers of an ingest: these are as many as there are cores."""
    return resources.model_copy(update={"workers": None})
