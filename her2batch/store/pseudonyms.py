"""Names in a cohort: as they are, or keyed hashes that only the holder of the key can link back.

A slide's metadata never passes through: readers state the facts of `SlideInfo` and nothing else, and label and macro
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
FORMULA = re.compile(r"\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""What a spreadsheet takes for the start of a formula (CWE-1236; OWASP's list), wide forms and blanks before it too."""

PLAIN = re.compile(r"[+-]|[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
"""Begins like a formula and is none: the labels '+' and '-', and numbers."""

LONGEST = 120
KEY_BYTES = 16


def slide_id_of(stem: str) -> str:
    """A file's stem as a slide id: letters, digits, '.', '_', '-'; no leading dot or dash; at most 120 bytes."""
    cleaned = UNSAFE.sub("_", unicodedata.normalize("NFC", stem)).strip("._-")
    return cleaned[:LONGEST] or "slide"


def escape_formula(text: str) -> str:
    """A text as a cell of a CSV file: what a spreadsheet would run as a formula starts with a quote instead.

    For columns of text; numbers, and the labels '+' and '-', stay what they are.
    """
    return f"'{text}" if FORMULA.match(text) and not PLAIN.fullmatch(text) else text


@dataclass(frozen=True)
class Pseudonymizer:
    """How names appear in the store. Without a key they are the source's own; with one they are keyed hashes."""

    key: bytes | None = None

    def slide(self, stem: str) -> str:
        """The slide id of a file's stem."""
        return slide_id_of(stem) if self.key is None else f"s{self._hash('slide', stem)}"

    def patient(self, patient_id: str | None) -> str | None:
        """The patient id of a label."""
        if patient_id is None or self.key is None:
            return patient_id
        return f"p{self._hash('patient', patient_id)}"

    def site(self, site: str | None) -> str | None:
        """The site of a label: where a patient was treated."""
        return site if site is None or self.key is None else f"h{self._hash('site', site)}"

    def time(self, name: str, ns: int) -> int:
        """A file's time of change as the intake table keeps it, and back: it is the day that a slide was scanned.

        name: the file's, as `path` gives it.  With a key it is XORed with a pad of the file's own, so that a changed
        file still shows.
        """
        return ns if self.key is None else ns ^ int(self._hash("time", name)[:15], 16)

    def timed(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the intake's tables with their times as they are kept, or, of kept ones, as they are."""
        return [{**row, "mtime_ns": self.time(row["path"], row["mtime_ns"])} for row in rows]

    def reason(self, words: str) -> str:
        """Why a file was left alone. What stands behind a colon may be the name of another file."""
        return words if self.key is None else words.partition(":")[0]

    def path(self, path: Path) -> str:
        """A path as the intake table keeps it."""
        return printable_path(path) if self.key is None else self._hash("path", str(path))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """With a key, a fault that nobody foresaw tells its kind and its place, not its words: they may name a file."""
        try:
            yield
        except Her2BatchError:
            raise  # our own words
        except Exception as error:
            if self.key is None:
                raise
            raise RuntimeError(f"{self.fault(error)} (its words are left out)").with_traceback(
                error.__traceback__
            ) from None

    def fault(self, error: Exception) -> str:
        """What may be said of an error: with a key, its kind alone."""
        if self.key is None:
            return str(error)
        return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__

    def shown(self, path: Path | str, slide_id: str | None) -> str:
        """A file's name in messages and rows."""
        return printable_path(path) if self.key is None else str(slide_id or "a file")

    def _hash(self, kind: str, text: str) -> str:
        assert self.key is not None
        message = f"{kind}:{unicodedata.normalize('NFC', text)}".encode(errors="surrogateescape")
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:20]


def read_key(path: Path) -> bytes:
    """The key of --pseudonymize: a file of at least 16 bytes that only its owner can read. Raises InputError."""
    remedy = f"make one with: (umask 077; head -c 32 /dev/urandom > {path})"
    if not path.is_file():
        raise InputError("there is no key file", path, remedy)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError("others can read the key file", path, f"chmod 600 {path}")
    key = path.read_bytes()
    if len(key) < KEY_BYTES:
        raise InputError(f"a key has at least {KEY_BYTES} bytes, this one {len(key)}", path, remedy)
    return key
