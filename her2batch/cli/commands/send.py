"""The command that sends results to a laboratory information system."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from her2batch.cli.commands.exchange import IdentitiesOption, read_identities_option
from her2batch.cli.options import CohortArgument, Json, KeyOption, Quiet, emit
from her2batch.errors import InputError

TO_HELP = "address of the receiver: mllp://HOST:PORT, mllps://HOST:PORT (HL7 v2.5.1), or https://HOST/PATH (FHIR R4)"


def send(
    *,
    cohort: CohortArgument,
    to: Annotated[str, typer.Option(help=TO_HELP, show_default=False, metavar="ADDRESS")],
    identities: IdentitiesOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list what would be sent, and send nothing")] = False,
    pseudonymize: KeyOption = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Send results to a laboratory information system: preliminary, and final after a pathologist's verdict."""
    from her2batch.cli.console_training import count_progress
    from her2batch.exchange.lis.outbox import send_lines, send_results
    from her2batch.exchange.lis.transport import parse_receiver
    from her2batch.store.cohort import Cohort

    receiver = parse_receiver(to)
    if identities is None:
        raise InputError("--identities is missing: file names are no identities", None, "see docs/lis.md for the sheet")
    known = read_identities_option(cohort, identities, pseudonymize)
    with count_progress("slides", quiet or as_json) as report:
        summary = send_results(Cohort(cohort), receiver, known, report, dry_run=dry_run)
    data = {**asdict(summary), "dry_run": dry_run, "exit_code": summary.exit_code}
    emit(as_json, data, lambda: print(*send_lines(summary, dry_run), sep="\n"))
    return summary.exit_code
