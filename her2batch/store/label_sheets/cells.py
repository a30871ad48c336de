"""Cells and rows of a label sheet, whatever file they come from, and the words that stand for a missing value."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

CACHED: Final = 10_000
"""Texts whose reading is remembered: the cells of a sheet have few different values."""

INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
"""Characters without width, which pasted text carries along."""

MISSING_WORDS: Final = frozenset(
    (
        "", "na", "n/a", "n.a.", "n. a.", "n.a", "#n/a", "#na", "#nv", "#n/v", "<na>", "nan", "nat", "none", "nil",
        "null",         "-", "--", "---", "?", "??", "???", ".", "..", "...", "/", "//", "*", "_",
        "unknown", "unk", "unkn", "unknown patient", "not known", "unbekannt", "inconnu", "desconocido", "sconosciuto",
        "onbekend", "missing", "fehlt", "fehlend", "k.a.", "k. a.", "keine angabe", "blank", "empty",
        "not available", "not applicable", "not evaluated", "not evaluable", "not reported", "not recorded",
        "not done", "not performed", "not tested", "not assessed", "nicht bestimmt", "nd", "n.d.", "n/d", "tbd",
        "pending", "discrepancy", "not scorable", "unscorable", "no data", "n.b.", "n. b.", "nicht auswertbar",
        "unauswertbar", "nicht beurteilbar", "nicht durchgeführt", "nicht erfolgt", "ausstehend", "entfällt", "s.o.",
        "nicht bekannt", "non fait", "non évaluable", "non renseigné", "non disponible", "non connu", "non réalisé",
        "en cours", "manquant", "no evaluable", "no valorable", "no realizado", "no disponible", "no consta",
        "pendiente", "sin dato", "sin datos", "s/d", "non valutabile", "non eseguito", "niet bekend", "n.r.", "n.v.",
        "#ref!", "#value!", "#name?", "#div/0!", "#null!", "#num!", "#bezug!", "#wert!", "#name!", "#zahl!",
    )
)  # fmt: skip
"""Texts that programs and people write where a value is missing, in lower case and without brackets."""

MISSING_PATIENTS: Final = MISSING_WORDS | {
    "anonymous", "anonymized", "anonymised", "anonym", "no patient", "no id", "no name", "nn", "n.n.", "n. n.", "xxx",
    "unidentified", "unspecified", "not specified", "not provided", "not given", "ohne angabe", "x", "xx", "nb", "nk",
    "n/k", "nr", "nc", "n.c.", "leer", "ohne", "sans", "sin",
}  # fmt: skip
"""Texts that stand for a patient who is not known."""

NEGATIVE_NUMBER = re.compile(r"-\d+(?:[.,]0+)?")
"""Code of a missing value in databases, such as -9 or -99; no patient has a negative number."""


GUARDED = re.compile(r"'(?=[=+\-@])|=\"([^\"]*)\"$")
"""Marks that exports put around a text so that a spreadsheet does not change it, as in `'+2` and `="001"`."""


@dataclass(frozen=True)
class Cell:
    """A cell.  problem: why its text cannot be what was typed, if so.  number: stored as a number, not as text."""

    text: str = ""
    problem: str | None = None
    number: bool = False


@dataclass(frozen=True)
class SheetRow:
    """A row.  line: number of the line in a text file, or of the row in a workbook, from 1."""

    line: int
    cells: tuple[Cell, ...]

    def cell(self, k: int) -> Cell:
        """Return cell k; an empty one beyond the end of the row."""
        return self.cells[k] if k < len(self.cells) else Cell()

    @property
    def is_blank(self) -> bool:
        """Whether no cell holds anything."""
        return not any(cell.text or cell.problem for cell in self.cells)


@dataclass(frozen=True)
class Grid:
    """The rows of one sheet.  form: of the file, in words.  unit: `line` or `row`, as places are named in messages."""

    rows: tuple[SheetRow, ...]
    form: str
    unit: str = "line"


@lru_cache(CACHED)
def clean_text(text: str) -> str:
    """Return a cell's text in Unicode's composed form, without surrounding blanks and invisible characters.

    A quote before a formula, and a formula that is a text alone, are what exports guard a text with: they are left out.
    """
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", text)).replace("\u00a0", " ").strip()
    if (guard := GUARDED.match(text)) is not None:
        return (guard[1] if guard[1] is not None else text[1:]).strip()
    return text


@lru_cache(CACHED)
def fold_text(text: str) -> str:
    """Return a text for comparison: lower case, compatibility forms and dashes unified, blanks collapsed."""
    folded = unicodedata.normalize("NFKC", clean_text(text)).casefold()
    return " ".join(re.sub("[\u2010-\u2015\u2212]", "-", folded).split())


@lru_cache(CACHED)
def is_missing(text: str, words: frozenset[str] = MISSING_WORDS) -> bool:
    """Whether a text stands for a missing value, with or without brackets around it."""
    folded = fold_text(text)
    return folded in words or folded.strip("[](){}<>\"' ") in words


@lru_cache(CACHED)
def is_unknown_patient(text: str) -> bool:
    """Whether a text stands for a patient who is not known."""
    return is_missing(text, MISSING_PATIENTS) or NEGATIVE_NUMBER.fullmatch(fold_text(text)) is not None


def is_shortened_number(text: str) -> bool:
    """Whether a text is a number in scientific notation, as Excel writes long ones to CSV: 1.23E+11."""
    mantissa, _, exponent = text.casefold().partition("e+")
    digits = mantissa.replace(",", "").replace(".", "")
    return bool(digits) and digits.isdigit() and exponent.isdigit()


def header_key(text: str) -> str:
    """Return a column's name for comparison: letters and digits only, in lower case."""
    return re.sub(r"[\W_]+", "", fold_text(text))


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: 1 slide, 2 slides."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def quote(text: str, limit: int = 60) -> str:
    """Return a cell's text in quotes for a message, shortened where it is long."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
