"""The command line: every command, and the one place where errors become a line and an exit code.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import Any

import typer

from her2batch.commands import exchange, report, slides, study, tools, web
from her2batch.errors import HeadLost, Her2BatchError, in_line

COMMANDS = (
    slides.ingest,
    slides.overnight,
    study.score,
    study.train,
    study.reproduce,
    study.tune,
    report.report,
    slides.status,
    slides.verify,
    slides.forget,
    exchange.export,
    exchange.import_,
    web.serve,
    tools.synth,
    tools.demo,
    tools.doctor,
)
"""In the order of --help."""


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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a service is what stops a terminal
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
        words = in_line(error)[:200]
        _stop(f"her2batch: a fault of ours: {type(error).__name__}: {words}; the trace is in {file.name}", 1)
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):  # all is written; the exit code is not to be another's
                signal.signal(number, signal.SIG_IGN)


def _stop(words: str, code: int) -> None:
    print(words, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
