"""Kill an ingest at its n-th system call, or let that call fail, for one n after the other.

Run under strace, which counts each process's calls of each kind and strikes at the one whose number STRIKE says. For
each n a child is forked that first makes STRIKE - n such calls, so that the n-th of its ingest is struck; a second
child resumes, a third looks. Prints one JSON line a strike. How many calls of a kind an ingest makes is counted in
strace's log of an undisturbed one.

    python -m tests.faults.syscall_faults LOG SCANS OUT REFERENCE --calls fsync rename --tries 5

Without strace, --strike KILL (or EIO, ENOSPC, …) does the same at the n-th time that Python itself opens, renames,
removes or makes something in the store, which it tells its audit hooks.
"""

import argparse
import contextlib
import errno
import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from her2batch.errors import Her2BatchError
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.store.audit import files_match_row, verify_cohort
from her2batch.store.cohort import Cohort
from tests.runtime.test_ingest import store_contents

STRIKE = {"openat": 9000, "write": 2000, "close": 9000}
"""Number of the call at which the fault happens: beyond the calls of this program itself, mostly imports."""

OTHERS = 300

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")

FAULT = 77
"""Exit code of a child that ended by an unexpected exception."""


def under_strace(log: Path, faults: dict[str, str]) -> list[str]:
    """Return the strace command to put before a command. faults: call → 'signal=KILL' or 'error=EIO'."""
    inject = [f"--inject={call}:{what}:when={STRIKE.get(call, OTHERS)}" for call, what in faults.items()]
    fast = [] if any("signal" in what for what in faults.values()) else ["--seccomp-bpf"]  # with it none is sent
    return ["strace", "-f", *fast, "-qq", "-o", str(log), f"--trace={','.join(faults)}", *inject]


def make_calls(call: str, count: int) -> None:
    """Make harmless system calls of a kind."""
    null = os.open(os.devnull, os.O_RDWR)
    doing: dict[str, Callable[[], object]] = {
        "openat": lambda: os.open("", os.O_RDONLY),
        "write": lambda: os.write(null, b"x"),
        "fsync": lambda: os.fsync(null),
        "close": lambda: os.close(-1),
        "rename": lambda: os.rename("", ""),  # noqa: PTH104  (of nothing: a Path would be '.')
        "unlink": lambda: os.unlink(""),  # noqa: PTH108
        "unlinkat": lambda: os.unlink("", dir_fd=null),
        "mkdir": lambda: os.mkdir(""),  # noqa: PTH102
        "rmdir": lambda: os.rmdir(""),  # noqa: PTH106
    }
    for _ in range(count):
        with contextlib.suppress(OSError):
            doing[call]()


