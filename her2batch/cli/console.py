"""Terminal output of the commands on slides and cohorts: progress, tables, and one line for each failure."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column as TableColumn
from rich.text import Text

from her2batch.assessment import UNCALIBRATED_NOTE
from her2batch.cli.tables import Column, layout, wrap
from her2batch.pipeline.progress import RunProgress
from her2batch.store.cohort import Cohort, Row
from her2batch.store.outcome_counts import OutcomeCounts
from her2batch.store.run_log import follow_run
from her2batch.tasks import MEMBRANE_RULE

if TYPE_CHECKING:
    from her2batch.pipeline.growth.added_encoders import AddedEncoders
    from her2batch.pipeline.growth.ingest_summary import IngestSummary
    from her2batch.pipeline.pieces.tma_cores import CoreNotes
    from her2batch.reports.prediction_counts import PredictionCount
    from her2batch.runtime.doctor import Check
    from her2batch.store.audit import CohortStatus, StoreProblem
    from her2batch.store.erase import EraseSummary

ProgressCallback = Callable[[RunProgress, Row], None]

PIPED_WIDTH = 10_000
"""Characters of a line where stdout is no terminal: nothing is dropped or wrapped for the program that reads it."""

BAR_WIDTH = 16
"""Characters of the progress bar, so that count and time fit 80 columns."""

NIGHT_S = 8 * 3600.0
"""An estimate above this is compared with a GPU."""

DRY_RUN_COLUMNS = (
    Column("slide", shorten=True),
    Column("file", drop=2, shorten=True),
    Column("what would be done", second_line=True),
    Column("tiles ~", right=True, drop=1),
    Column("disk ~", right=True),
    Column("time ~", right=True),
)

DOCTOR_COLUMNS = (Column("check"), Column(""), Column("found", second_line=True), Column("remedy", second_line=True))


def stdout_console() -> Console:
    """Return a console on stdout: as wide as the terminal, or without a limit where stdout is a pipe or a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


