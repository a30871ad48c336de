"""Commands on slides and their cohort: ingest, nightly runs, and maintenance of the store."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from her2batch.cli.commands.calibrate import CalibrationOption
from her2batch.cli.options import (
    DEFAULT_COHORT,
    LABELS_HELP,
    CohortArgument,
    ColumnOption,
    Json,
    KeyOption,
    OutOption,
    Quiet,
    WeightsOption,
    emit,
    options,
    parse_columns,
)
from her2batch.settings import Plan, Resources, RunWindow

if TYPE_CHECKING:
    from her2batch.pipeline.growth.ingest_request import IngestRequest


@options(Resources)
@options(RunWindow, leave_out=("linger",))
@options(Plan, leave_out=("bundle", "controls"), only_given=True)
def ingest(
    *,
    scans: Annotated[
        Path,
        typer.Argument(
            help="the scan folder, which the scanner writes to, or a QuPath project (project.qpproj)",
            show_default=False,
            metavar="SCANS",
        ),
    ],
    out: OutOption = DEFAULT_COHORT,
    plan: Plan,
    window: RunWindow,
    resources: Resources,
    bundle: Annotated[Path | None, typer.Option(help="folder of a trained bundle to score with")] = None,
    labels: Annotated[Path | None, typer.Option(help=LABELS_HELP)] = None,
    column: ColumnOption = None,
    regions: Annotated[
        Path | None,
        typer.Option(help="folder of QuPath regions, SLIDE.geojson; tiles lie in those of --include-region only"),
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(
            help="control tissue, which never counts: a TOML file (place, annotation, name of the slide), or auto",
            metavar="FILE|auto",
        ),
    ] = None,
    tma: Annotated[
        Path | None,
        typer.Option(help="map of tissue microarrays, CSV with row, column, case and slide: one score for each core"),
    ] = None,
    weights: WeightsOption = None,
    calibration: CalibrationOption = None,
    pseudonymize: Annotated[
        Path | None, typer.Option(help="key file; no name, date or barcode reaches the cohort")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="process failed slides again")] = False,
    replan: Annotated[
        bool, typer.Option("--replan", help="process finished slides again if a setting of the plan has changed")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would be done, with disk space and time, and write nothing")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Process every slide in the scan folder into the cohort. Run the same command again to resume.

    In a cohort that exists, a setting that is not given is that of the cohort.
    """
    from her2batch.runtime.ingest import IngestRequest
    from her2batch.runtime.ingest import ingest as run

    request = IngestRequest(scans, out, bundle, labels, weights, pseudonymize, retry_failed, replan=replan)
    request = replace(request, columns=parse_columns(column), regions=regions, controls=controls, tma=tma)
    request = replace(request, calibration=calibration)
    if dry_run:
        return _dry_run(request, plan, resources, as_json)
    from her2batch.cli.console import ingest_progress, print_ingest_summary
    from her2batch.cli.console_calibration import print_calibrated
    from her2batch.cli.console_labels import print_labels_report
    from her2batch.pipeline.growth.ingest_summary import ingest_result
    from her2batch.reports.prediction_counts import summarise_predictions
    from her2batch.store.cohort import Cohort

    with ingest_progress(quiet or as_json) as report:
        summary = run(request, plan, resources, report, window)
    predictions = summarise_predictions(Cohort(summary.cohort), summary.fresh)

    def show() -> None:
        print_labels_report(summary.labels)
        print_ingest_summary(summary, *predictions)
        if summary.calibrated is not None:
            print_calibrated(summary.calibrated, summary.cohort)

    emit(as_json, ingest_result(summary, *predictions), show)
    return summary.exit_code


def _dry_run(request: IngestRequest, plan: Plan, resources: Resources, as_json: bool) -> int:
    from her2batch.cli.console import print_estimate
    from her2batch.pipeline.estimate import estimate_ingest
    from her2batch.runtime.ingest import dry_run

    plan, inventory, cohort = dry_run(request, plan)
    rows, total = estimate_ingest(inventory, plan, resources, cohort)
    emit(as_json, {"slides": rows, **total}, lambda: print_estimate(rows, total))
    return 0


