"""The command line: parse, one call, print, exit code. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from her2batch.errors import HeadLost, Her2BatchError
from her2batch.options import OUT, PLACE, CohortArgument, Json, OutOption, Quiet, as_place, options
from her2batch.settings import Plan, Resources, Spread, Training, Window

if TYPE_CHECKING:
    from her2batch.flow.ingest import Summary
    from her2batch.flow.score import Scored
    from her2batch.study.train import Trained


def _leave(code: int) -> None:
    raise typer.Exit(code)


app = typer.Typer(
    result_callback=_leave,
    help="HER2 scoring of whole-slide images, a cohort a night. For research use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
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
    from her2batch.flow.ingest import Order
    from her2batch.flow.ingest import ingest as run

    order = Order(scans, out, bundle, labels, weights, pseudonymize, retry_failed)
    if dry_run:
        return _dry_run(order, plan, resources, as_json)
    from her2batch.screen import progress, show_summary

    with progress(quiet or as_json) as report:
        summary = run(order, plan, resources, report, window)
    _emit(as_json, _summary_json(summary), lambda: show_summary(summary))
    return summary.exit_code


def _dry_run(order: Any, plan: Plan, resources: Resources, as_json: bool) -> int:
    from her2batch.flow.ingest import survey
    from her2batch.screen import show_estimate
    from her2batch.way.sizing import estimate

    plan, census, cohort = survey(order, plan)
    rows, total = estimate(census, plan, resources, cohort)
    _emit(as_json, {"slides": rows, **total}, lambda: show_estimate(rows, total))
    return 0


Annotations = Annotated[Path | None, typer.Option(help="folder of QuPath regions, SLIDE.geojson, for patch methods")]
Labels = Annotated[Path | None, typer.Option(help="labels CSV or TCGA table; default: those given to the ingest")]


@app.command()
@options(Spread, leave_out=("worker_memory",))
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
    from her2batch.scoreboard import show_trained, unit_progress
    from her2batch.study.train import Study, resumed
    from her2batch.study.train import train as run

    if resume is not None:
        study, training = resumed(resume)
    elif cohort is None:
        raise typer.BadParameter("name the cohort, or give --resume RUN", param_hint="COHORT")
    else:
        study = Study(cohort, out, labels, annotations)
    with unit_progress(quiet or as_json) as report:
        found = run(study, training, resources, report)
    _emit(as_json, _trained_json(found), lambda: show_trained(found))
    return found.exit_code


@app.command()
@options(Spread, leave_out=("worker_memory",))
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
    from her2batch.scoreboard import show_reproduced, unit_progress
    from her2batch.study.reproduce import reproduce as run
    from her2batch.study.train import Study

    with unit_progress(quiet or as_json) as report:
        found = run(Study(cohort, out, labels, annotations), training, resources, report)
    data = {**_trained_json(found.trained), "tables": found.tables.to_pylist()}
    _emit(as_json, data, lambda: show_reproduced(found))
    return found.exit_code


@app.command()
@options(Spread, leave_out=("worker_memory",))
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
    from her2batch.scoreboard import show_tuned, unit_progress
    from her2batch.study.train import Study
    from her2batch.study.tune import tune as run

    with unit_progress(quiet or as_json) as report:
        found = run(Study(cohort, out, labels, annotations), training, samples, outer, resources, report)
    data = {**_trained_json(found.trained), "trials": found.trials.to_pylist(), "best": found.best}
    _emit(as_json, data, lambda: show_tuned(found))
    return found.exit_code


@app.command()
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
    from her2batch.flow.score import score as run
    from her2batch.scoreboard import plain_progress, show_scored

    with plain_progress("slides", quiet or as_json) as report:
        found = run(cohort, bundle, resources, report)
    _emit(as_json, _scored_json(found), lambda: show_scored(found, cohort))
    return found.exit_code


@app.command()
def overnight(
    settings: Annotated[Path, typer.Argument(help="the night's TOML file", show_default=False)],
    quiet: Quiet = False,
) -> int:
    """The nightly job: ingest what is new, score it, check it, report, tell. One JSON line on stdout."""
    from her2batch.night.overnight import overnight as run
    from her2batch.screen import progress, say
    from her2batch.settings import Overnight, from_toml

    with progress(quiet) as report:
        night = run(from_toml(settings, Overnight), report, lambda words: say(words, quiet))
    print(night.line())
    return night.exit_code


@app.command()
def status(
    cohort: CohortArgument = OUT,
    follow: Annotated[bool, typer.Option("--follow", help="watch the run that goes on, until it ends")] = False,
    as_json: Json = False,
) -> int:
    """What is done, failed and why; and that nothing vanished."""
    if follow:
        from her2batch.screen import follow as watch
        from her2batch.tables.store import Cohort

        watch(Cohort(cohort))
    from her2batch.screen import show_status
    from her2batch.tables.audit import status as count
    from her2batch.tables.store import Cohort

    found = count(Cohort(cohort))
    _emit(as_json, {**asdict(found), "adds_up": found.adds_up}, lambda: show_status(found, cohort))
    return 0 if found.adds_up else 1


@app.command()
def verify(cohort: CohortArgument = OUT, as_json: Json = False) -> int:
    """Check every file against its checksum and schema. `ingest` mends what this finds."""
    from her2batch.screen import show_problems
    from her2batch.tables.audit import verify as check
    from her2batch.tables.store import Cohort

    problems = list(check(Cohort(cohort)))
    found = [{"path": str(one.path), "what": one.what, "slide_id": one.slide_id} for one in problems]
    _emit(as_json, {"problems": found, "ok": not found}, lambda: show_problems(problems, cohort))
    return 3 if problems else 0


@app.command()
def forget(
    *,
    cohort: CohortArgument,
    patient: Annotated[str, typer.Option(help="the patient's id, as in the labels", show_default=False)],
    pseudonymize: Annotated[Path | None, typer.Option(help="key file, where the cohort has pseudonyms")] = None,
    run: Annotated[list[Path] | None, typer.Option(help="training run to look through; repeatable")] = None,
    as_json: Json = False,
) -> int:
    """Remove one patient: every file and every row, with the proof that nothing is left."""
    from her2batch.screen import show_forgotten
    from her2batch.tables.audit import verify as check
    from her2batch.tables.forget import forget as remove
    from her2batch.tables.privacy import Names, read_key
    from her2batch.tables.store import Cohort

    names = Names(read_key(pseudonymize) if pseudonymize is not None else None)
    found = remove(Cohort(cohort), patient, names, run or ())
    problems = [f"{one.path}: {one.what}" for one in check(Cohort(cohort))]
    _emit(as_json, {**asdict(found), "problems": problems}, lambda: show_forgotten(found, problems))
    return 1 if found.left or problems else 0


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="where to write it", show_default=False)],
    slides: Annotated[int, typer.Option(min=1, help="number of slides")] = 20,
    seed: Annotated[int, typer.Option(help="another seed, another cohort")] = 0,
    width: Annotated[int, typer.Option(min=512, help="typical width, level-0 px")] = 6000,
    height: Annotated[int, typer.Option(min=512, help="typical height, level-0 px")] = 5000,
) -> int:
    """Make a synthetic HER2 cohort with known truth: for trying the software, not for medicine."""
    from her2batch.synth import make_cohort

    make_cohort(folder, slides, seed, (width, height))
    print(f"{slides} slides in {folder / 'slides'}, labels in {folder / 'labels.csv'}")
    return 0


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="where to write everything")] = Path("demo"),
    slides: Annotated[int, typer.Option(min=18, help="slides to train on")] = 28,
    held_out: Annotated[int, typer.Option(min=1, help="slides to score with what was trained")] = 8,
    quiet: Quiet = False,
) -> int:
    """Synthetic slides made, ingested, trained on; and others scored with the bundle: two minutes."""
    from her2batch.demo import demo as run
    from her2batch.scoreboard import show_demo

    found = run(folder, slides, held_out, quiet)
    show_demo(found)
    return found.exit_code


@app.command()
def doctor(
    cohort: Annotated[Path | None, typer.Argument(help="a cohort folder, to check its disk")] = None,
    as_json: Json = False,
) -> int:
    """What this machine can do, and what to install."""
    from her2batch.flow.doctor import examine
    from her2batch.screen import show_doctor

    lines = examine(cohort)
    _emit(as_json, {"lines": [asdict(line) for line in lines]}, lambda: show_doctor(lines))
    return 0


def _summary_json(summary: Summary) -> dict[str, Any]:
    keys = ("slide_id", "path", "error_code", "error")
    fields = ("seen", "done", "failed", "deferred", "duplicate", "ignored", "already", "tiles", "seconds", "skipped")
    return {
        "cohort": str(summary.cohort),
        **{name: getattr(summary, name) for name in fields},
        "failures": [{key: row[key] for key in keys} for row in summary.failures],
        "exit_code": summary.exit_code,
    }


def _trained_json(found: Trained) -> dict[str, Any]:
    return {
        "run": str(found.run.root),
        "bundle": str(found.run.bundle) if found.run.bundle.is_dir() else None,
        "summary": found.summary.to_pylist(),
        "excluded": found.excluded.to_pylist(),
        "failed": found.failed,
        "exit_code": found.exit_code,
    }


def _scored_json(found: Scored) -> dict[str, Any]:
    return {
        "bundle": found.bundle.id,
        "licence": found.bundle.info.licence,
        "scored": found.scored,
        "already": found.already,
        "failures": found.failures,
        "exit_code": found.exit_code,
    }


def _emit(as_json: bool, data: dict[str, Any], show: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(data, default=str))
    else:
        show()


def main() -> None:
    """Run a command."""
    guarded(app)


def guarded(call: Callable[[], Any]) -> None:
    """Run something to the end of this process; its errors are one plain line, its exit code is the contract's."""
    try:
        code = call()
        sys.exit(code if isinstance(code, int) else 0)
    except HeadLost as error:
        print(f"her2batch: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)  # what Ray does at a process's end would hang
    except Her2BatchError as error:
        _stop(f"her2batch: {error}", error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except KeyboardInterrupt:
        _stop("her2batch: stopped; the same command goes on from here", 130)
    except Exception as error:  # noqa: BLE001  (the outermost net: a fault of ours is one line, its trace in a file)
        with tempfile.NamedTemporaryFile("w", prefix="her2batch-", suffix=".log", delete=False) as file:
            file.write("".join(traceback.format_exception(error)))
        words = " ".join(str(error).split())[:200]
        _stop(f"her2batch: a fault of ours: {type(error).__name__}: {words}; the trace is in {file.name}", 1)


def _stop(words: str, code: int) -> None:
    print(words, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
