"""Errors of her2batch.

    Her2BatchError            message · path · remedy         exit code 2 unless stated otherwise
    ├── SlideError            one slide can't be processed: it gets a row with the code, the run goes on (exit code 3)
    ├── StoreError            the cohort folder can't be used: it is locked, has another format, its disk is full, …
    │   └── HeadLost          the head node of the Ray cluster is gone: no further call to Ray is made
    ├── InputError            something the user gave can't be used: a folder, labels, a bundle, an option
    └── WeightsError          the weights of a model can't be loaded

Every error states what is wrong, with which file, and the remedy. Library code raises. The worker turns every error of
a slide into the slide's row; the command line prints the others and exits with `exit_code`.
"""

from __future__ import annotations

import re
from pathlib import Path

REMEDIES = {
    "unreadable": "open the slide in the scanner's viewer; if it fails there too, scan or export it again",
    "truncated": "copy the slide file from the scanner again and compare the checksums",
    "no-mpp": "pass --mpp-override with the scanner's µm per px (0.25 for most 40× scans)",
    "too-coarse": "scan at a higher magnification, or use a cohort with a larger --mpp",
    "not-a-slide": "move the file out of the scan folder, or ignore this row",
    "no-tissue": "check that the slide was scanned in focus and in the right place",
    "bad-regions": "export the regions of this slide again from QuPath as GeoJSON",
    "blank-tiles": "scan the slide again: parts of its tissue have no image",
    "unstable": "wait until the scanner has finished writing, then run the same command again",
    "gone": "put the file back and run the same command again",
    "worker-lost": "run again with --retry-failed; if it fails again, the file crashes its decoder: export it again",
    "timeout": "open the slide in the scanner's viewer; if it opens, run again with --retry-failed and a longer "
    "--patience",
    "out-of-memory": "run again with fewer --workers, or on a machine with more memory",
    "store-write": "free disk space or repair the disk, then run the same command again",
    "internal": "run again with --retry-failed; if it fails again, report the newest tables/runs/*.jsonl",
}
"""Error code of a failed slide → remedy. docs/troubleshooting.md lists the same codes."""

STOPPED = 130
"""Exit code of a command that was stopped by SIGINT or SIGTERM."""


def one_line(error: BaseException) -> str:
    """The message of an error as one line: those of other libraries often have several."""
    return " ".join(str(error).split())


def install_extra(extra: str) -> str:
    """Return the remedy for packages of an optional dependency group: her2batch is installed from its source folder."""
    return f"run pip install '.[{extra}]' in the source folder of her2batch"


NOT_PRINTABLE = re.compile(r"[\ud800-\udfff]|\\x[0-9a-f]{2}")
"""Bytes of a file name that are not UTF-8, as Python keeps them; and text that looks like their escape."""


def printable_path(path: Path | str) -> str:
    """A path as text for tables and screens: bytes that are not UTF-8 become \\xff. Different paths stay different."""
    text = str(path)
    if not NOT_PRINTABLE.search(text):
        return text
    return text.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Her2BatchError(Exception):
    """An error with what is wrong, with which file, and the remedy."""

    exit_code = 2

    def __init__(self, message: str, path: Path | str | None = None, remedy: str = "") -> None:
        super().__init__(message, path, remedy)
        self.message, self.path, self.remedy = message, path, remedy

    def __str__(self) -> str:
        where = f"{printable_path(self.path)}: " if self.path is not None else ""
        return f"{where}{self.message}" + (f"; {self.remedy}" if self.remedy else "")


class SlideError(Her2BatchError):
    """One slide can't be processed.  code: a key of REMEDIES."""

    exit_code = 3

    def __init__(self, code: str, path: Path | str, message: str, remedy: str = "") -> None:
        super().__init__(message, path, remedy or REMEDIES[code])
        self.args = (code, path, message, remedy)
        self.code = code


class StoreError(Her2BatchError):
    """The cohort folder can't be used."""


class HeadLost(StoreError):
    """The head node of the Ray cluster is gone. Any call to Ray hangs now, and the process is killed after a minute."""


class InputError(Her2BatchError):
    """Something the user gave can't be used at all."""


class WeightsError(Her2BatchError):
    """The weights of a model can't be loaded."""