def overnight(
    settings: Annotated[
        Path | None,
        typer.Argument(
            help="TOML file with the settings of the nightly run; with --init: night.toml", show_default=False
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="check mounts, rights, space, mail, weights and clock, and run nothing")
    ] = False,
    init: Annotated[
        bool, typer.Option("--init", help="write an example of the settings file, and run nothing")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Run the nightly job: ingest new slides, score, check, report, notify. Prints one JSON line."""
    if init:
        return _write_example(settings or Path("night.toml"))
    if settings is None:
        raise typer.BadParameter("name the settings file; --init writes an example", param_hint="SETTINGS")
    if check:
        return _check_night(settings)
    from her2batch.cli.console import ingest_progress, print_note
    from her2batch.job_settings import NightlySettings, read_settings
    from her2batch.nightly.overnight import run_overnight as run

    with ingest_progress(quiet) as report:
        night = run(
            read_settings(settings, NightlySettings),
            report,
            lambda text: print_note(text, quiet),
            lambda line: print(line, flush=True),
        )
    return night.exit_code


def _write_example(path: Path) -> int:
    from her2batch.nightly.example import write_example

    write_example(path)
    print(f"{path}: edit it, then run her2batch overnight --check {path}")
    return 0


def _check_night(path: Path) -> int:
    """Print all checks; exit code 2 if the night could not run, or could not reach people."""
    from her2batch.cli.console import print_doctor
    from her2batch.job_settings import NightlySettings, read_settings
    from her2batch.nightly.check import check_night

    checks = check_night(read_settings(path, NightlySettings))
    print_doctor(checks)
    return 2 if any(check.ok is False for check in checks) else 0


def status(
    cohort: CohortArgument = DEFAULT_COHORT,
    follow: Annotated[bool, typer.Option("--follow", help="follow the current run until it ends")] = False,
    as_json: Json = False,
) -> int:
    """Show what is done, what failed and why, and whether every file seen has an outcome."""
    if follow:
        from her2batch.cli.console import follow as follow_run
        from her2batch.store.cohort import Cohort

        follow_run(Cohort(cohort))
    from her2batch.cli.console import print_status
    from her2batch.store.audit import cohort_status as count
    from her2batch.store.cohort import Cohort

    found = count(Cohort(cohort))
    emit(as_json, {**vars(found), "adds_up": found.adds_up}, lambda: print_status(found))
    return 0 if found.adds_up else 1


def verify(cohort: CohortArgument = DEFAULT_COHORT, as_json: Json = False) -> int:
    """Check every file against its checksum and schema. Run ingest to repair what this finds."""
    from her2batch.cli.console import print_problems
    from her2batch.store.audit import verify_cohort as check
    from her2batch.store.cohort import Cohort
    from her2batch.store.reviews import chain_head

    problems = list(check(Cohort(cohort)))
    newest = chain_head(Cohort(cohort))
    found = [{"path": str(one.path), "what": one.message, "slide_id": one.slide_id} for one in problems]
    data = {"problems": found, "ok": not found, "reviews": newest[0], "reviews_sha256": newest[1]}
    emit(as_json, data, lambda: print_problems(problems, cohort, newest))
    return 3 if problems else 0


def forget(
    *,
    cohort: CohortArgument,
    patient: Annotated[str, typer.Option(help="the patient's id, as in the labels", show_default=False)],
    pseudonymize: KeyOption = None,
    run: Annotated[list[Path] | None, typer.Option(help="training run to search for the patient; repeatable")] = None,
    as_json: Json = False,
) -> int:
    """Remove a patient's data: every file and row, and verify that nothing is left."""
    from her2batch.cli.console import print_erase_summary
    from her2batch.store.audit import verify_cohort as check
    from her2batch.store.cohort import Cohort
    from her2batch.store.erase import erase as remove
    from her2batch.store.pseudonyms import Pseudonymizer, read_key

    names = Pseudonymizer(read_key(pseudonymize) if pseudonymize is not None else None)
    found = remove(Cohort(cohort), patient, names, run or ())
    problems = [f"{one.path}: {one.message}" for one in check(Cohort(cohort))]
    emit(as_json, {**asdict(found), "problems": problems}, lambda: print_erase_summary(found, problems))
    return 1 if found.left or problems else 0
