"""The command that serves a cohort in the browser and as a REST API on this machine."""

from __future__ import annotations

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
    address: Annotated[str, typer.Option(help="Ray cluster: local, auto or HOST:PORT")] = "local",
) -> int:
    """Show a cohort in the browser, with a slide viewer, reviews and a REST API, on this machine only."""
    from her2batch.runtime.serve import ServeRequest
    from her2batch.runtime.serve import serve as run
    from her2batch.settings import Resources

    request = ServeRequest(cohort, scans, bundle, pseudonymize, weights)
    return run(request, port, Resources(address=address, workers=workers), _print_address)


def _print_address(link: str, token: Path) -> None:
    print(f"open {link} (works once)", flush=True)
    print(f"the API token is in {token}; stop with Ctrl-C", flush=True)
