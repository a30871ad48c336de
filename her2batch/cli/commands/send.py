"""The command that sends results to a laboratory information system."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from her2batch.cli.commands.exchange import IdentitiesOption, read_identities_option
from her2batch.cli.options import CohortArgument, Json, KeyOption, Quiet, emit
from her2batch.errors import InputError

if TYPE_CHECKING:
    from her2batch.exchange.lis.outbox import SendSummary

EXAMPLES = 5
"""Slides that are named for each reason."""

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
    from her2batch.exchange.lis.outbox import send_results
    from her2batch.exchange.lis.transport import parse_receiver
    from her2batch.store.cohort import Cohort

    receiver = parse_receiver(to)
    if identities is None:
        raise InputError("--identities is missing: file names are no identities", None, "see docs/lis.md for the sheet")
    known = read_identities_option(cohort, identities, pseudonymize)
    with count_progress("slides", quiet or as_json) as report:
        summary = send_results(Cohort(cohort), receiver, known, report, dry_run=dry_run)
    data = {**asdict(summary), "dry_run": dry_run, "exit_code": summary.exit_code}
    emit(as_json, data, lambda: print_send_summary(summary, dry_run))
    return summary.exit_code


def print_send_summary(summary: SendSummary, dry_run: bool) -> None:
    """Print what was sent, and every slide that was not sent with the reason."""
    verb = "would be sent" if dry_run else "sent"
    for status, slides in sorted(summary.accepted.items()):
        print(f"{len(slides)} {status} {'result' if len(slides) == 1 else 'results'} {verb}")
    print(f"{summary.unchanged} unchanged: the receiver has their present results")
    for words, answers in (("rejected by the receiver", summary.rejected), ("without an answer", summary.unanswered)):
        for slide_id, answer in sorted(answers.items()):
            print(f"{slide_id} {words}: {answer}")
    if summary.not_tried:
        print(f"{len(summary.not_tried)} not tried, because the receiver does not answer; run the same command again")
    if summary.without_identity:
        print(f"{len(summary.without_identity)} without identity, not sent: {_some(summary.without_identity)}")
    for reason, count in Counter(summary.held.values()).most_common():
        slides = [slide_id for slide_id, cause in sorted(summary.held.items()) if cause == reason]
        print(f"{count} not sent, {reason}: {_some(slides)}")


def _some(slides: list[str]) -> str:
    return ", ".join(slides[:EXAMPLES]) + (", …" if len(slides) > EXAMPLES else "")
