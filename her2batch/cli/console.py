"""What a person sees in the terminal: progress, tables, one plain line for each thing that went wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from her2batch.files.locks import is_locked
from her2batch.pipeline.progress import RunProgress
from her2batch.store.cohort import Cohort, Row
from her2batch.store.run_log import latest_log, log_entries

if TYPE_CHECKING:
    from her2batch.runtime.doctor import Line
    from her2batch.runtime.ingest import IngestSummary
    from her2batch.store.audit import Problem, Status
    from her2batch.store.erase import EraseSummary

Report = Callable[[RunProgress, Row], None]


@contextmanager
def progress(quiet: bool) -> Iterator[Report]:
    """A bar on a terminal, plain lines elsewhere, nothing when quiet; always on stderr."""
    console = Console(stderr=True)
    if quiet:
        yield lambda *_: None
    elif not console.is_terminal:
        yield _plain_line
    else:
        columns = (TextColumn("[bold]slides"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
            task = bar.add_task("starting", total=None)

            def report(tally: RunProgress, row: Row) -> None:
                words = escape(f"{how_far(tally)} · {_outcome(row)}")
                bar.update(task, completed=tally.ended, total=tally.of, description=words)
                if row["status"] == "failed":
                    bar.console.print(f"[red]failed[/red] {escape(str(row['error']))}")

            yield report


def _plain_line(tally: RunProgress, row: Row) -> None:
    words = row["error"] if row["status"] == "failed" else f"{row['n_tiles']} tiles"
    line = f"{tally.ended}/{tally.of} {row['slide_id']}: {row['status']}, {words}"
    print_note(f"{line} ({how_far(tally)})")


def how_far(tally: RunProgress) -> str:
    """Tiles, bytes and time left in words."""
    return f"{tally.tiles:,} tiles, {size(tally.source_bytes)} of {size(tally.of_bytes)}, {time_left(tally.left)}"


def size(count: int) -> str:
    """Bytes in words."""
    if count >= 1e9:
        return f"{count / 1e9:,.2f} GB"
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{-(-count // 1000)} kB"


def time_left(left: tuple[float, float] | None) -> str:
    """An estimate with its doubt."""
    if left is None:
        return "time left not known yet"
    low, high = (duration(one) for one in left)
    return f"{high} left" if low == high else f"{low} to {high} left"


def _outcome(row: Row) -> str:
    return f"{row['slide_id']}: {row['error_code'] or str(row['n_tiles']) + ' tiles'}"


def print_note(words: str, quiet: bool = False) -> None:
    """One line on stderr. Nobody may be there to read it, or its disk be full: no run ends for that."""
    if not quiet:
        with suppress(OSError):
            print(words, file=sys.stderr, flush=True)


def print_ingest_summary(summary: IngestSummary) -> None:
    """What became of everything seen, and where it lies."""
    console = Console()
    _show_failures(console, summary.failures)
    words = [f"{summary.done} done", f"{summary.failed} failed", f"{summary.deferred} deferred"]
    words += [f"{summary.duplicate} duplicate", f"{summary.ignored} ignored"]
    again = f" ({summary.already} were current before)" if summary.already else ""
    rate = f"{summary.tiles} tiles, {summary.seconds:.1f} s"
    console.print(f"seen {summary.seen} = {' + '.join(words)}{again}; {rate}", highlight=False)
    if summary.skipped:
        console.print(f"skipped without a bundle: {', '.join(summary.skipped)}", highlight=False)
    if summary.stopped:
        console.print("stopped; the same command goes on from here", highlight=False)
    cohort = Cohort(summary.cohort)
    for label, path in (("tables", cohort.runs.parent), ("pyramids", cohort.root / "pyramids")):
        console.print(f"{label}: {path}", highlight=False, soft_wrap=True)


def _show_failures(console: Console, rows: list[Row]) -> None:
    """One failed slide a line: its code, its file, what happened and what to do."""
    for row in rows:
        console.print(f"[red]{row['error_code']}[/red]  {escape(str(row['error']))}", highlight=False, soft_wrap=True)


FOLLOW_S = 1.0
"""Between two looks at a journal."""

NIGHT_S = 8 * 3600.0
"""An estimate beyond this is worth a word."""


def print_estimate(rows: list[Row], total: Mapping[str, Any]) -> None:
    """The table of --dry-run."""
    console = Console()
    table = plain_table("what would be done", "slide", "file", "what", "tiles ~", "disk ~", "time ~")
    for row in rows:
        sizes = (
            (f"{row['tiles']:,}", f"{row['bytes'] / 1e6:,.0f} MB", f"{row['seconds']:.0f} s")
            if row["bytes"]
            else ("", "", "")
        )
        table.add_row(row["slide_id"], Path(row["file"]).name, row["what"], *sizes)
    console.print(table)
    console.print(
        f"{total['todo']} to do, {total['current']} current, {total['duplicate']} duplicate, "
        f"{total['ignored']} ignored; "
        f"about {size(total['bytes'])} of {_free(total['free_bytes'])}, "
        f"{duration(total['seconds'])} with {total['workers']} workers; {total['bound']} decide",
        highlight=False,
    )
    if total["seconds"] > NIGHT_S:
        with_a_gpu = duration(total["seconds_with_a_gpu"])
        console.print(f"that is more than a night; with a GPU about {with_a_gpu} (docs/sizing.md)", highlight=False)


def _free(size: int | None) -> str:
    return "a store without an end" if size is None else f"{size / 1e9:.0f} GB free"


def print_status(found: Status, cohort: Path) -> None:
    """Counts, failures with their remedies, and the proof that nothing vanished."""
    console = Console()
    _show_failures(console, found.failures)
    for reason, count in sorted(found.reasons.items()):
        console.print(f"{count} × {reason}", highlight=False)
    console.print(f"{found.tiles:,} tiles, {found.tissue_mm2:,.1f} mm² of tissue", highlight=False)
    sign = "=" if found.adds_up else "≠"
    parts = f"{found.done} done + {found.failed} failed + {found.deferred} deferred"
    parts += f" + {found.duplicate} duplicate + {found.ignored} ignored"
    console.print(f"seen {found.seen} {sign} {parts}", highlight=False)
    if found.pending:
        console.print(f"{len(found.pending)} not processed yet: run her2batch ingest again", highlight=False)
    if found.strays:
        console.print(f"rows whose file was not seen: {', '.join(found.strays)}", highlight=False, soft_wrap=True)


def follow(cohort: Cohort) -> None:
    """What a run says while it goes on, in any terminal; returns when it has ended or its process has."""
    cohort.check()
    path, at = latest_log(cohort), 0
    if path is None:
        return
    while True:
        for behind, event in log_entries(path, at):
            at = behind
            if words := _told(event):
                print(f"{event['at'][11:19]}  {words}", file=sys.stderr, flush=True)
            if event["event"] == "ended":
                return
        if not is_locked(cohort.root):
            print("the run has gone without a word: run the same command again", file=sys.stderr)
            return
        time.sleep(FOLLOW_S)


def _told(event: Mapping[str, Any]) -> str | None:
    """A line of the journal in words; None: of no interest here."""
    if event["event"] == "started":
        return f"started on {event['host']}, pid {event['pid']}"
    if event["event"] == "slide":
        return f"{event['slide_id']}: {event['status']}" + (f", {event['error_code']}" if event["error_code"] else "")
    if event["event"] == "progress":
        facts = {one.name: event[one.name] for one in fields(RunProgress)}
        tally = RunProgress(**{**facts, "left": tuple(event["left"]) if event["left"] else None})
        return f"{tally.ended} of {tally.of} slides, {tally.failed} failed, {how_far(tally)}"
    if event["event"] == "ended":
        return f"ended with an error: {event['error']}" if "error" in event else "ended"
    return None


def print_problems(problems: list[Problem], cohort: Path, head: tuple[int, str]) -> None:
    """What verify found. head: number and hash of the newest review."""
    for one in problems:
        print(f"{one.path}: {one.what}")
    if head[0]:
        print(f"{cohort}: the newest review is number {head[0]}, sha256 {head[1]}")
    words = f"{len(problems)} problems; ingest mends them" if problems else "every file is as its row says"
    print(f"{cohort}: {words}")


def print_erase_summary(found: EraseSummary, problems: list[str]) -> None:
    """What was removed, what is not ours to remove, and what is left."""
    print(f"{len(found.slides)} slides and {found.files} files removed, with every row that named them")
    for night in found.nights:
        print(f"the report of night {night} named them: removed")
    if found.reviews:
        print(f"{len(found.reviews)} reviews of them were emptied; their hashes stay, so that the chain holds")
    for path in found.sources:
        print(f"not ours, still there: {path}")
    for one in found.runs:
        print(f"a training run knows them: {one}; its networks were trained on them: train again without them")
    print("take them out of your labels files too: an ingest that is given these writes what they say")
    for words in [*map(str, found.left), *problems]:
        print(f"NOT FORGOTTEN: {words}")
    if not found.left and not problems:
        print("nothing in the store names them any more, and every other file is as its row says")


def print_doctor(lines: list[Line]) -> None:
    """What this machine can do."""
    table = plain_table("this machine", "", "", "what", "remedy")
    for line in lines:
        mark = {True: "[green]ok[/green]", False: "[red]no[/red]", None: "–"}[line.ok]
        table.add_row(line.name, mark, escape(line.what), escape(line.remedy))
    Console().print(table)


def plain_table(title: str, *columns: str) -> Table:
    """A table without lines."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words."""
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 5400
        else f"{seconds / 60:.0f} min"
        if seconds >= 90
        else f"{seconds:.0f} s"
    )
