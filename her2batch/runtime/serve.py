"""Serves the web page and API of a cohort with Ray Serve: replicas of the application, and one queue of ingest jobs.

Everything is bound to 127.0.0.1. The token comes from HER2BATCH_TOKEN, or a new one is written to a file that only its
owner can read. The printed link works once.
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
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from her2batch.errors import STOPPED, InputError, install_extra
from her2batch.files.locations import to_location
from her2batch.pipeline.resume.plan_change import check_pseudonyms
from her2batch.runtime.ray_session import RaySession, connect
from her2batch.settings import Plan, Resources
from her2batch.store.cohort import Cohort, Row
from her2batch.store.pseudonyms import Pseudonymizer, read_key
from her2batch.web.proxy import NO_PROXY, ProxyAccess, check_access

HOST = "127.0.0.1"

MIN_TOKEN_LENGTH = 20
"""Least characters of a token from the environment."""

APP = "her2batch"

TOKEN_VARIABLE = "HER2BATCH_TOKEN"  # noqa: S105  (the variable's name)

SECRET_VARIABLE = "HER2BATCH_PROXY_SECRET"  # noqa: S105  (the variable's name)

MAX_REQUESTS = 64
"""Requests that one replica works on at a time."""


@dataclass(frozen=True)
class ServeRequest:
    """What to serve.

    scans: folder whose slides may be posted; None: none may.  bundle: that scores them.  access: of a reverse proxy,
    whose secret is read from the environment.
    """

    cohort: Path
    scans: Path | None = None
    bundle: Path | None = None
    key: Path | None = None
    weights: Path | None = None
    access: ProxyAccess = NO_PROXY


AnnounceCallback = Callable[[str, Path], None]
"""Called when the server answers, with the link and the file that holds the token."""


def serve(request: ServeRequest, port: int, resources: Resources, announce: AnnounceCallback) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code, 130.

    resources.workers: replicas of the application.  Raises InputError, StoreError before a port is opened.
    """
    request = replace(request, access=replace(request.access, secret=os.environ.get(SECRET_VARIABLE, "")))
    check_request(request, port)
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn: the peer of a request is who connects, not what a header says
    code, token = secrets.token_urlsafe(24), _token()
    with connect(_for_ingest(resources)) as session, tempfile.TemporaryDirectory(prefix="her2batch-") as folder:
        file = Path(folder) / "token"
        file.touch(mode=0o600)
        file.write_text(token, "utf-8")
        start_serving(session, request, port, resources.workers or 1, token, (code,))
        try:
            announce(f"http://{HOST}:{port}/?token={code}", file)
            while not session.stopped.wait(1.0):
                session.check()
        finally:
            stop_serving()
    return STOPPED


def check_request(request: ServeRequest, port: int) -> None:
    """Refuse what cannot be served, before a port is opened. Raises InputError, StoreError."""
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "starlette")):
        raise InputError("the web page needs packages that are not installed", None, install_extra("serve"))
    check_access(request.access)
    cohort = Cohort(to_location(request.cohort))
    plan = cohort.plan()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"port {port} cannot be used ({error.strerror})", None, "choose another --port") from error
    if request.scans is None:
        return
    if not request.scans.is_dir():
        raise InputError("there is no such folder", request.scans, "give --scans the folder that the scanner writes to")
    from her2batch.models.bundle import read_bundle

    bundle = read_bundle(request.bundle).id if request.bundle is not None else None
    if plan.bundle not in (None, bundle):
        remedy = f"give --bundle the folder of bundle {plan.bundle}"
        raise InputError("its slides were ingested with a bundle", cohort.root, remedy)
    check_pseudonyms(cohort, request.key is not None)


def start_serving(
    session: RaySession, request: ServeRequest, port: int, replicas: int, token: str, codes: tuple[str, ...] = ()
) -> None:
    """Open the port. There is one queue of jobs and several replicas of the application. None holds a CPU."""
    from ray import serve as ray_serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": HOST, "port": port}, logging_config=quiet)
    no_cpu = {"num_cpus": 0}
    jobs = ray_serve.deployment(
        name="IngestJobs",
        num_replicas=1,
        max_ongoing_requests=MAX_REQUESTS,
        ray_actor_options=no_cpu,
        logging_config=quiet,
    )(IngestJobsActor)
    page = ray_serve.deployment(
        name="Page",
        num_replicas=replicas,
        max_ongoing_requests=MAX_REQUESTS,
        ray_actor_options=no_cpu,
        logging_config=quiet,
    )(ray_serve.ingress()(AppActor))
    work = partial(ingest_one, request) if request.scans is not None else None
    local = session.head is None
    bound = page.bind(request, token, jobs.bind(work, codes, local), local)
    ray_serve.run(bound, name=APP, route_prefix="/", logging_config=quiet)


