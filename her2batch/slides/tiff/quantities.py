"""Numbers and lengths as slide files write them: decimal commas, units by name or symbol, escapes."""

from __future__ import annotations

import html
import math
import re

UM_PER_UNIT = {
    "pm": 1e-6, "å": 1e-4, "angstrom": 1e-4, "nm": 1e-3, "nanometer": 1e-3, "um": 1.0, "µ": 1.0, "micron": 1.0,
    "micrometer": 1.0, "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "dm": 1e5, "decimeter": 1e5,
    "m": 1e6, "meter": 1e6, "km": 1e9, "in": 25_400.0, "inch": 25_400.0, "inche": 25_400.0, '"': 25_400.0,
    "ft": 304_800.0, "thou": 25.4, "mil": 25.4, "li": 25_400 / 12, "pt": 25_400 / 72,
}  # fmt: skip
"""Unit of length → µm. Names are lower case, in the singular, and -metre is written -meter.

The units are those of OME's UnitsLength that a slide can have, and the words of ImageJ.
"""

ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


def parse_number(text: str | None) -> float | None:
    """Return a finite number; None for other text. A decimal comma is accepted, and a trailing `x` as in `20x`."""
    if text is None or len(text) > 40:
        return None
    text = text.strip().strip("\"'").removesuffix("x").removesuffix("X")
    try:
        number = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def um_per_unit(unit: str) -> float | None:
    """Return the µm in a unit of length by its name or symbol; None for other words such as `pixel`.

    The micro sign is accepted as µ, as the Greek letter, as an escape of XML or of ImageJ, and as the two characters
    that UTF-8 becomes when it is read as Latin-1.
    """
    word = html.unescape(ESCAPE.sub(lambda match: chr(int(match[1], 16)), unit[:60]))
    word = word.replace("Â", "").replace("Î¼", "µ").replace("μ", "µ").strip().lower().replace("metre", "meter")
    word = word if word == "µ" else word.replace("µ", "u").replace("?m", "um").replace("\ufffdm", "um")
    for name in (word, word.removesuffix("s")):
        if name in UM_PER_UNIT:
            return UM_PER_UNIT[name]
    return None


def length_in_um(number: str | None, unit: str) -> float | None:
    """Return a length in µm; None if the number or the unit is not one."""
    value, scale = parse_number(number), um_per_unit(unit)
    return None if value is None or scale is None else value * scale
