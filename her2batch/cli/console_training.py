"""Terminal output of training, tuning, scoring and file transfer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import TimeRemainingColumn

from her2batch.cli.console import print_failure, print_line, print_note, print_table, progress_bar, stdout_console
from her2batch.cli.tables import Column
from her2batch.files.parquet import read_parquet

if TYPE_CHECKING:
    from her2batch.experiments.reproduce import ReproductionSummary
    from her2batch.experiments.train import TrainingSummary
    from her2batch.experiments.training_cost import CostRow
    from her2batch.experiments.tune import TuningSummary
    from her2batch.runtime.score import ScoreSummary
    from her2batch.store.training_run import Unit

NOTE_LENGTH = 600
"""Characters of a note on the labels that are printed."""

LISTED_REASONS = ("contradiction", "needs-ish", "failed", "no-fold", "no-site")
"""Reasons for which the slides that are left out are named."""

EXAMPLES = 5
"""Slides that are named for each reason why slides are left out."""

METRIC_COLUMNS = (
    Column("task"),
    Column("method"),
    Column("input", shorten=True),
    Column("AUC", right=True),
    Column("F1", right=True, drop=1),
    Column("accuracy", right=True),
    Column("kappa", right=True, drop=2),
    Column("n", right=True, drop=3),
)

NUMBER_COLUMNS = (
    Column("task"),
    Column("method"),
    Column("input", shorten=True),
    Column("C-index, %", right=True),
    Column("R²", right=True),
    Column("mean absolute error", right=True),
    Column("n", right=True, drop=1),
)

TEST_COLUMNS = (
    Column("cohort", shorten=True),
    Column("task"),
    Column("method"),
    Column("metric"),
    Column("value", right=True),
    Column("n", right=True),
)

PAPER_COLUMNS = (
    Column("table"),
    Column("task"),
    Column("method"),
    Column("input"),
    Column("status"),
    Column("AUC, F1, accuracy [paper]", second_line=True),
)

COST_COLUMNS = (
    Column("method"),
    Column("input"),
    Column("units", right=True),
    Column("CPU minutes", right=True),
    Column("settings", second_line=True),
)

METRIC_NAMES = {
    "auc": "AUC, %", "f1": "F1, %", "accuracy": "accuracy, %", "kappa": "kappa", "c_index": "C-index, %", "r2": "R²",
    "mae": "mean absolute error",
}  # fmt: skip

GAIN_COLUMNS = (
    Column("metric"),
    Column("tuned", right=True),
    Column("without", right=True),
    Column("difference", right=True),
    Column("folds"),
)

TRIAL_COLUMNS = (
    Column("fold", right=True),
    Column("trial"),
    Column("loss", right=True),
    Column("epochs", right=True),
    Column("settings", second_line=True),
)


@contextmanager
def count_progress(noun: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Report how many of how many are done on stderr: a bar on a terminal, lines elsewhere, nothing when quiet."""
    with _progress_bar(noun, quiet) as update:
        yield lambda count, total: update(count, total, "")


@contextmanager
def unit_progress(quiet: bool) -> Iterator[Callable[[int, int, Unit, str | None], None]]:
    """Report finished training units on stderr. The reasons of failures follow once, when the run has ended."""
    with _progress_bar("units", quiet) as update:

        def report(count: int, total: int, unit: Unit, failure: str | None) -> None:
            update(count, total, f"{unit.name}: {'done' if failure is None else 'failed'}")

        yield report