def stop_serving() -> None:
    """Close the port. A slide that is being processed is abandoned; the cohort's next ingest processes it."""
    from ray import serve as ray_serve

    ray_serve.shutdown()  # type: ignore[no-untyped-call]


def _on_loopback() -> None:
    """Make this replica listen on loopback only. Serve's server between replicas binds to all interfaces and has no
    setting for it (Ray 2.60; it requires the token). Raises AttributeError with a Ray that does it in another way, so
    that nothing is served rather than served to everybody.
    """  # fmt: skip
    replica: Any = importlib.import_module("ray.serve._private.replica")
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: bind(server, f"{HOST}:0")


class IngestJobsActor:
    """The queue of ingest jobs, in a process of its own."""

    def __init__(self, work: Any, codes: tuple[str, ...], local: bool) -> None:
        from her2batch.web.ingest_jobs import IngestJobs

        if local:
            _on_loopback()
        self._jobs = IngestJobs(work, codes)

    def redeem_code(self, code: str) -> bool:
        """See IngestJobs."""
        return self._jobs.redeem_code(code)

    def submit(self, path: str) -> dict[str, Any]:
        """See IngestJobs."""
        return self._jobs.submit(path)

    def status(self, job_id: str) -> dict[str, Any] | None:
        """See IngestJobs."""
        return self._jobs.status(job_id)


class AppActor:
    """The application in a process of its own; it calls the queue of jobs through Serve."""

    def __init__(self, request: ServeRequest, token: str, jobs: Any, local: bool) -> None:
        if local:
            _on_loopback()
        self._offer, self._token, self._jobs = request, token, jobs

    async def _ask(self, method: str, *args: Any) -> Any:
        return await getattr(self._jobs, method).remote(*args)

    def __serve_build_asgi_app__(self) -> Any:
        from her2batch.web.app import create_app

        return create_app(
            to_location(self._offer.cohort), self._token, self._ask, self._offer.scans, self._offer.access
        )


def ingest_one(request: ServeRequest, path: Path) -> dict[str, Any]:
    """Process one slide into the cohort as its last ingest would, and score it; returns slide_id, error_code, error.

    Raises StoreError while another program writes to the cohort.
    """
    from her2batch.runtime.ingest import IngestRequest, ingest
    from her2batch.runtime.score import NoTaskAppliesError, score

    cohort = Cohort(to_location(request.cohort))
    plan: Plan = cohort.plan()
    own = request.bundle if plan.bundle is not None else None
    ingest_request = IngestRequest(
        path.parent, cohort.root, own, None, request.weights, request.key,
        retry_failed=True, only=path, exact_plan=True,
    )  # fmt: skip
    summary = ingest(ingest_request, plan.model_copy(update={"bundle": None}), Resources())
    if summary.slides:
        row = summary.slides[0]
        if request.bundle is not None and own is None and row["status"] == "done":
            with suppress(NoTaskAppliesError):  # the slide keeps the predictions that it has
                score(cohort.root, request.bundle, Resources())
        return {name: row[name] for name in ("slide_id", "error_code", "error")}
    return _outcome_of_file(cohort, path, request)


def _outcome_of_file(cohort: Cohort, path: Path, request: ServeRequest) -> Row:
    """Outcome of a file that is no slide of its own: the slide that it is a copy of, or why it is no slide."""
    pseudonymizer = Pseudonymizer(read_key(request.key) if request.key is not None else None)
    path_text = pseudonymizer.path(path)
    entry = next((entry for entry in cohort.read_intake() if entry["path"] == path_text), None)
    if entry is not None and entry["outcome"] == "duplicate":
        return {"slide_id": entry["slide_id"], "error_code": None, "error": None}
    why = entry["reason"] if entry is not None else "was removed from this cohort and must not come back"
    return {"slide_id": None, "error_code": "not-a-slide", "error": str(why)}


def _token() -> str:
    given = os.environ.get(TOKEN_VARIABLE)
    if given is None:
        return secrets.token_urlsafe(32)
    if len(given) < MIN_TOKEN_LENGTH:
        raise InputError(
            f"{TOKEN_VARIABLE} has {len(given)} characters, it needs {MIN_TOKEN_LENGTH}", None, "choose a longer one"
        )
    return given


def _for_ingest(resources: Resources) -> Resources:
    """Resources of an ingest, which uses all cores: `workers` are replicas of the application here."""
    return resources.model_copy(update={"workers": None})
