"""The command that serves a cohort as a page and an API on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from her2batch.cli.options import CohortArgument


def serve(
    *,
    cohort: CohortArgument,
    port: Annotated[int, typer.Option(min=1, max=65535, help="on 127.0.0.1")] = 8300,
    workers: Annotated[int, typer.Option(min=1, max=64, help="copies of the page (Ray Serve replicas)")] = 1,
    scans: Annotated[Path | None, typer.Option(help="folder whose slides may be posted; default: none may")] = None,
    bundle: Annotated[Path | None, typer.Option(help="trained bundle that scores posted slides")] = None,
    pseudonymize: Annotated[Path | None, typer.Option(help="key file, where the cohort has pseudonyms")] = None,
    weights: Annotated[Path | None, typer.Option(help="folder with encoder weights; default: the hub's cache")] = None,
    address: Annotated[str, typer.Option(help="Ray cluster: local, auto or HOST:PORT")] = "local",
) -> int:
    """Show a cohort in the browser and answer its REST API, on this machine alone, until it is stopped."""
    from her2batch.runtime.serve import Offer
    from her2batch.runtime.serve import serve as run
    from her2batch.settings import Resources

    offer = Offer(cohort, scans, bundle, pseudonymize, weights)
    return run(offer, port, Resources(address=address, workers=workers), _tell)


def _tell(link: str, token: Path) -> None:
    print(f"open {link} (works once)", flush=True)
    print(f"the token for the API lies in {token}; stop with Ctrl-C", flush=True)