def print_table(console: Console, title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits the console's width."""
    if title:
        console.print(Text(title, style="italic"))
    lines = layout(columns, rows, console.width)
    for k, line in enumerate(lines):
        console.print(Text(line, style="bold" if k == 0 else ""), soft_wrap=True)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print text: wrapped between words on a terminal, in one line into a pipe."""
    for line in wrap(text, console.width) or [""]:
        console.print(Text(line, style=style), soft_wrap=True)


def print_failures(console: Console, rows: Sequence[Row]) -> None:
    """Print one line for each failed slide: error code, file, cause and remedy."""
    for row in rows:
        print_failure(console, str(row["error_code"]), str(row["error"]))


def print_failure(console: Console, label: str, text: str) -> None:
    """Print a red label and what failed."""
    first, *rest = wrap(f"{label}  {text}", console.width)
    console.print(Text.assemble((label, "red"), first.removeprefix(label)), soft_wrap=True)
    for line in rest:
        console.print(Text(line), soft_wrap=True)


@contextmanager
def ingest_progress(quiet: bool) -> Iterator[ProgressCallback]:
    """Report finished slides on stderr: a progress bar on a terminal, plain lines elsewhere, nothing when quiet."""
    console = Console(stderr=True)
    if quiet:
        yield lambda *_: None
    elif not console.is_terminal:
        yield _print_plain_progress
    else:
        with progress_bar("slides", console) as bar:
            task = bar.add_task("starting", total=None)

            def report(progress: RunProgress, _: Row) -> None:
                failed = f"{progress.failed} failed, " if progress.failed else ""
                text = escape(f"{failed}{progress.tiles:,} tiles, {remaining_text(progress.left)}")
                bar.update(task, completed=progress.ended, total=progress.of, description=text)

            yield report


def progress_bar(noun: str, console: Console, *more: ProgressColumn) -> Progress:
    """Return a progress bar whose count and times are never cut; the description gets the rest of the line.

    more: columns after the elapsed time.
    """
    counters = (TextColumn(f"[bold]{noun}"), BarColumn(BAR_WIDTH), MofNCompleteColumn(), TimeElapsedColumn(), *more)
    description = TextColumn("{task.description}", table_column=TableColumn(ratio=1, no_wrap=True, overflow="ellipsis"))
    return Progress(*counters, description, console=console, expand=True)


def _print_plain_progress(progress: RunProgress, row: Row) -> None:
    """Print one line; the cause of a failure follows once, with the remedy, when the run has ended."""
    outcome = row["error_code"] if row["status"] == "failed" else f"{row['n_tiles']} tiles"
    line = f"{progress.ended}/{progress.of} {row['slide_id']}: {row['status']}, {outcome}"
    print_note(f"{line} ({progress_text(progress)})")


def progress_text(progress: RunProgress) -> str:
    """Return tiles, bytes and remaining time as text."""
    read, total = size_text(progress.source_bytes), size_text(progress.of_bytes)
    return f"{progress.tiles:,} tiles, {read} of {total}, {remaining_text(progress.left)}"


def size_text(count: int) -> str:
    """Return a number of bytes as text, such as '14.7 MB'."""
    if count >= 1e9:
        return f"{count / 1e9:,.2f} GB"
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{-(-count // 1000)} kB"


def remaining_text(left: tuple[float, float] | None) -> str:
    """Return an estimated range of seconds as text, such as '3 min to 5 min left'."""
    if left is None:
        return "remaining time not known yet"
    low, high = (duration_text(seconds) for seconds in left)
    return f"{high} left" if low == high else f"{low} to {high} left"


def duration_text(seconds: float) -> str:
    """Return a duration as text in seconds, minutes or hours."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def print_note(text: str, quiet: bool = False) -> None:
    """Print one line on stderr. A closed stderr or a full disk behind it does not end a run."""
    if not quiet:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def print_ingest_summary(
    summary: IngestSummary, counts: Sequence[PredictionCount], not_scorable: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Print failures, the outcome of every file seen, the classes of this run's slides, and the next command.

    counts: predictions of the slides that this run finished.  not_scorable: reason → number of these without a class.
    """
    console = stdout_console()
    print_failures(console, summary.failures)
    for text in summary.missing:
        print_failure(console, "missing", text)
    for text in summary.unused_regions:
        print_failure(console, "unused regions", text)
    print_cores(console, summary.cores)
    finished_before = f" ({summary.already} were finished before)" if summary.already else ""
    rate = f"{summary.tiles} tiles, {summary.seconds:.1f} s"
    print_line(console, f"{OutcomeCounts.of(summary).equation}{finished_before}; {rate}")
    if summary.relabelled:
        print_line(console, f"the labels changed the patient or the stain of {len(summary.relabelled)} finished slides")
    print_added_encoders(console, summary.added)
    if summary.moved:
        print_line(
            console, f"{len(summary.moved)} finished slides have moved or have new names: their rows name the new paths"
        )
    print_absent(console, summary)
    if any(count.uncalibrated for count in counts):
        print_line(console, UNCALIBRATED_NOTE)
    for count in counts:
        if count.bundle != MEMBRANE_RULE or count.task == "her2-4way":
            print_line(console, prediction_text(count), "bold")
    for words, number in not_scorable.items():
        print_line(console, f"not scorable: {number} {'slide' if number == 1 else 'slides'}, {words}", "bold")
    if summary.skipped:
        print_line(console, f"not computed, because no bundle was given: {', '.join(summary.skipped)}")
    print_line(console, f"tables: {Cohort(summary.cohort).runs.parent}")
    print_line(console, next_step(summary))


def print_absent(console: Console, found: IngestSummary | CohortStatus) -> None:
    """Print how many slides have left the scan folder, or that the folder itself may be gone."""
    if found.archived:
        print_line(console, f"{found.archived} archived: done, and no longer in the scan folder")
    if found.unreachable:
        slides = f"{found.unreachable} slides of this cohort came from it"
        print_line(console, f"the scan folder has no slides, but {slides}: is its share mounted?")


def print_cores(console: Console, cores: CoreNotes | None) -> None:
    """Print how many cores of tissue microarrays were found, and what is not certain."""
    if cores is None:
        return
    print_line(console, f"tissue microarrays: {cores.found} cores found, {cores.missing} missing")
    for text in cores.notes:
        print_failure(console, "microarray", text)


def print_added_encoders(console: Console, added: AddedEncoders) -> None:
    """Print what became of encoders that finished slides lacked."""
    for problem in added.failures.values():
        print_failure(console, "not added", problem.removeprefix("not added"))
    if added.slides:
        names = ", ".join(sorted(added.encoders))
        print_line(console, f"{names} added to {len(added.slides)} finished slides, from their pyramids")
    if added.without_pyramid:
        count = len(added.without_pyramid)
        print_line(console, f"{count} finished slides lack an encoder and have no stored pyramid: --replan redoes them")
    if added.left:
        print_line(console, f"{added.left} finished slides still lack an encoder: run the same command again")


def prediction_text(count: PredictionCount) -> str:
    """Return the class distribution of one method as a line, such as 'her2-4way, membrane: 0 5 · 1+ 4 …'."""
    shown = {**count.classes, **({"ISH decides": count.ish_decides} if count.ish_decides else {})}
    classes = " · ".join(f"{name}: {number}" for name, number in shown.items())
    return f"{count.task} by {count.method}: {classes}; {count.review} of {count.slides} slides to review"


def next_step(summary: IngestSummary) -> str:
    """Return the command that a person most likely wants after this ingest."""
    cohort = shlex.quote(str(summary.cohort))
    if summary.stopped:
        return "stopped; run the same command again to continue"
    if summary.deferred:
        return f"next: run the same command again for the {summary.deferred} deferred slides"
    if summary.failed:
        return f"next: her2batch status {cohort}  (every failed slide and its remedy)"
    return f"next: her2batch report {cohort} --out report.html"


def print_estimate(rows: Sequence[Row], total: Mapping[str, Any]) -> None:
    """Print what --dry-run found: one row a slide, then the totals."""
    console = stdout_console()
    cells = []
    for row in rows:
        sizes = ["", "", ""]
        if row["bytes"]:
            sizes = [f"{row['tiles']:,}", f"{row['bytes'] / 1e6:,.0f} MB", f"{row['seconds']:.0f} s"]
        cells.append([row["slide_id"], Path(row["file"]).name, row["what"], *sizes])
    print_table(console, "what an ingest would do", DRY_RUN_COLUMNS, cells)
    free = total["free_bytes"]
    room = "an object store" if free is None else f"{free / 1e9:.0f} GB free"
    print_line(
        console,
        f"{total['todo']} to do, {total['current']} current, {total['duplicate']} duplicate, "
        f"{total['ignored']} ignored; about {size_text(total['bytes'])} of {room}, "
        f"{duration_text(total['seconds'])} with {total['workers']} workers; limited by {total['bound']}",
    )
    if total["seconds"] > NIGHT_S:
        with_a_gpu = duration_text(total["seconds_with_a_gpu"])
        print_line(console, f"This is longer than a night. With a GPU: about {with_a_gpu} (docs/sizing.md).")


def print_status(status: CohortStatus) -> None:
    """Print failures with their remedies, counts, and whether every file seen has an outcome."""
    console = stdout_console()
    print_failures(console, status.failures)
    for reason, count in sorted(status.reasons.items()):
        print_line(console, f"{count} × {reason}")
    print_line(console, f"{status.tiles:,} tiles, {status.tissue_mm2:,.1f} mm² of tissue")
    print_line(console, OutcomeCounts.of(status).equation)
    if status.pending:
        print_line(console, f"{len(status.pending)} slides not processed yet: run her2batch ingest again")
    print_absent(console, status)
    if status.strays:
        print_line(console, f"slides whose file was not seen in the last scan: {', '.join(status.strays)}")


def follow(cohort: Cohort) -> None:
    """Print the events of the latest run on stderr until it ends; any terminal can follow a run."""
    for event in follow_run(cohort):
        if event["event"] == "gone":
            print_note("the process of this run is gone without an end: run the same command again")
        elif text := _event_text(event):
            print_note(f"{event['at'][11:19]}  {text}")


def _event_text(event: Mapping[str, Any]) -> str | None:
    """Return an event of the run log as text, or None where a person does not need it."""
    if event["event"] == "started":
        return f"started on {event['host']}, pid {event['pid']}"
    if event["event"] == "slide" and event.get("encoders"):
        return f"{event['slide_id']}: {event['problem'] or ', '.join(event['encoders']) + ' added'}"
    if event["event"] == "slide":
        on_cpu = event.get("decoded_on_cpu") and f"decoded on the CPU: {event['decoded_on_cpu']}"
        why = event["error_code"] or "; ".join(text for text in (on_cpu, event.get("smaller_batches")) if text)
        return f"{event['slide_id']}: {event['status']}" + (f", {why}" if why else "")
    if event["event"] == "progress":
        facts = {field.name: event[field.name] for field in fields(RunProgress)}
        progress = RunProgress(**{**facts, "left": tuple(event["left"]) if event["left"] else None})
        return f"{progress.ended} of {progress.of} slides, {progress.failed} failed, {progress_text(progress)}"
    if event["event"] == "ended":
        return f"ended with an error: {event['error']}" if "error" in event else "ended"
    return None


def print_problems(problems: Sequence[StoreProblem], cohort: Path, head: tuple[int, str]) -> None:
    """Print what verify found. head: number and hash of the newest review."""
    for problem in problems:
        print(f"{problem.path}: {problem.message}")
    if head[0]:
        print(f"{cohort}: the newest review is number {head[0]}, sha256 {head[1]}")
    result = f"{len(problems)} problems; run ingest to repair them" if problems else "every file matches its checksum"
    print(f"{cohort}: {result}")


def print_erase_summary(summary: EraseSummary, problems: Sequence[str]) -> None:
    """Print what was removed, which files outside the cohort remain, and what could not be removed."""
    print(f"{len(summary.slides)} slides and {summary.files} files removed, with every row that named them")
    for night in summary.nights:
        print(f"removed the report of night {night}, which named them")
    if summary.reviews:
        print(f"{len(summary.reviews)} reviews of them were emptied; their hashes stay, so that the chain is intact")
    for path in summary.sources:
        print(f"outside the cohort, not removed: {path}")
    for run in summary.runs:
        print(f"training run {run} contains them and its networks were trained on them: train again without them")
    print("Remove them from your labels files too: an ingest with these labels would write their rows again.")
    for text in [*map(str, summary.left), *problems]:
        print(f"NOT REMOVED: {text}")
    if not summary.left and not problems:
        print("nothing in the cohort names them any more, and every other file matches its checksum")


def print_doctor(lines: Sequence[Check]) -> None:
    """Print what this machine can do, and the remedy for what it can't."""
    marks = {True: "ok", False: "NO", None: "–"}
    rows = [[line.name, marks[line.ok], line.what, line.remedy] for line in lines]
    print_table(stdout_console(), "", DOCTOR_COLUMNS, rows)
