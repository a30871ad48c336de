"""The Python API on work: the commands as functions. Only `ingest` and `score` write to a cohort.

Heavy packages are imported inside the functions that need them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from her2batch.errors import InputError
from her2batch.files.locations import to_location
from her2batch.settings import Plan, Resources, RunWindow, Settings, Training, TrainingResources


def ingest(
    scans: str | Path,
    out: str | Path = "cohort",
    *,
    bundle: str | Path | None = None,
    labels: str | Path | None = None,
    weights: str | Path | None = None,
    pseudonymize: str | Path | None = None,
    retry_failed: bool = False,
    replan: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Process every slide in a scan folder into a cohort, as `her2batch ingest` does; a second call resumes.

    settings: any other option of the command by its field in `settings`: encoders=["stain"], mpp=0.5, workers=2, …
    columns={"slide_id": "Filename"}: headers of the labels.  regions, controls, calibration: as the options.  replan:
    redo slides if the plan has changed.  Returns what --json prints.  Raises InputError, StoreError, WeightsError.
    """
    from her2batch.pipeline.growth.ingest_summary import ingest_result
    from her2batch.reports.prediction_counts import summarise_predictions
    from her2batch.runtime.ingest import IngestRequest
    from her2batch.runtime.ingest import ingest as run
    from her2batch.store.cohort import Cohort

    names = ("columns", "regions", "controls", "calibration")
    columns, regions, controls, calibration = (settings.pop(name, None) for name in names)
    plan, resources, window = _split(settings, Plan, Resources, RunWindow)
    request = IngestRequest(Path(scans), to_location(out), _path(bundle), _path(labels), _path(weights))
    request = replace(request, key=_path(pseudonymize), retry_failed=retry_failed, replan=replan, columns=columns or {})
    request = replace(request, regions=_path(regions), controls=controls and str(controls))
    request = replace(request, calibration=_path(calibration))
    summary = run(request, plan, resources, window=window)
    return ingest_result(summary, *summarise_predictions(Cohort(summary.cohort), summary.fresh))


def train(
    cohort: str | Path,
    out: str | Path = "run",
    *,
    labels: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    annotations: str | Path | None = None,
    task_file: str | Path | None = None,
    folds_file: str | Path | None = None,
    tests: Mapping[str | Path, str | Path | None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train methods on the same folds, as `her2batch train` does; a second call resumes.

    columns: headers of the labels, as --column gives them.  task_file, folds_file: as --tasks and --folds-file.  tests:
    cohorts to test the bundle on → their labels; None: those given to their ingest.  settings: any other option of the
    command: tasks=["her2-3way"], folds=5, workers=2, …  Returns what the command prints with --json.
    Raises InputError, StoreError, WeightsError before training starts.
    """
    from her2batch.experiments.external_test import TestCohort
    from her2batch.experiments.train import TrainingRequest, training_result
    from her2batch.experiments.train import train as run
    from her2batch.task_files import training_with_tasks

    training, resources = _split(settings, Training, TrainingResources)
    files = _path(labels), _path(annotations)
    others = tuple(TestCohort(to_location(name), _path(sheet)) for name, sheet in (tests or {}).items())
    request = TrainingRequest(to_location(cohort), Path(out), *files, columns or {}, _path(folds_file), others)
    return training_result(run(request, training_with_tasks(training, task_file), resources))


def score(
    cohort: str | Path, bundle: str | Path | None = None, *, calibration: str | Path | None = None, **settings: Any
) -> dict[str, Any]:
    """Score every slide of a cohort with a bundle, a calibration or both, as `her2batch score` does; resumes.

    settings: options of the command: workers=2, gpus=1, …  Returns what the command prints with --json.
    Raises InputError, StoreError, WeightsError for what stops the batch.
    """
    from her2batch.runtime.score import score_cohort

    (resources,) = _split(settings, Resources)
    return score_cohort(to_location(cohort), _path(bundle), _path(calibration), resources).as_json()


def report(
    cohort: str | Path,
    out: str | Path = "report.html",
    run: str | Path | None = None,
    pages: int = 100,
    review_budget: float | None = None,
) -> Path:
    """Write the cohort report, one HTML file, and return its path.

    run: a training run whose figures are shown too.  pages: number of slides whose evidence is shown.  review_budget:
    share of slides that people can look at, 0–1, for calibrated predictions.
    """
    from her2batch.reports.cohort_page import write_report
    from her2batch.store.cohort import Cohort
    from her2batch.store.training_run import TrainingRun

    training_run = TrainingRun(Path(run)) if run is not None else None
    return write_report(Cohort(to_location(cohort)), Path(out).absolute(), training_run, pages, review_budget).path


def _split(values: Mapping[str, Any], *models: type[Any]) -> list[Any]:
    """Settings models from keyword arguments. Raises InputError naming the argument that no model knows or accepts."""
    from pydantic import ValidationError

    left = dict(values)
    made: list[Settings] = []
    for model in models:
        own = {name: left.pop(name) for name in list(left) if name in model.model_fields}
        try:
            made.append(model(**own))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise InputError(f"{name}={own.get(name)!r}: {first['msg']}", None, "see docs/configuration.md") from error
    if left:
        known = sorted(name for model in models for name in model.model_fields)
        raise InputError(f"there is no setting {next(iter(left))!r}", None, f"known: {', '.join(known)}")
    return made


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
