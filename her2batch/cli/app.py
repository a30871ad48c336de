"""The command line: every command, and the one place where errors become a line and an exit code.

Nothing heavy is imported before a command runs.
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
from typing import Any

import typer

from her2batch.cli.commands import exchange, report, serve, slides, tools, training
from her2batch.errors import STOPPED, HeadLost, Her2BatchError, in_line

COMMANDS = (
    slides.ingest,
    slides.overnight,
    training.score,
    training.train,
    training.reproduce,
    training.tune,
    report.report,
    slides.status,
    slides.verify,
    slides.forget,
    exchange.export,
    exchange.import_,
    serve.serve,
    tools.synth,
    tools.demo,
    tools.doctor,
)
"""In the order of --help."""

INTERRUPTED = "stopped; the same command goes on from here"


def _leave(code: int) -> None:
    raise typer.Exit(code)


app = typer.Typer(
    result_callback=_leave,
    help="HER2 scoring of whole-slide images, a cohort a night. For research use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for one in COMMANDS:
    app.command(one.__name__.rstrip("_"))(one)


def main() -> None:
    """Run a command."""
    guarded(app)


def guarded(call: Callable[[], Any]) -> None:
    """Run something to the end of this process; its errors are one plain line, its exit code is the contract's."""
    code = 1

    def end() -> None:
        """Ray's native threads crash in the destructors of a process that was interrupted while Ray started."""
        if "ray" in sys.modules:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(code)

    atexit.register(end)  # the first to be registered is the last to be called
    ours = threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a service is what stops a terminal
    try:
        code = _run(call)
    finally:
        if ours:
            for number in (signal.SIGTERM, signal.SIGINT):  # all is written; the exit code is not to be another's
                signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _run(call: Callable[[], Any]) -> int:
    """Its exit code; its errors are said."""
    try:
        code = call()
        return code if isinstance(code, int) else 0
    except SystemExit as error:  # so typer ends; an interrupt it turns into an exit code without a word
        return _say(INTERRUPTED, STOPPED) if _interrupted(error) else int(error.code or 0)
    except KeyboardInterrupt:
        return _say(INTERRUPTED, STOPPED)
    except HeadLost as error:
        _say(str(error), error.exit_code)
        os._exit(error.exit_code)  # what Ray does at a process's end would hang
    except Her2BatchError as error:
        return _say(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:  # noqa: BLE001  (the outermost net: a fault of ours is one line, its trace in a file)
        with tempfile.NamedTemporaryFile("w", prefix="her2batch-", suffix=".log", delete=False) as file:
            file.write("".join(traceback.format_exception(error)))
        words = in_line(error)[:200]
        return _say(f"a fault of ours: {type(error).__name__}: {words}; the trace is in {file.name}", 1)


def _interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _say(words: str, code: int) -> int:
    print(f"her2batch: {words}", file=sys.stderr, flush=True)
    return code
