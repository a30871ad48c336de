"""The errors of her2batch, one family.

    Her2BatchError            what · path · remedy            exit code 2 unless said otherwise
    ├── SlideError            one slide can't be processed: its code becomes a row, the batch goes on (exit 3)
    ├── StoreError            the cohort folder can't be used (locked, another format, no space)
    │   └── HeadLost          the Ray cluster's head has gone: nothing may be asked of Ray any more
    ├── InputError            something the user gave can't be used: a folder, labels, a bundle, an option
    └── WeightsError          a model's weights can't be had

Every error says what is wrong, in which file, and what to do about it. Library code raises; one net in
`flow` turns a SlideError into a row; the command line prints the others and leaves with `exit_code`.
"""

from __future__ import annotations

import re
from pathlib import Path

REMEDIES = {
    "unreadable": "open the slide in the scanner's viewer; if it fails there too, scan or export it again",
    "truncated": "copy the slide again from the scanner and compare the checksums",
    "no-mpp": "pass --mpp-override with the scanner's µm per px (0.25 for most 40× scans)",
    "too-coarse": "scan at a higher magnification, or ingest into a cohort with a larger --mpp",
    "not-a-slide": "move the file out of the scans folder, or ignore this row",
    "no-tissue": "check that the glass was scanned in focus and in the right place",
    "blank-tiles": "scan the slide again: parts of its tissue hold no image",
    "unstable": "wait until the scanner has finished writing, then run the same command again",
    "gone": "put the file back and run the same command again",
    "worker-lost": "run again with --retry-failed; if it repeats, the file crashes its decoder: export it again",
    "timeout": "open the slide in the scanner's viewer; if it is sound, run again with --retry-failed and a longer "
    "--patience",
    "out-of-memory": "run again with fewer --workers, or on a machine with more memory",
    "store-write": "free disk space or mend the disk, then run the same command again",
    "internal": "run again with --retry-failed; if it repeats, report the newest tables/runs/*.jsonl",
}
"""Every error code a slide can end with, and what to do about it. docs/operations.md lists the same."""


STOPPED = 130
"""Exit code of a command that was asked to stop: SIGINT, SIGTERM."""


def one_line(error: BaseException) -> str:
    """What somebody else's error says, in one line: libraries like to fill several."""
    return " ".join(str(error).split())


NO_TEXT = re.compile(r"[\ud800-\udfff]|\\x[0-9a-f]{2}")


def printable_path(path: Path | str) -> str:
    """A path as text that tables and screens take: bytes that are no UTF-8 as \\xff. No two paths become one."""
    text = str(path)
    if not NO_TEXT.search(text):
        return text
    return text.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Her2BatchError(Exception):
    """What is wrong, with which file, and the remedy."""

    exit_code = 2

    def __init__(self, what: str, path: Path | str | None = None, remedy: str = "") -> None:
        super().__init__(what, path, remedy)
        self.what, self.path, self.remedy = what, path, remedy

    def __str__(self) -> str:
        where = f"{printable_path(self.path)}: " if self.path is not None else ""
        return f"{where}{self.what}" + (f"; {self.remedy}" if self.remedy else "")


class SlideError(Her2BatchError):
    """One slide can't be processed. `code` is stable and one of REMEDIES."""

    exit_code = 3

    def __init__(self, code: str, path: Path | str, what: str, remedy: str = "") -> None:
        super().__init__(what, path, remedy or REMEDIES[code])
        self.args = (code, path, what, remedy)
        self.code = code


class StoreError(Her2BatchError):
    """The cohort folder can't be used."""


class HeadLost(StoreError):
    """The Ray cluster's head has gone. Whatever asks Ray for anything now hangs, and is killed after a minute."""


class InputError(Her2BatchError):
    """Something the user gave can't be used at all."""


class WeightsError(Her2BatchError):
    """The weights of a model can't be had."""
