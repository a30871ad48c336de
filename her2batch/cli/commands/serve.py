"""The command that serves a cohort in the browser and as a REST API on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from her2batch.cli.options import CohortArgument, KeyOption, WeightsOption


def serve(
    *,
    cohort: CohortArgument,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port on 127.0.0.1")] = 8300,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Ray Serve replicas of the page")] = 1,
    scans: Annotated[
        Path | None, typer.Option(help="folder whose slides may be posted for scoring; default: posting is off")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="folder of the trained bundle that scores posted slides")] = None,
    pseudonymize: KeyOption = None,
    weights: WeightsOption = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="host name under which a reverse proxy shows the page; repeatable")
    ] = None,
    prefix: Annotated[str, typer.Option(help="path under which a reverse proxy shows the page, such as /her2")] = "",
    user_header: Annotated[
        str | None, typer.Option(help="header in which the proxy names the user; needs HER2BATCH_PROXY_SECRET")
    ] = None,
    groups_header: Annotated[
        str | None, typer.Option(help="header in which the proxy names the groups of the user, separated by commas")
    ] = None,
    reviewer: Annotated[
        list[str] | None, typer.Option(help="user or group who may enter reviews; all others read; repeatable")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="address of the proxy; default: this machine; repeatable")
    ] = None,
    address: Annotated[str, typer.Option(help="Ray cluster: local, auto or HOST:PORT")] = "local",
) -> int:
    """Show a cohort in the browser, with a slide viewer, reviews and a REST API, on this machine only."""
    from her2batch.runtime.serve import ServeRequest
    from her2batch.runtime.serve import serve as run
    from her2batch.settings import Resources
    from her2batch.web.proxy import ProxyAccess

    access = ProxyAccess(tuple(allowed_host or ()), prefix, user_header, groups_header, frozenset(reviewer or ()))
    if trusted_proxy:
        access = replace(access, trusted=tuple(trusted_proxy))
    request = ServeRequest(cohort, scans, bundle, pseudonymize, weights, access)
    return run(request, port, Resources(address=address, workers=workers), _print_address)


def _print_address(link: str, token: Path) -> None:
    print(f"open {link} (works once)", flush=True)
    print(f"the API token is in {token}; stop with Ctrl-C", flush=True)
