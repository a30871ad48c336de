"""Commands that train, reproduce the paper's tables, tune, and score with a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from her2batch.cli.commands.calibrate import CalibrationOption
from her2batch.cli.options import (
    COHORT_HELP,
    CohortArgument,
    ColumnOption,
    Json,
    LabelsOption,
    Quiet,
    RunOption,
    emit,
    options,
    parse_columns,
    parse_location,
)
from her2batch.models.mil_registry import MIL_METHODS
from her2batch.settings import Resources, Training, TrainingResources
from her2batch.task_files import training_with_tasks
from her2batch.tasks import COUNTS_METHODS, FUSION, NETWORK_METHODS

METHODS_HELP = (
    f"{', '.join((*MIL_METHODS, *NETWORK_METHODS, *COUNTS_METHODS, FUSION))}, timm:NAME for any other network of timm "
    "on thumbnails, or a MIL method that an installed package adds; repeatable"
)

AnnotationsOption = Annotated[
    Path | None,
    typer.Option("--annotations", help="folder of QuPath annotations, SLIDE.geojson, for the patch methods"),
]


FoldsFileOption = Annotated[
    Path | None,
    typer.Option(
        "--folds-file",
        metavar="FILE",
        help="CSV file with slide_id or patient_id and fold; decides the number of folds",
    ),
]


def _is_given(context: typer.Context, name: str) -> bool:
    """Return whether an option stands on the command line; its value may be the default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


TasksOption = Annotated[
    Path | None,
    typer.Option("--tasks", metavar="FILE", help="TOML file with tasks of your own; see docs/training.md"),
]


