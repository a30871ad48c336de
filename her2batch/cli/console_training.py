"""What a person sees of training and scoring in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from her2batch.cli.console import plain_table, print_note

if TYPE_CHECKING:
    from her2batch.experiments.reproduce import ReproductionSummary
    from her2batch.experiments.train import TrainingSummary
    from her2batch.experiments.tune import TuningSummary
    from her2batch.runtime.score import ScoreSummary
    from her2batch.store.training_run import Unit

SHOWN = 5
"""Examples of each reason why slides are left out."""


@contextmanager
def plain_progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """How many of how many: a bar on a terminal, lines elsewhere, nothing when quiet; always on stderr."""
    with _bar(what, quiet) as show:
        yield lambda count, total: show(count, total, "")


@contextmanager
def unit_progress(quiet: bool) -> Iterator[Callable[[int, int, Unit, str | None], None]]:
    """The same for units of training, with what failed."""
    with _bar("units", quiet) as show:

        def report(count: int, total: int, unit: Unit, why: str | None) -> None:
            show(count, total, f"{unit.name}: {'done' if why is None else 'failed, ' + why}")

        yield report


@contextmanager
def _bar(what: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    console = Console(stderr=True)
    if quiet:
        yield lambda *_: None
    elif not console.is_terminal:
        yield lambda count, total, words: print_note(f"{count}/{total} {what} {words}".rstrip())
    else:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(TextColumn(f"[bold]{what}"), *columns, TextColumn("{task.description}"), console=console) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda count, total, words: bar.update(task, completed=count, total=total, description=escape(words))


def print_training_summary(found: TrainingSummary) -> None:
    """Figures over the folds, who was left out, what failed, where the bundle is."""
    console = Console()
    console.print(figures("mean±sd over the folds, %", found.summary.to_pylist()))
    _show_rest(console, found)


def _show_rest(console: Console, found: TrainingSummary) -> None:
    print_excluded(console, found.excluded.to_pylist())
    if found.run.table("reviews").is_file():
        _show_reviewed(console, found.run.read("reviews").to_pylist())
    for name, why in sorted(found.failed.items()):
        console.print(f"[red]failed[/red] {name}: {escape(why)}", highlight=False, soft_wrap=True)
    if found.stopped:
        console.print("stopped; the same command goes on from here", highlight=False)
    if found.run.bundle.is_dir():
        console.print(f"bundle: {found.run.bundle}", highlight=False, soft_wrap=True)
    console.print(f"run: {found.run.root}", highlight=False, soft_wrap=True)
    if found.run.report.is_file():
        console.print(f"report: {found.run.report}", highlight=False, soft_wrap=True)


def _show_reviewed(console: Console, rows: list[dict[str, Any]]) -> None:
    console.print(f"{len(rows)} labels by the newest review of their slide", highlight=False)
    for row in rows:
        if row["words"] is not None:
            label = f"{row['slide_id']} {row['column']} {row['now'] or 'left out'} (review {row['number']})"
            console.print(f"  {label}: {row['words']}", highlight=False, markup=False, soft_wrap=True)


def figures(title: str, rows: list[dict[str, Any]]) -> Any:
    """A table of summary rows."""
    table = plain_table(title, "task", "method", "input", "AUC", "F1", "accuracy", "kappa", "n")
    for row in rows:
        percents = [_spread(row, name, 2) for name in ("auc", "f1", "accuracy")]
        table.add_row(row["task"], row["method"], row["input"], *percents, _spread(row, "kappa", 2), str(row["n"]))
    return table


def _spread(row: Mapping[str, Any], name: str, digits: int) -> str:
    mean, sd = row[f"{name}_mean"], row[f"{name}_sd"]
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + (f"±{sd:.{digits}f}" if sd is not None else "")


def print_reproduction(found: ReproductionSummary) -> None:
    """The paper's rows with ours; then what show_trained shows."""
    console = Console()
    rows = found.tables.to_pylist()
    title = "mean±sd over the folds, %; in brackets the paper's, on a cohort nobody else has"
    table = plain_table(title, "table", "task", "method", "input", "AUC", "F1", "accuracy", "")
    for row in rows:
        cells = [f"{_spread(row, name, 1)} [{_or_dash(row[f'paper_{name}'])}]" for name in ("auc", "f1", "accuracy")]
        table.add_row(row["table"], row["task"], row["method"], row["input"], *map(escape, cells), row["status"])
    console.print(table)
    for why, count in sorted(Counter(row["why"] for row in rows if row["why"]).items()):
        console.print(f"{count} rows: {escape(why)}", highlight=False, soft_wrap=True)
    counts = Counter(row["status"] for row in rows)
    console.print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())), highlight=False)
    _show_rest(console, found.trained)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def print_tuning_summary(found: TuningSummary) -> None:
    """The best trials, the settings that went into the bundle, and their figures on the tested folds."""
    console = Console()
    table = plain_table("trials, by validation loss", "fold", "trial", "loss", "epochs", "settings")
    rows = [row for row in found.trials.to_pylist() if row["val_loss"] is not None]
    for row in sorted(rows, key=lambda one: (one["fold"], one["val_loss"]))[: 2 * SHOWN]:
        table.add_row(str(row["fold"]), row["trial"], f"{row['val_loss']:.4f}", str(row["epochs"]), row["settings"])
    console.print(table)
    best = ", ".join(f"{name}={value}" for name, value in found.best.items())
    console.print(f"{found.trials.num_rows} trials, best: {best}", highlight=False, soft_wrap=True)
    print_training_summary(found.trained)


def print_excluded(console: Console, rows: list[dict[str, Any]]) -> None:
    """Slides that are left out, by task and reason, with examples; the run's table has them all."""
    counts = Counter((row["task"], row["reason"]) for row in rows)
    for (task, reason), count in sorted(counts.items()):
        words = [row["words"] for row in rows if (row["task"], row["reason"]) == (task, reason)][:SHOWN]
        shown = "; ".join(words) if reason in ("contradiction", "needs-ish", "failed") else ""
        more = f"; and {count - SHOWN} more" if shown and count > SHOWN else ""
        text = f"left out of {task}: {count} × {reason}" + (f" ({escape(shown)}{more})" if shown else "")
        console.print(text, highlight=False, soft_wrap=True)


def print_score_summary(found: ScoreSummary, cohort: Path) -> None:
    """How many slides a bundle has scored, under which licence, and where the rows are."""
    console = Console()
    for words in found.failures.values():
        console.print(f"[red]failed[/red] {escape(words)}", highlight=False, soft_wrap=True)
    again = f", {found.already} were scored before" if found.already else ""
    console.print(f"{found.scored} slides scored{again}, {len(found.failures)} failed", highlight=False)
    console.print(f"licence of the bundle: {escape(found.bundle.info.licence)}", highlight=False, soft_wrap=True)
    where = cohort / "tables" / "predictions" / found.bundle.id
    console.print(f"predictions: {where}", highlight=False, soft_wrap=True)
    if found.stopped:
        console.print("stopped; the same command goes on from here", highlight=False)
