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
        "high amplification", "amplifikation", "positive amplification", "amplifié", "amplifie", "amplifiée",
        "amplificado", "amplificada", "amplificato", "positiva",
    )
)  # fmt: skip
NEGATIVE: Final = frozenset(
    (
        "-", "(-)", "-ve", "neg", "neg.", "negative", "negativ", "negatif", "négatif", "negativo", "negatief",
        "not amplified", "non amplified", "non-amplified", "nonamplified", "unamplified", "no amplification", "not amp",
        "non amp", "non-amp", "nicht amplifiziert", "nicht-amplifiziert", "keine amplifikation", "ohne amplifikation",
        "non amplifié", "non amplifie", "non amplifiée", "pas d'amplification", "absence d'amplification",
        "no amplificado", "no amplificada", "sin amplificación", "sin amplificacion", "non amplificato", "negativa",
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
        "équivoque",
        "equivoque",
        "dudoso",
        "equívoco",
    )
)
"""Results of ISH, ER or PR that are neither: they count as missing, and the notes of the sheet say so."""

WORDS_OF_SCORES: Final = {
    "positive": ("3+",), "pos": ("3+",), "positiv": ("3+",), "equivocal": ("2+",), "borderline": ("2+",),
    "negative": ("0", "1+"), "neg": ("0", "1+"), "negativ": ("0", "1+"), "low": ("1+", "2+"), "zero": ("0",),
    "strong": ("3+",), "intense": ("3+",), "moderate": ("2+",), "weak": ("1+", "2+"), "faint": ("1+",),
    "stark": ("3+",), "mäßig": ("2+",), "mässig": ("2+",), "grenzwertig": ("2+",), "fraglich": ("2+",),
    "positif": ("3+",), "négatif": ("0", "1+"), "negatif": ("0", "1+"), "fort": ("3+",),
    "équivoque": ("2+",), "equivoque": ("2+",), "positivo": ("3+",), "positiva": ("3+",), "negativo": ("0", "1+"),
    "negativa": ("0", "1+"), "dudoso": ("2+",), "dudosa": ("2+",), "equívoco": ("2+",), "fuerte": ("3+",),
    "complete": ("2+", "3+"), "einfach": ("1+",), "zweifach": ("2+",),
    "dreifach": ("3+",),
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
_COUNT = (
    r"(?:ratio|quotient|her2\s*/\s*(?:cep|chr|cen)\s*-?17|copy number|her2 copies)?\s*(?:ratio)?[\s:=]*\d+(?:[.,]\d+)?"
)
RATIO_SUFFIX = re.compile(rf"(?:\s*[,;]?\s*\(\s*{_COUNT}\s*\)|\s*[,;]\s*{_COUNT})$")
RATIO_PREFIX = re.compile(rf"^{_COUNT}\s*[,;]?\s*(?=[(a-zé])")
DATE = re.compile(r"\b(?:jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz])|\d[./-]\d{1,2}[./-]\d{2,4}")
SCORE = re.compile(r"\+?([0-3])(?:[.,]0+)?\s?(?:\+|plus)?")
FOLD = re.compile(r"([1-3])\s*-?\s*fach(?:\s+positiv)?")
"""German names of the scores, such as `3-fach positiv`."""

WORDS_AND_SCORE = re.compile(
    r"([^\W\d]+(?:\s+[^\W\d]+){0,2})\.?[\s:,]*\(?\s*(\+?[0-3]\+?)\s*\)?"
    r"|(\+?[0-3]\+?)[\s:,]*\(?\s*([^\W\d]+(?:\s+[^\W\d]+){0,2})\.?\s*\)?"
)
"""A score with words before or behind it."""

PLUSES_AND_SCORE = re.compile(r"(\+{2,3})\s*\(\s*([23])\s*\+?\s*\)")
"""A score as pluses and as a number."""

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

PERCENT_RANGE = re.compile(r"(\d{1,3}(?:[.,]\d+)?)\s*%?\s*-\s*(\d{1,3}(?:[.,]\d+)?)\s*%")
"""A range of shares, such as `1-10 %`."""

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
    raise UnclearValueError(_hint(rest))


def _score(text: str) -> str | None:
    """Return the score of `3`, `3.0`, `+3`, `3+`, or of a score with a word of the guideline that agrees with it."""
    if match := SCORE.fullmatch(text):
        if match[1] == "0" and "+" in text:
            raise UnclearValueError("it could be 0 or ultralow")
        return match[1] if match[1] == "0" else f"{match[1]}+"
    if match := FOLD.fullmatch(text):
        return _score(f"{match[1]}+")
    if (match := PLUSES_AND_SCORE.fullmatch(text)) and len(match[1]) == int(match[2]):
        return f"{match[2]}+"
    phrase = WORDS_AND_SCORE.fullmatch(text)
    if phrase is None:
        return None
    words, score = (phrase[1] or phrase[4]).split(), _score(phrase[2] or phrase[3])
    if score is None or not set(words) <= WORDS_OF_SCORES.keys():
        return None
    for word in words:
        if score not in WORDS_OF_SCORES[word]:
            raise UnclearValueError(f"{score} is not {word} by the guideline")
    return score


def _detail(text: str) -> str | None:
    match = re.fullmatch(r"(?:0\s*[-:,/(]*\s*)?(null|ultra[- ]?low)\s*\)?(?:\s*\(?0\)?)?", text)
    return None if match is None else "null" if match[1] == "null" else "ultralow"


def _hint(folded: str) -> str:
    """Return why a value is not understood, where that helps to correct it."""
    if folded in WORDS_OF_SCORES:
        scores = WORDS_OF_SCORES[folded]
        return "it is no score" if len(scores) == 1 else f"{folded} alone could be {' or '.join(scores)}"
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
    rest = _unbracketed(_without_ratios(_without_prefix(folded, SIGN_PREFIX)))
    if column in ("er", "pr"):
        if (span := PERCENT_RANGE.fullmatch(rest)) is not None:
            rest = _bound_of_range(span[1], span[2])
        if (match := PERCENT.fullmatch(rest)) is not None:
            return _sign_of_percent(match), False
        rest = re.sub(r"^(?:low|weakly|weak|strongly|strong)[\s-]+(?=pos)", "", PERCENT_SUFFIX.sub("", rest))
    if (sign := _sign(rest)) is not None:
        return sign, False
    if rest in UNDECIDED:
        return None, True
    raise UnclearValueError("a ratio or a number is no result" if re.fullmatch(r"[\d.,\s]+", rest) else "")


def _without_ratios(text: str) -> str:
    """Return a result of ISH without the ratio and the number of copies that stand beside it."""
    rest = RATIO_PREFIX.sub("", text)
    while (shorter := RATIO_SUFFIX.sub("", rest)) != rest:
        rest = shorter
    return rest


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


def _bound_of_range(low: str, high: str) -> str:
    """Return the bound of a range of shares that decides. Raises UnclearValueError where 1 % divides it."""
    first, last = (float(text.replace(",", ".")) for text in (low, high))
    if first > last or first < ONE_PERCENT <= last:
        raise UnclearValueError("it could be positive or negative, which 1 % divides")
    return f"{low}%"


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