def install_hook(root: Path, call: str, n: int, strike: str, log: Path) -> None:
    """Cause the fault at the n-th audit event of a kind below a folder, and record the events so far."""
    seen: Counter[str] = Counter()

    def told(event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS or not str(arguments[0]).startswith(str(root)):
            return
        seen[event] += 1
        if n == 0:
            log.with_name(log.name + ".counts").write_text(json.dumps(seen))
        elif event == call and seen[event] == n:
            if strike == "KILL":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(getattr(errno, strike), os.strerror(getattr(errno, strike)))

    sys.addaudithook(told)


def run_in_fork(work: Callable[[], int]) -> tuple[int, int]:
    """Run a function in a fork. Returns (process id, exit code or minus the signal that ended it)."""
    pid = os.fork()
    if pid == 0:
        code = FAULT
        try:
            code = work()
        except BaseException:  # noqa: BLE001  (the child's end: what it was is said)
            sys.stderr.write(json.dumps({"fault": traceback.format_exc()}) + "\n")
        finally:
            os._exit(code)
    return pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def import_what_is_imported_by(work: Callable[[], int], log: Path) -> None:
    """Run a function in a fork and import its modules here: every later fork then has them, without its threads."""
    names = log.with_name(log.name + ".modules")
    run_in_fork(lambda: [work(), names.write_text("\n".join(sys.modules))][0])
    for name in names.read_text().splitlines():
        with contextlib.suppress(ImportError):  # some names are not of modules that can be imported by them
            importlib.import_module(name)


def count_calls(log: Path, pid: int) -> Counter[str]:
    """Return the number of calls of each kind that a process made."""
    lines = [line.split(maxsplit=1) for line in log.read_text(errors="replace").splitlines()]
    return Counter(rest.split("(")[0] for who, rest in lines if who == str(pid) and "(" in rest)


def spread_evenly(total: int, tries: int) -> Sequence[int]:
    """Return numbers from 1 to the total: all, `tries` of them at even distances, or the middle one."""
    if tries == 0 or tries >= total:
        return range(1, total + 1)
    if tries == 1:
        return [(1 + total) // 2]
    return sorted({1 + round(k * (total - 1) / (tries - 1)) for k in range(tries)})


def inspect_store(root: Path, reference: Path) -> dict[str, object]:
    """Return the state of a cohort: torn slides, leftovers, problems found by `verify`, equality with the reference."""
    cohort = Cohort(root)
    rows = cohort.reread_rows().values() if cohort.slides.is_dir() else []
    left = [path.name for path in [*root.glob(".draft-*"), *root.rglob(".*.part")]]
    problems = [f"{one.path.name}: {one.message}" for one in verify_cohort(cohort)] if cohort.settings.exists() else []
    return {
        "torn": [row["slide_id"] for row in rows if not files_match_row(cohort, row)],
        "left": left,
        "problems": problems,
        "same": store_contents(root) == store_contents(reference),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    for name in ("log", "scans", "out", "reference"):
        options.add_argument(name, type=Path)
    options.add_argument("--calls", nargs="+", required=True)
    options.add_argument("--before", type=Path, help="a store that each strike starts from")
    options.add_argument("--strike", help="without strace: KILL, or the error's name")
    options.add_argument("--tries", type=int, default=0, help="strikes a call; 0: every one")
    given = options.parse_args()

    def fresh() -> None:
        shutil.rmtree(given.out, ignore_errors=True)
        if given.before is not None:
            shutil.copytree(given.before, given.out)

    def run() -> int:
        try:
            return ingest(IngestRequest(given.scans, given.out), Plan(), Resources(workers=0)).exit_code
        except Her2BatchError as error:
            sys.stderr.write(json.dumps({"said": str(error)}) + "\n")
            return error.exit_code

    def resume(facts: dict[str, object]) -> int:
        struck = inspect_store(given.out, given.reference)
        code = run()
        resumed = inspect_store(given.out, given.reference)
        fresh()
        os.write(1, json.dumps({**facts, "struck": struck, "again": code, "resumed": resumed}).encode() + b"\n")
        return 0

    import_what_is_imported_by(lambda: fresh() or run(), given.log)
    run_in_fork(lambda: fresh() or 0)

    def disturbed(call: str, n: int) -> int:
        if given.strike is None:
            make_calls(call, STRIKE.get(call, OTHERS) - n)
        else:
            install_hook(given.out, call, n, given.strike, given.log)
        return run()

    undisturbed, _ = run_in_fork(run if given.strike is None else lambda: disturbed("", 0))
    counted = given.log.with_name(given.log.name + ".counts")
    total = count_calls(given.log, undisturbed) if given.strike is None else Counter(json.loads(counted.read_text()))
    run_in_fork(lambda: fresh() or 0)
    for call in given.calls:
        for n in spread_evenly(total[call], given.tries):
            _, code = run_in_fork(lambda call=call, n=n: disturbed(call, n))
            facts = {"call": call, "n": n, "of": total[call], "code": code}
            run_in_fork(lambda facts=facts: resume(facts))


if __name__ == "__main__":
    main()
