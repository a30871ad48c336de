"""Commands on slides and their cohort: ingest, the night, and looking after the store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from her2batch.cli.options import OUT, CohortArgument, Json, OutOption, Quiet, emit, options
from her2batch.settings import Plan, Resources, Window

if TYPE_CHECKING:
    from her2batch.runtime.ingest import IngestSummary


@options(Resources)
@options(Window, leave_out=("linger",))
@options(Plan, leave_out=("bundle",))
def ingest(
    *,
    scans: Annotated[Path, typer.Argument(help="the folder that the scanner writes to", show_default=False)],
    out: OutOption = OUT,
    plan: Plan,
    window: Window,
    resources: Resources,
    bundle: Annotated[Path | None, typer.Option(help="folder of trained nets for patches and thumbnails")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV with slide_id, patient_id, her2, ish, er, pr, stain")] = None,
    weights: Annotated[Path | None, typer.Option(help="folder with encoder weights; default: the hub's cache")] = None,
    pseudonymize: Annotated[Path | None, typer.Option(help="key file: no name of the source reaches the store")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="try failed slides again")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, with disk and time")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Read every slide under SCANS and bring the cohort up to date. The same command resumes."""
    from her2batch.runtime.ingest import IngestRequest
    from her2batch.runtime.ingest import ingest as run

    order = IngestRequest(scans, out, bundle, labels, weights, pseudonymize, retry_failed)
    if dry_run:
        return _dry_run(order, plan, resources, as_json)
    from her2batch.cli.console import print_ingest_summary, progress

    with progress(quiet or as_json) as report:
        summary = run(order, plan, resources, report, window)
    emit(as_json, _summary_json(summary), lambda: print_ingest_summary(summary))
    return summary.exit_code


def _dry_run(order: Any, plan: Plan, resources: Resources, as_json: bool) -> int:
    from her2batch.cli.console import print_estimate
    from her2batch.pipeline.estimate import estimate
    from her2batch.runtime.ingest import dry_run

    plan, census, cohort = dry_run(order, plan)
    rows, total = estimate(census, plan, resources, cohort)
    emit(as_json, {"slides": rows, **total}, lambda: print_estimate(rows, total))
    return 0


def overnight(
    settings: Annotated[Path, typer.Argument(help="the night's TOML file", show_default=False)],
    quiet: Quiet = False,
) -> int:
    """The nightly job: ingest what is new, score it, check it, report, tell. One JSON line on stdout."""
    from her2batch.cli.console import print_note, progress
    from her2batch.nightly.overnight import overnight as run
    from her2batch.settings import Overnight, from_toml

    with progress(quiet) as report:
        night = run(
            from_toml(settings, Overnight),
            report,
            lambda words: print_note(words, quiet),
            lambda text: print(text, flush=True),
        )
    return night.exit_code


def status(
    cohort: CohortArgument = OUT,
    follow: Annotated[bool, typer.Option("--follow", help="watch the run that goes on, until it ends")] = False,
    as_json: Json = False,
) -> int:
    """What is done, failed and why; and that nothing vanished."""
    if follow:
        from her2batch.cli.console import follow as watch
        from her2batch.store.cohort import Cohort

        watch(Cohort(cohort))
    from her2batch.cli.console import print_status
    from her2batch.store.audit import status as count
    from her2batch.store.cohort import Cohort

    found = count(Cohort(cohort))
    emit(as_json, {**vars(found), "adds_up": found.adds_up}, lambda: print_status(found, cohort))
    return 0 if found.adds_up else 1


def verify(cohort: CohortArgument = OUT, as_json: Json = False) -> int:
    """Check every file against its checksum and schema. `ingest` mends what this finds."""
    from her2batch.cli.console import print_problems
    from her2batch.store.audit import verify as check
    from her2batch.store.cohort import Cohort
    from her2batch.store.reviews import head

    problems = list(check(Cohort(cohort)))
    newest = head(Cohort(cohort))
    found = [{"path": str(one.path), "what": one.what, "slide_id": one.slide_id} for one in problems]
    data = {"problems": found, "ok": not found, "reviews": newest[0], "reviews_sha256": newest[1]}
    emit(as_json, data, lambda: print_problems(problems, cohort, newest))
    return 3 if problems else 0


def forget(
    *,
    cohort: CohortArgument,
    patient: Annotated[str, typer.Option(help="the patient's id, as in the labels", show_default=False)],
    pseudonymize: Annotated[Path | None, typer.Option(help="key file, where the cohort has pseudonyms")] = None,
    run: Annotated[list[Path] | None, typer.Option(help="training run to look through; repeatable")] = None,
    as_json: Json = False,
) -> int:
    """Remove one patient: every file and every row, with the proof that nothing is left."""
    from her2batch.cli.console import print_erase_summary
    from her2batch.store.audit import verify as check
    from her2batch.store.cohort import Cohort
    from her2batch.store.erase import erase as remove
    from her2batch.store.pseudonyms import Pseudonymizer, read_key

    names = Pseudonymizer(read_key(pseudonymize) if pseudonymize is not None else None)
    found = remove(Cohort(cohort), patient, names, run or ())
    problems = [f"{one.path}: {one.what}" for one in check(Cohort(cohort))]
    emit(as_json, {**asdict(found), "problems": problems}, lambda: print_erase_summary(found, problems))
    return 1 if found.left or problems else 0


def _summary_json(summary: IngestSummary) -> dict[str, Any]:
    keys = ("slide_id", "path", "error_code", "error")
    fields = ("seen", "done", "failed", "deferred", "duplicate", "ignored", "already", "tiles", "seconds", "skipped")
    return {
        "cohort": str(summary.cohort),
        **{name: getattr(summary, name) for name in fields},
        "failures": [{key: row[key] for key in keys} for row in summary.failures],
        "exit_code": summary.exit_code,
    }
