"""Commands on what is trained: the methods, the paper's tables, a search, and scoring with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from her2batch.cli.options import PLACE, CohortArgument, Json, Quiet, as_place, emit, options
from her2batch.settings import Resources, Spread, Training

if TYPE_CHECKING:
    from her2batch.experiments.train import TrainingSummary
    from her2batch.runtime.score import ScoreSummary

Annotations = Annotated[Path | None, typer.Option(help="folder of QuPath regions, SLIDE.geojson, for patch methods")]
Labels = Annotated[Path | None, typer.Option(help="labels CSV or TCGA table; default: those given to the ingest")]


@options(Spread, leave_out=("worker_memory", "patience"))
@options(Training)
def train(
    *,
    cohort: Annotated[
        Path | None, typer.Argument(help=PLACE, show_default=False, parser=as_place, metavar="COHORT")
    ] = None,
    out: Annotated[Path, typer.Option(help="the run's folder")] = Path("run"),
    training: Training,
    resources: Spread,
    labels: Labels = None,
    annotations: Annotations = None,
    resume: Annotated[Path | None, typer.Option(help="go on with this run, with its own settings")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Train folds × methods × tasks on the same folds; figures, and a bundle. The same command resumes."""
    from her2batch.cli.console_training import print_training_summary, unit_progress
    from her2batch.experiments.train import TrainingRequest, resumed
    from her2batch.experiments.train import train as run

    if resume is not None:
        study, training = resumed(resume)
    elif cohort is None:
        raise typer.BadParameter("name the cohort, or give --resume RUN", param_hint="COHORT")
    else:
        study = TrainingRequest(cohort, out, labels, annotations)
    with unit_progress(quiet or as_json) as report:
        found = run(study, training, resources, report)
    emit(as_json, _trained_json(found), lambda: print_training_summary(found))
    return found.exit_code


@options(Spread, leave_out=("worker_memory", "patience"))
@options(Training, leave_out=("tasks", "methods"))
def reproduce(
    *,
    cohort: CohortArgument,
    out: Annotated[Path, typer.Option(help="the run's folder")] = Path("run"),
    training: Training,
    resources: Spread,
    labels: Labels = None,
    annotations: Annotations = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Every row of the paper's tables 4, 5, 6, S1–S3 and figure 5, beside its figures. The same command resumes."""
    from her2batch.cli.console_training import print_reproduction, unit_progress
    from her2batch.experiments.reproduce import reproduce as run
    from her2batch.experiments.train import TrainingRequest

    with unit_progress(quiet or as_json) as report:
        found = run(TrainingRequest(cohort, out, labels, annotations), training, resources, report)
    data = {**_trained_json(found.trained), "tables": found.tables.to_pylist()}
    emit(as_json, data, lambda: print_reproduction(found))
    return found.exit_code


@options(Spread, leave_out=("worker_memory", "patience"))
@options(Training)
def tune(
    *,
    cohort: CohortArgument,
    out: Annotated[Path, typer.Option(help="the run's folder")] = Path("run"),
    training: Training,
    resources: Spread,
    labels: Labels = None,
    annotations: Annotations = None,
    samples: Annotated[int, typer.Option(min=1, help="trials in each outer fold")] = 20,
    outer: Annotated[int, typer.Option(min=1, help="outer folds that are searched; all: nested cross-validation")] = 1,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Search a method's settings with Ray Tune, inside the folds; the best go into a bundle. Resumes."""
    from her2batch.cli.console_training import print_tuning_summary, unit_progress
    from her2batch.experiments.train import TrainingRequest
    from her2batch.experiments.tune import tune as run

    with unit_progress(quiet or as_json) as report:
        found = run(TrainingRequest(cohort, out, labels, annotations), training, samples, outer, resources, report)
    data = {**_trained_json(found.trained), "trials": found.trials.to_pylist(), "best": found.best}
    emit(as_json, data, lambda: print_tuning_summary(found))
    return found.exit_code


@options(Resources)
def score(
    *,
    cohort: CohortArgument,
    bundle: Annotated[Path, typer.Option(help="folder of a trained bundle", show_default=False)],
    resources: Resources,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Predictions of a bundle for every slide of a cohort, from its tables. The same command resumes."""
    from her2batch.cli.console_training import plain_progress, print_score_summary
    from her2batch.runtime.score import score as run

    with plain_progress("slides", quiet or as_json) as report:
        found = run(cohort, bundle, resources, report)
    emit(as_json, _scored_json(found), lambda: print_score_summary(found, cohort))
    return found.exit_code


def _trained_json(found: TrainingSummary) -> dict[str, Any]:
    return {
        "run": str(found.run.root),
        "bundle": str(found.run.bundle) if found.run.bundle.is_dir() else None,
        "report": str(found.run.report) if found.run.report.is_file() else None,
        "summary": found.summary.to_pylist(),
        "excluded": found.excluded.to_pylist(),
        "failed": found.failed,
        "exit_code": found.exit_code,
    }


def _scored_json(found: ScoreSummary) -> dict[str, Any]:
    return {
        "bundle": found.bundle.id,
        "licence": found.bundle.info.licence,
        "scored": found.scored,
        "already": found.already,
        "failures": found.failures,
        "exit_code": found.exit_code,
    }
