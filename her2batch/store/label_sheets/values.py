"""Values of a label sheet in the ways laboratories write them; what could mean two things is refused.

A score is a number of intensity with or without its plus: `3`, `3.0`, `+3`, `+++`, `Score 3+`, `HER2 3+ (90 %)`. Words
of the guideline may stand beside it where they agree (ASCO/CAP 2018, affirmed 2023: 0 and 1+ are negative, 2+ is
equivocal, 3+ is positive), but not in its place: `negative` alone could be 0 or 1+.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from her2batch.store.label_sheets.cells import CACHED, fold_text, is_missing
from her2batch.tasks import HER2_DETAILS

POSITIVE: Final = frozenset(
    (
        "+", "(+)", "+ve", "pos", "pos.", "positive", "positiv", "positif", "positivo", "positief",
        "amplified", "amp", "amp.", "ampl", "ampl.", "amplification", "gene amplified", "amplifiziert",
        "high amplification",
    )
)  # fmt: skip
NEGATIVE: Final = frozenset(
    (
        "-", "(-)", "-ve", "neg", "neg.", "negative", "negativ", "negatif", "négatif", "negativo", "negatief",
        "not amplified", "non amplified", "non-amplified", "nonamplified", "unamplified", "no amplification", "not amp",
        "non amp", "non-amp", "nicht amplifiziert",
    )
)  # fmt: skip
UNDECIDED: Final = frozenset(
    (
        "equivocal",
        "indeterminate",
        "borderline",
        "inconclusive",
        "not evaluable",
        "not interpretable",
        "failed",
        "grenzwertig",
    )
)
"""Results of ISH, ER or PR that are neither: they count as missing, and the notes of the sheet say so."""

WORDS_OF_SCORES: Final = {
    "positive": ("3+",), "pos": ("3+",), "positiv": ("3+",), "equivocal": ("2+",), "borderline": ("2+",),
    "negative": ("0", "1+"), "neg": ("0", "1+"), "negativ": ("0", "1+"), "low": ("1+", "2+"), "zero": ("0",),
    "strong": ("3+",), "intense": ("3+",), "moderate": ("2+",), "weak": ("1+", "2+"), "faint": ("1+",),
}  # fmt: skip
"""Word of the guideline → the IHC scores that it may stand beside."""

SCORE_PREFIX = re.compile(
    r"(?:(?:c-)?erbb-?2|her-?\s?2(?:/?\s?-?neu)?|ihc|ihk|score|grade|intensity|result|level|hercep\s?test)[\s:=]*(?:-(?=\w))?"
)
SIGN_PREFIX = re.compile(
    r"(?:(?:c-)?erbb-?2|her-?\s?2(?:/?\s?-?neu)?|fish|[cds]?ish|ddish|ihc|ihk|test|result|status|er|pr|pgr)(?=[\s:=+-])[\s:=]*"
)
PERCENT_SUFFIX = re.compile(
    r"(?:(?<!\d)|(?=[\s,;(<>~]))\s*[,;]?\s*(?:\(\s*[<>~]?\s*\d{1,3}(?:[.,]\d+)?\s*%\s*\)|[<>~]?\s*\d{1,3}(?:[.,]\d+)?\s*%)$"
)
RATIO_SUFFIX = re.compile(r"\s*[,;]?\s*\(\s*(?:ratio|her2/cep17)?[\s:=]*\d+(?:[.,]\d+)?\s*\)$")
DATE = re.compile(r"\b(?:jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz])|\d[./-]\d{1,2}[./-]\d{2,4}")
SCORE = re.compile(r"\+?([0-3])(?:[.,]0+)?\s?(?:\+|plus)?")
PERCENT = re.compile(r"([<>≥≤]?)=?\s*(\d{1,3}(?:[.,]\d+)?)\s*%")

STAIN_WORDS: Final = {
    "her2": "her2", "her2neu": "her2", "erbb2": "her2", "cerbb2": "her2", "er": "er", "estrogenreceptor": "er",
    "oestrogenreceptor": "er", "esr1": "er", "pr": "pr", "pgr": "pr", "progesteronereceptor": "pr", "ki67": "ki67",
    "he": "he", "hande": "he", "haematoxylineosin": "he", "hematoxylineosin": "he", "ihc": "ihc",
}  # fmt: skip
"""Name of a stain in lower case, letters and digits only → the stain."""

ACCEPTED: Final = {
    "her2": "0, 1+, 2+, 3+ (also 3, 3.0, +3, Score 3+, HER2 3+), null, ultralow, or an empty cell",
    "her2_detail": "null, ultralow, or an empty cell",
    "ish": "+, - (also positive, negative, amplified, not amplified), or an empty cell",
    "er": "+, - (also positive, negative, a percentage such as 90 %), or an empty cell",
    "pr": "+, - (also positive, negative, a percentage such as 90 %), or an empty cell",
    "stain": "her2, er, pr, ki67, he, ihc, or an empty cell",
}
"""Column → what its cells may be, in words."""

ONE_PERCENT = 1.0
"""Share of positive nuclei from which ER and PR are positive, percent (ASCO/CAP 2020)."""


class UnclearValueError(ValueError):
    """A value that is not accepted. Its text says why, where there is more to say than the list of accepted ones."""


@dataclass(frozen=True)
class HerScore:
    """An IHC score, 0 … 3+, and for 0 its sub-score `null` or `ultralow` where it is stated."""

    score: str
    detail: str | None = None


@lru_cache(CACHED)
def read_her2(text: str) -> HerScore | None:
    """Return the score of a cell; None where it is missing. Raises UnclearValueError."""
    folded = fold_text(text)
    if "NULL" in text or (folded != "null" and folded.strip("()<>[] ") == "null"):  # as databases export it
        raise UnclearValueError("it could be the sub-score null, which is also written 0 (null), or a missing value")
    if folded not in HER2_DETAILS and is_missing(text) and folded != "-":
        return None
    rest = _without_prefix(folded, SCORE_PREFIX)
    rest = PERCENT_SUFFIX.sub("", rest) if not PERCENT_SUFFIX.fullmatch(rest) else rest
    rest = _unbracketed(rest)
    if (detail := _detail(rest)) is not None:
        return HerScore("0", detail)
    if re.fullmatch(r"\+{2,3}", rest):
        return HerScore(f"{len(rest)}+")
    if (score := _score(rest)) is not None:
        return HerScore(score)
    raise UnclearValueError(_hint(folded))


def _score(text: str) -> str | None:
    """Return the score of `3`, `3.0`, `+3`, `3+`, or of a score with a word of the guideline that agrees with it."""
    if match := SCORE.fullmatch(text):
        if match[1] == "0" and "+" in text:
            raise UnclearValueError("it could be 0 or ultralow")
        return match[1] if match[1] == "0" else f"{match[1]}+"
    words = re.fullmatch(r"(\w+)\.?[\s:,]*\(?\s*(\+?[0-3]\+?)\s*\)?|(\+?[0-3]\+?)[\s:,]*\(?\s*(\w+)\.?\s*\)?", text)
    if words is None:
        return None
    word, score = words[1] or words[4], _score(words[2] or words[3])
    if word not in WORDS_OF_SCORES or score is None:
        return None
    if score not in WORDS_OF_SCORES[word]:
        raise UnclearValueError(f"{score} is not {word} by the guideline")
    return score


def _detail(text: str) -> str | None:
    match = re.fullmatch(r"(?:0\s*[-:,/(]*\s*)?(null|ultra[- ]?low)\s*\)?(?:\s*\(?0\)?)?", text)
    return None if match is None else "null" if match[1] == "null" else "ultralow"


def _hint(folded: str) -> str:
    """Return why a value is not understood, where that helps to correct it."""
    if folded in WORDS_OF_SCORES:
        return (
            f"{folded} alone could be {' or '.join(WORDS_OF_SCORES[folded])}"
            if folded != "positive"
            else "it is no score"
        )
    if folded in ("+", "-"):
        return "it could be a score or a result"
    if len(set(re.findall(r"[0-3]", folded))) > 1 or re.search(r"\d\s*[/-]\s*\d", folded):
        return "it could mean two scores"
    if DATE.search(folded):
        return "Excel makes dates of entries such as 2-3"
    if re.search(r"fish|ish\b|amplif", folded):
        return "the result of ISH belongs in the column ish"
    return ""


def read_detail(text: str) -> str | None:
    """Return the sub-score of 0 of a cell, `null` or `ultralow`; None where it is missing. Raises UnclearValueError."""
    folded = _unbracketed(_without_prefix(fold_text(text), SCORE_PREFIX))
    if (detail := _detail(folded)) is not None:
        return detail
    if is_missing(text):
        return None
    raise UnclearValueError("")


@lru_cache(CACHED)
def read_sign(text: str, column: str) -> tuple[str | None, bool]:
    """Return `+`, `-` or None of a cell of ish, er or pr; and whether it is undecided. Raises UnclearValueError."""
    folded = fold_text(text)
    if (sign := _sign(folded)) is not None:
        return sign, False
    if is_missing(text):
        return None, False
    rest = _unbracketed(RATIO_SUFFIX.sub("", _without_prefix(folded, SIGN_PREFIX)))
    if column in ("er", "pr"):
        if (match := PERCENT.fullmatch(rest)) is not None:
            return _sign_of_percent(match), False
        rest = re.sub(r"^(?:low|weakly|weak|strongly|strong)[\s-]+(?=pos)", "", PERCENT_SUFFIX.sub("", rest))
    if (sign := _sign(rest)) is not None:
        return sign, False
    if rest in UNDECIDED:
        return None, True
    raise UnclearValueError("a ratio or a number is no result" if re.fullmatch(r"[\d.,\s]+", rest) else "")


def _sign(folded: str) -> str | None:
    return "+" if folded in POSITIVE else "-" if folded in NEGATIVE else None


def _sign_of_percent(match: re.Match[str]) -> str:
    """Return the result of a share of positive nuclei. Raises UnclearValueError where a bound leaves it open."""
    bound, share = match[1], float(match[2].replace(",", "."))
    if (
        share > 100
        or (bound in "<≤" and bound and share > ONE_PERCENT)
        or (bound in ">≥" and bound and share < ONE_PERCENT)
    ):
        raise UnclearValueError("it could be positive or negative, which 1 % divides")
    if bound == "<":
        return "-"
    return "+" if share >= ONE_PERCENT else "-"


@lru_cache(CACHED)
def read_stain(text: str) -> str | None:
    """Return the stain of a cell; None where it is missing. Raises UnclearValueError."""
    if is_missing(text):
        return None
    key = re.sub(r"[\W_]+", "", fold_text(text).replace("&", "and"))
    if key not in STAIN_WORDS:
        raise UnclearValueError("")
    return STAIN_WORDS[key]


def _without_prefix(folded: str, prefix: re.Pattern[str]) -> str:
    """Return a text without the names of tests and markers before its value."""
    rest = folded
    while (match := prefix.match(rest)) and match.end() < len(rest):
        rest = rest[match.end() :].strip()
    return rest


def _unbracketed(text: str) -> str:
    return text[1:-1].strip() if re.fullmatch(r"\([^()]*\)|\[[^\[\]]*\]", text) else text
