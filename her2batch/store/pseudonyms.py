"""Names in a cohort: those of the slide files and labels, or keyed hashes that only the holder of the key can link.

Other metadata of a slide file reaches no cohort: readers return the fields of `SlideInfo` only, and label and macro
images are never read.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from her2batch.errors import Her2BatchError, InputError, printable_path

UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
"""Characters that a slide id does not have."""

FORMULA = re.compile(r"\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""Start of a cell that a spreadsheet takes for a formula (CWE-1236; OWASP's list); also full-width or after blanks."""

PLAIN = re.compile(r"[+-]|[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
"""Cells that begin like a formula but are none: the labels '+' and '-', and numbers."""

MAX_ID_LENGTH = 120
MIN_KEY_BYTES = 16


def has_pseudonyms(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether slides were stored with pseudonyms: their rows, of the slides table, name no file."""
    return any(row["path"] is None for row in rows)


def slide_id_of(stem: str) -> str:
    """The slide id for a file's stem: letters, digits, '.', '_', '-'; no leading dot or dash; at most 120 bytes."""
    cleaned = UNSAFE.sub("_", unicodedata.normalize("NFC", stem)).strip("._-")
    return cleaned[:MAX_ID_LENGTH] or "slide"


def escape_formula(text: str) -> str:
    """A text as a cell of a CSV file: a quote is put before what a spreadsheet would run as a formula.

    Numbers and the labels '+' and '-' are not changed.
    """
    return f"'{text}" if FORMULA.match(text) and not PLAIN.fullmatch(text) else text


@dataclass(frozen=True)
class Pseudonymizer:
    """Names as a cohort stores them: unchanged without a key, keyed hashes with one."""

    key: bytes | None = None

    def slide(self, stem: str) -> str:
        """The slide id for a file's stem."""
        return slide_id_of(stem) if self.key is None else f"s{self._hash('slide', stem)}"

    def patient(self, patient_id: str | None) -> str | None:
        """The stored patient id for that of a label."""
        if patient_id is None or self.key is None:
            return patient_id
        return f"p{self._hash('patient', patient_id)}"

    def site(self, site: str | None) -> str | None:
        """The stored site for that of a label."""
        return site if site is None or self.key is None else f"h{self._hash('site', site)}"

    def reader(self, reader: str) -> str:
        """The stored name of a person who has read slides."""
        return reader if self.key is None else f"r{self._hash('reader', reader.casefold())}"

    def time(self, name: str, ns: int) -> int:
        """The stored form of a file's modification time (ns), and back. The time may be the day of the scan.

        name: of the file, as `path` returns it.  With a key, the time is XORed with a pad that depends on the file, so
        that a change of the file can still be noticed.
        """
        return ns if self.key is None else ns ^ int(self._hash("time", name)[:15], 16)

    def convert_times(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the intake table or the probe cache with the stored form of their times, and back."""
        return [{**row, "mtime_ns": self.time(row["path"], row["mtime_ns"])} for row in rows]

    def reason(self, words: str) -> str:
        """The stored reason for ignoring a file; with a key, without the text after a colon: it may be a file name."""
        return words if self.key is None else words.partition(":")[0]

    def path(self, path: Path) -> str:
        """The stored form of a path."""
        return printable_path(path) if self.key is None else self._hash("path", str(path))

    @contextmanager
    def hide_error_texts(self) -> Iterator[None]:
        """With a key, hide the text of unexpected errors, which may contain file names; type and place remain."""
        try:
            yield
        except Her2BatchError:
            raise  # their messages contain stored names only
        except Exception as error:
            if self.key is None:
                raise
            raise RuntimeError(f"{self.error_text(error)} (the message is hidden)").with_traceback(
                error.__traceback__
            ) from None

    def error_text(self, error: Exception) -> str:
        """The text of an error; with a key, its type only."""
        if self.key is None:
            return str(error)
        return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__

    def display_name(self, path: Path | str, slide_id: str | None) -> str:
        """The name of a slide file in messages and rows: its path, or with a key its slide id."""
        return printable_path(path) if self.key is None else str(slide_id or "a file")

    def _hash(self, kind: str, text: str) -> str:
        assert self.key is not None
        message = f"{kind}:{unicodedata.normalize('NFC', text)}".encode(errors="surrogateescape")
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:20]


def read_key(path: Path) -> bytes:
    """Read the key of --pseudonymize: a file of at least 16 bytes that only its owner can read. Raises InputError."""
    remedy = f"make one with: (umask 077; head -c 32 /dev/urandom > {path})"
    if not path.is_file():
        raise InputError("there is no such key file", path, remedy)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError("other users can read the key file", path, f"chmod 600 {path}")
    key = path.read_bytes()
    if len(key) < MIN_KEY_BYTES:
        raise InputError(f"a key needs at least {MIN_KEY_BYTES} bytes, this one has {len(key)}", path, remedy)
    return key
