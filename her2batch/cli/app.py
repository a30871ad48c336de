"""The command line: all commands, and the one place where an error becomes a line on stderr and an exit code.

No heavy package is imported before a command runs.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from typing import Annotated, Any

import typer

from her2batch.cli.commands import (
    adopt,
    calibrate,
    exchange,
    labels,
    report,
    send,
    serve,
    slides,
    stress,
    tools,
    training,
    validate,
)
from her2batch.cli.streams import replace_characters, use_utf8_files
from her2batch.errors import STOPPED, HeadLost, Her2BatchError, one_line

COMMANDS = (
    slides.ingest,
    adopt.adopt,
    slides.overnight,
    labels.labels,
    calibrate.calibrate,
    training.score,
    training.train,
    training.reproduce,
    training.tune,
    training.export_bundle,
    training.export_run,
    report.report,
    validate.validate,
    stress.stress,
    slides.status,
    slides.verify,
    slides.forget,
    exchange.export,
    exchange.import_,
    send.send,
    serve.serve,
    tools.synth,
    tools.demo,
    tools.doctor,
)
"""Commands in the order of --help."""

INTERRUPTED = "stopped; run the same command again to continue"

GREETING = """\
her2batch scores HER2 on whole-slide images. For research use.

    her2batch demo                  try everything on synthetic slides
    her2batch ingest /scans -o out  process the slides of a scan folder
    her2batch report out            write a report that opens in any browser

All commands: her2batch --help. What this machine can do: her2batch doctor.
"""

NATIVE_PACKAGES = frozenset({"ray", "pyarrow", "cv2", "torch"})
"""Packages with threads of their own. On a busy machine, one of some 50 short commands crashed when they ended."""

STANDARD_STREAMS = ("stdin", "stdout", "stderr")


def _exit(code: int, **_: object) -> None:
    """Turn a command's return value into the exit code."""
    raise typer.Exit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"her2batch {metadata.version('her2batch')}")
        raise typer.Exit


app = typer.Typer(
    result_callback=_exit,
    help="HER2 scoring of whole-slide images, a cohort a night. For research use.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_").replace("_", "-"))(command)


@app.callback()
def greet(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> int:
    """HER2 scoring of whole-slide images, a cohort a night. For research use."""
    if context.invoked_subcommand is None:
        print(GREETING, end="")
    return 0


def main() -> None:
    """Run the command line of this process."""
    open_missing_streams()
    use_utf8_files()
    replace_characters()
    guarded(app)


def guarded(call: Callable[[], Any]) -> None:
    """Run a callable to the end of this process: errors become one line, the exit code follows the contract."""
    code = 1

    def end() -> None:
        """End without destructors of native libraries, whose threads crash in them with exit code 134."""
        if not NATIVE_PACKAGES.isdisjoint(sys.modules):
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    atexit.register(end)  # registered first, so called last
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service is stopped like a terminal
    try:
        code = _run(call)
    finally:
        if in_main_thread:
            for number in (signal.SIGTERM, signal.SIGINT):  # a late signal must not change the exit code
                signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _run(call: Callable[[], Any]) -> int:
    """Call it and return its exit code; print errors as one line."""
    try:
        code = call()
        return code if isinstance(code, int) else 0
    except SystemExit as error:  # typer ends this way, and turns an interrupt into an exit code
        return _print_error(INTERRUPTED, STOPPED) if _is_interrupt(error) else int(error.code or 0)
    except KeyboardInterrupt:
        return _print_error(INTERRUPTED, STOPPED)
    except HeadLost as error:
        _print_error(str(error), error.exit_code)
        os._exit(error.exit_code)  # Ray's own clean-up would hang
    except Her2BatchError as error:
        return _print_error(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of stdout is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:  # noqa: BLE001  (outermost handler: one line on screen, the traceback in a file)
        from her2batch.files.locations import object_store_problem

        if (problem := object_store_problem(error)) is not None:
            return _print_error(problem, 2)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix="her2batch-", suffix=".log", delete=False
        ) as file:
            file.write("".join(traceback.format_exception(error)))
        text = f"{type(error).__name__}: {one_line(error)[:200]}"
        return _print_error(f"internal error: {text}; the traceback is in {file.name}", 1)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an exception was caused by an interrupt."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _print_error(text: str, code: int) -> int:
    print(f"her2batch: {text}", file=sys.stderr, flush=True)
    return code


def open_missing_streams() -> None:
    """Open /dev/null for every standard stream that the caller has closed (`her2batch … >&-`).

    A closed descriptor would otherwise be given to the next file that is opened, and every `print` would write to it.
    """
    for number, name in enumerate(STANDARD_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