@options(TrainingResources, leave_out=("worker_memory", "patience"))
@options(Training, leave_out=("definitions", "fold_names", "smoothing"), help_texts={"methods": METHODS_HELP})
def train(
    *,
    context: typer.Context,
    cohort: Annotated[
        Path | None, typer.Argument(help=COHORT_HELP, show_default=False, parser=parse_location, metavar="COHORT")
    ] = None,
    out: RunOption = Path("run"),
    training: Training,
    resources: TrainingResources,
    labels: LabelsOption = None,
    column: ColumnOption = None,
    annotations: AnnotationsOption = None,
    folds_file: FoldsFileOption = None,
    tasks_file: TasksOption = None,
    test: Annotated[
        list[str] | None,
        typer.Option("--test", metavar="COHORT", help="another cohort to test the bundle on; repeatable"),
    ] = None,
    test_labels: Annotated[
        list[Path] | None,
        typer.Option(help="label sheet of each --test; default: the labels given to its ingest"),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="continue this run with its own settings")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Train methods on the same folds; writes metrics and a bundle. Run the same command again to resume."""
    from her2batch.cli.console_training import print_training_summary, unit_progress
    from her2batch.experiments.external_test import pair_test_cohorts
    from her2batch.experiments.train import TrainingRequest, read_request, training_result
    from her2batch.experiments.train import train as run

    if resume is not None:
        request, training = read_request(resume)
    elif cohort is None:
        raise typer.BadParameter("name the cohort, or continue a run with --resume RUN", param_hint="COHORT")
    else:
        request = TrainingRequest(cohort, out, labels, annotations, parse_columns(column), folds_file)
        training = training_with_tasks(training, tasks_file, _is_given(context, "tasks"))
    tests = pair_test_cohorts([parse_location(name) for name in test or []], test_labels or [])
    with unit_progress(quiet or as_json) as report:
        summary = run(replace(request, tests=tests), training, resources, report)
    emit(as_json, training_result(summary), lambda: print_training_summary(summary))
    return summary.exit_code


@options(TrainingResources, leave_out=("worker_memory", "patience"))
@options(Training, leave_out=("tasks", "definitions", "fold_names", "methods", "smoothing"))
def reproduce(
    *,
    cohort: CohortArgument,
    out: RunOption = Path("run"),
    training: Training,
    resources: TrainingResources,
    labels: LabelsOption = None,
    column: ColumnOption = None,
    annotations: AnnotationsOption = None,
    folds_file: FoldsFileOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would be trained and its estimated CPU time; write nothing")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Train every row of the paper's tables 4, 5, 6, S1–S3 and figure 5, and compare the figures. Resumes."""
    from her2batch.cli.console_training import print_reproduction, print_training_cost, unit_progress
    from her2batch.experiments.reproduce import estimate_reproduction
    from her2batch.experiments.reproduce import reproduce as run
    from her2batch.experiments.train import TrainingRequest, training_result

    request = TrainingRequest(cohort, out, labels, annotations, parse_columns(column), folds_file)
    if dry_run:
        costs = estimate_reproduction(request, training)
        seconds = sum(row.seconds for row in costs)
        found = {"units": [row._asdict() for row in costs], "cpu_seconds": seconds}
        emit(as_json, found, lambda: print_training_cost(costs))
        return 0
    with unit_progress(quiet or as_json) as report:
        summary = run(request, training, resources, report)
    data = {**training_result(summary.trained), "tables": summary.tables.to_pylist()}
    emit(as_json, data, lambda: print_reproduction(summary))
    return summary.exit_code


@options(TrainingResources, leave_out=("worker_memory", "patience"))
@options(Training, leave_out=("definitions", "fold_names", "smoothing"), help_texts={"methods": METHODS_HELP})
def tune(
    *,
    context: typer.Context,
    cohort: CohortArgument,
    out: RunOption = Path("run"),
    training: Training,
    resources: TrainingResources,
    labels: LabelsOption = None,
    column: ColumnOption = None,
    annotations: AnnotationsOption = None,
    folds_file: FoldsFileOption = None,
    tasks_file: TasksOption = None,
    samples: Annotated[int, typer.Option(min=1, help="number of trials in each outer fold")] = 20,
    outer: Annotated[
        int, typer.Option(min=1, help="number of outer folds that are searched; all folds: nested cross-validation")
    ] = 1,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Search a method's settings with Ray Tune inside the folds; the best go into a bundle. Resumes."""
    from her2batch.cli.console_training import print_tuning_summary, unit_progress
    from her2batch.experiments.train import TrainingRequest, training_result
    from her2batch.experiments.tune import tune as run

    training = training_with_tasks(training, tasks_file, _is_given(context, "tasks"))
    with unit_progress(quiet or as_json) as report:
        summary = run(
            TrainingRequest(cohort, out, labels, annotations, parse_columns(column), folds_file),
            training,
            samples,
            outer,
            resources,
            report,
        )
    data = {**training_result(summary.trained), "trials": summary.trials.to_pylist(), "best": summary.best}
    emit(as_json, {**data, "gain": summary.gain}, lambda: print_tuning_summary(summary))
    return summary.exit_code


@options(Resources)
def score(
    *,
    cohort: CohortArgument,
    bundle: Annotated[Path | None, typer.Option(help="folder of a trained bundle", show_default=False)] = None,
    calibration: CalibrationOption = None,
    resources: Resources,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Score every slide with a bundle, a calibration or both, from the tables. Run the same command again to resume."""
    from her2batch.cli.console_calibration import print_calibrated
    from her2batch.cli.console_training import count_progress, print_score_summary
    from her2batch.runtime.score import score_cohort

    if bundle is None and calibration is None:
        raise typer.BadParameter("name a trained bundle, a calibration, or both", param_hint="--bundle, --calibration")
    with count_progress("slides", quiet or as_json) as report:
        found = score_cohort(cohort, bundle, calibration, resources, report)

    def show() -> None:
        if found.by_bundle is not None:
            print_score_summary(found.by_bundle, cohort)
        if found.by_calibration is not None:
            print_calibrated(found.by_calibration, cohort)

    emit(as_json, found.as_json(), show)
    return found.exit_code


def export_bundle(
    *,
    bundle: Annotated[Path, typer.Argument(help="folder of a trained bundle", metavar="BUNDLE", show_default=False)],
    to: Annotated[Literal["onnx"], typer.Option(help="format")] = "onnx",
    out: Annotated[Path, typer.Option("--out", "-o", help="folder to write the files to")] = Path("exported"),
    as_json: Json = False,
) -> int:
    """Export the heads and networks of a bundle to ONNX; each is checked against the bundle's own."""
    from her2batch.cli.console_training import print_exported_models
    from her2batch.models.bundle import read_bundle
    from her2batch.training.publishing.onnx_export import export_onnx

    models = export_onnx(read_bundle(bundle), out)
    names = ("task", "method", "input")
    rows = [
        {
            **model.entry.model_dump(include=set(names)),
            "path": str(model.path) if model.path else None,
            "words": model.words,
        }
        for model in models
    ]
    emit(as_json, {"format": to, "models": rows}, lambda: print_exported_models(rows))
    return 0 if all(model.path is not None for model in models) else 3


def export_run(
    *,
    run: Annotated[Path, typer.Argument(help="folder of a training run", metavar="RUN", show_default=False)],
    to: Annotated[
        Literal["mlflow", "tensorboard"], typer.Option(help="the MLflow server of MLFLOW_TRACKING_URI, or event files")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the event files")] = Path("tensorboard"),
    as_json: Json = False,
) -> int:
    """Write a training run to MLflow or TensorBoard; again to add the folds that have been trained since."""
    from her2batch.cli.console_training import print_exported_run
    from her2batch.store.training_run import TrainingRun
    from her2batch.training.publishing.trackers import write_mlflow, write_tensorboard

    added = write_mlflow(TrainingRun(run)) if to == "mlflow" else write_tensorboard(TrainingRun(run), out)
    data = {"to": to, "out": str(out) if to == "tensorboard" else None, "added": added}
    emit(as_json, data, lambda: print_exported_run(to, out, added))
    return 0