@contextmanager
def _progress_bar(noun: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    console = Console(stderr=True)
    if quiet:
        yield lambda *_: None
    elif not console.is_terminal:
        yield lambda count, total, text: print_note(f"{count}/{total} {noun} {text}".rstrip())
    else:
        with progress_bar(noun, console, TimeRemainingColumn()) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda count, total, text: bar.update(task, completed=count, total=total, description=escape(text))


def shorten_note(note: str) -> str:
    """Return a note without the names at its end where it has very many."""
    return note if len(note) <= NOTE_LENGTH else f"{note[:NOTE_LENGTH].rpartition(',')[0]}, … (--json has all)"


def print_training_summary(summary: TrainingSummary) -> None:
    """Print the metrics over the folds, the excluded slides, failed units, and where bundle and report are."""
    console = stdout_console()
    print_metrics(console, _rows_without_auc(summary, summary.summary.to_pylist()))
    if summary.run.table("test_metrics").is_file():
        _print_tests(console, read_parquet(summary.run.table("test_metrics")).to_pylist())
    _print_outputs(console, summary)


def _rows_without_auc(summary: TrainingSummary, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of metrics as the report shows them: no AUC where a class has too few slides for one."""
    from her2batch.training.statistics import cells_with_few_slides, without_auc

    return without_auc(rows, cells_with_few_slides(summary.run.read("predictions")))


def _print_outputs(console: Console, summary: TrainingSummary) -> None:
    if names := summary.run.read_settings()["training"].get("fold_names"):
        _print_given_folds(console, summary.run.read("metrics").to_pylist(), names)
    print_excluded(console, summary.excluded.to_pylist())
    for note in summary.run.read_notes("labels"):
        print_line(console, f"labels: {shorten_note(note)}")
    if notes := summary.run.read_notes("annotations"):
        print_line(console, f"{len(notes)} annotation files were not used")
        for note in notes[:EXAMPLES]:
            print_line(console, f"  {note}")
    if summary.run.table("reviews").is_file():
        _print_applied_reviews(console, summary.run.read("reviews").to_pylist())
    for name, reason in sorted(summary.failed.items()):
        print_failure(console, "failed", f"{name}: {reason}")
    if summary.stopped:
        print_line(console, "stopped; run the same command again to continue")
    if summary.run.bundle.is_dir():
        print_line(console, f"bundle: {summary.run.bundle}")
    print_line(console, f"run: {summary.run.root}")
    if summary.run.report.is_file():
        print_line(console, f"report: {summary.run.report}")


def _print_tests(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the metrics of the bundle on other cohorts, with their intervals."""
    cells = []
    for row in (row for row in rows if row["class"] is None):
        value = "too few slides of a class" if row["value"] is None else f"{row['value']:.3f}"
        interval = f" ({row['low']:.3f} to {row['high']:.3f})" if row["low"] is not None else ""
        names = [row["cohort"], row["task"], row["method"], row["metric"]]
        cells.append([*names, value + interval, str(row["n"])])
    print_table(console, "test on other cohorts: value (95 % interval over patients)", TEST_COLUMNS, cells)


def _print_given_folds(console: Console, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Print the metrics of each fold that the user gave, by its name."""
    cells = []
    for row in rows:
        figures = [row[name] if row.get("c_index") is None else None for name in ("auc", "f1", "accuracy", "kappa")]
        percents = ["–" if value is None else f"{100 * value:.2f}" for value in figures[:3]]
        kappa = "–" if figures[3] is None else f"{figures[3]:.2f}"
        cells.append([row["task"], row["method"], names[row["fold"]], *percents, kappa, str(row["n"])])
    columns = (*METRIC_COLUMNS[:2], Column("fold", shorten=True), *METRIC_COLUMNS[3:])
    print_table(console, "each fold, %", columns, cells)


def _print_applied_reviews(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    print_line(console, f"{len(rows)} labels taken from the newest review of their slide")
    for row in rows:
        if row["words"] is not None:
            label = f"{row['slide_id']} {row['column']} {row['now'] or 'left out'} (review {row['number']})"
            print_line(console, f"  {label}: {row['words']}")


def print_metrics(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print summary rows: mean and standard deviation of each metric over the folds, in per cent."""
    numbers = [row for row in rows if row.get("c_index_mean") is not None]
    cells = []
    for row in (row for row in rows if row not in numbers):
        metrics = [_metric(row, name, 2) for name in ("auc", "f1", "accuracy", "kappa")]
        cells.append([row["task"], row["method"], row["input"], *metrics, str(row["n"])])
    if cells:
        print_table(console, "mean±sd over the folds, %", METRIC_COLUMNS, cells)
    if numbers:
        cells = [
            [
                row["task"],
                row["method"],
                row["input"],
                *(_mean_sd(row, name, 2) for name in ("c_index", "r2", "mae")),
                str(row["n"]),
            ]
            for row in numbers
        ]
        print_table(console, "predicted numbers, mean±sd over the folds", NUMBER_COLUMNS, cells)


def _metric(row: Mapping[str, Any], name: str, digits: int) -> str:
    return "too few" if name == "auc" and row.get("too_few") else _mean_sd(row, name, digits)


def _mean_sd(row: Mapping[str, Any], name: str, digits: int) -> str:
    mean, sd = row[f"{name}_mean"], row[f"{name}_sd"]
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + (f"±{sd:.{digits}f}" if sd is not None else "")


def print_reproduction(summary: ReproductionSummary) -> None:
    """Print each row of the paper's tables beside its reproduction, then what a training summary prints."""
    console = stdout_console()
    rows = _rows_without_auc(summary.trained, summary.tables.to_pylist())
    cells = []
    for row in rows:
        metrics = [f"{_metric(row, name, 1)} [{_or_dash(row[f'paper_{name}'])}]" for name in ("auc", "f1", "accuracy")]
        cells.append([row["table"], row["task"], row["method"], row["input"], row["status"], "  ".join(metrics)])
    title = "mean±sd over the folds, %; in brackets the paper's figures, which are from another cohort"
    print_table(console, title, PAPER_COLUMNS, cells)
    for reason, count in sorted(Counter(row["why"] for row in rows if row["why"]).items()):
        print_line(console, f"{count} rows: {reason}")
    if any(row["table"] == "ours" for row in rows):
        print_line(console, "rows of the table `ours` are ours, not the paper's")
    counts = Counter(row["status"] for row in rows)
    print_line(console, ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    _print_outputs(console, summary.trained)


def print_training_cost(rows: Sequence[CostRow]) -> None:
    """Print the estimated CPU time of each method on each input, and of the run on two cores."""
    console = stdout_console()
    cells = [[row.method, row.input, str(row.units), f"{row.seconds / 60:.1f}", row.settings] for row in rows]
    print_table(console, "what would be trained; nothing was written", COST_COLUMNS, cells)
    seconds = sum(row.seconds for row in rows)
    print_line(console, f"{seconds / 3600:.1f} hours of CPU time at most, {seconds / 7200:.1f} hours on two cores")


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def print_tuning_summary(summary: TuningSummary) -> None:
    """Print the best trials, the settings that went into the bundle, the gain, and the metrics on the tested folds."""
    console = stdout_console()
    print_trials(console, summary.trials.to_pylist())
    settings = ", ".join(f"{name}={value}" for name, value in summary.best.items())
    print_line(console, f"{summary.trials.num_rows} trials" + (f", best: {settings}" if settings else ""))
    if summary.gain:
        rows = _rows_without_auc(summary.trained, summary.trained.summary.to_pylist())
        print_gain(console, summary.gain, any(row["too_few"] for row in rows))
    print_training_summary(summary.trained)


def print_trials(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the best trials of each fold, ten in all."""
    trials = sorted(
        (row for row in rows if row["val_loss"] is not None), key=lambda row: (row["fold"], row["val_loss"])
    )
    by_fold = {fold: list(of_fold) for fold, of_fold in groupby(trials, key=lambda trial: trial["fold"])}
    best = [trial for of_fold in by_fold.values() for trial in of_fold[: max(1, 2 * EXAMPLES // len(by_fold))]]
    cells = [
        [str(trial["fold"]), trial["trial"], f"{trial['val_loss']:.4f}", str(trial["epochs"]), trial["settings"]]
        for trial in best
    ]
    print_table(console, "trials with the smallest validation loss", TRIAL_COLUMNS, cells)


def print_gain(console: Console, gain: Sequence[Mapping[str, Any]], too_few: bool) -> None:
    """Print the metrics of the tuned settings beside those without a search, and whether they differ by enough.

    gain: rows of `tuning_gain`.  too_few: a class has too few slides for an AUC, which is left out.
    """
    from her2batch.experiments.tuning_gain import is_improvement

    shown = [row for row in gain if not (too_few and row["metric"] == "auc")]
    cells = []
    for row in shown:
        scale = 100 if METRIC_NAMES[row["metric"]].endswith("%") else 1
        spread = "" if row["sd"] is None else f"±{scale * row['sd']:.2f}"
        values = [f"{scale * row['tuned']:.2f}", f"{scale * row['untuned']:.2f}"]
        folds = f"{row['better']} better, {row['worse']} worse"
        cells.append([METRIC_NAMES[row["metric"]], *values, f"{scale * row['difference']:+.2f}{spread}", folds])
    folds = max(row["folds"] for row in gain)
    same = f", on the same {folds} outer folds" if folds > 1 else ""
    print_table(console, f"with and without the search{same}", GAIN_COLUMNS, cells)
    if folds < 2:
        print_line(console, "one outer fold cannot show whether the search improves anything: give --outer 3 or more")
        return
    improved = [METRIC_NAMES[row["metric"]].partition(",")[0] for row in shown if is_improvement(row)]
    names = f"improved by more than the folds differ: {', '.join(improved)}"
    print_line(console, names if improved else "no metric is improved by more than the folds differ")


def print_exported_models(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print each model of a bundle with its exported file and its check, or why there is none."""
    columns = (Column("task"), Column("method"), Column("input"), Column("file", shorten=True), Column("check"))
    cells = [[row["task"], row["method"], row["input"], row["path"] or "–", row["words"]] for row in rows]
    print_table(stdout_console(), "exported models", columns, cells)


def print_exported_run(to: str, out: Path, added: Sequence[str]) -> None:
    """Print how many units of a run a tracker got, and how to look at them."""
    console = stdout_console()
    where = "MLflow" if to == "mlflow" else str(out)
    print_line(console, f"{len(added)} units were added to {where}" if added else f"{where} has all units of the run")
    if to == "tensorboard":
        print_line(console, f"tensorboard --logdir {out} shows them")


def print_excluded(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print how many slides are left out, by task and reason, with examples."""
    counts = Counter((row["task"], row["reason"]) for row in rows)
    for (task, reason), count in sorted(counts.items()):
        texts = [row["words"] for row in rows if (row["task"], row["reason"]) == (task, reason)][:EXAMPLES]
        examples = "; ".join(texts) if reason in LISTED_REASONS else ""
        more = f"; and {count - EXAMPLES} more" if examples and count > EXAMPLES else ""
        print_line(console, f"left out of {task}: {count} × {reason}" + (f" ({examples}{more})" if examples else ""))


def print_score_summary(summary: ScoreSummary, cohort: Path) -> None:
    """Print how many slides a bundle scored, its licence, and where the predictions are."""
    console = stdout_console()
    for failure in summary.failures.values():
        print_failure(console, "failed", failure)
    before = f", {summary.already} were scored before" if summary.already else ""
    print_line(console, f"{summary.scored} slides scored{before}, {len(summary.failures)} failed")
    if count := sum(summary.not_applicable.values()):
        slides = summary.not_applicable_text
        print_line(console, f"{count} slides have no prediction: no task of the bundle applies to them ({slides})")
    print_line(console, f"licence of the bundle: {summary.bundle.info.licence}")
    print_line(console, f"predictions: {cohort / 'tables' / 'predictions' / summary.bundle.id}")
    if summary.stopped:
        print_line(console, "stopped; run the same command again to continue")
