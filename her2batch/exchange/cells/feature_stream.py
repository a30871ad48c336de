"""Reads the Features of a GeoJSON file one after the other: a file of cells does not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from her2batch.errors import InputError

CHUNK: Final = 1 << 20
"""Characters that are read at once."""

LONGEST: Final = 1 << 26
"""Longest text of one Feature: 64 million characters."""

REMEDY: Final = "export the cells again from QuPath as GeoJSON, without compression"


def stream_features(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the Features of a FeatureCollection or of a list of Features.

    Raises InputError with the number of the Feature when the file cannot be read or is not GeoJSON.
    """
    decoder, number, buffer = json.JSONDecoder(), 0, ""
    try:
        with path.open(encoding="utf-8-sig") as file:
            buffer = _skip_to_list(file.read(CHUNK), path)
            while True:
                buffer = buffer.lstrip(" \t\r\n,")
                if buffer.startswith("]"):
                    return
                feature, end = _decode(decoder, buffer)
                if feature is None:
                    more = file.read(max(CHUNK, len(buffer)))
                    if not more or len(buffer) > LONGEST:
                        raise InputError(f"feature {number + 1} is not valid JSON", path, REMEDY)
                    buffer += more
                    continue
                number += 1
                if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
                    raise InputError(f"feature {number} has no geometry", path, REMEDY)
                yield feature
                buffer = buffer[end:]
                if len(buffer) < CHUNK // 4:
                    buffer += file.read(CHUNK)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the file cannot be read ({error})", path, REMEDY) from error


def _decode(decoder: json.JSONDecoder, text: str) -> tuple[Any, int]:
    """The value at the start of a text, and where it ends; None where the text is too short, or no JSON."""
    try:
        return decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return None, 0


def _skip_to_list(text: str, path: Path) -> str:
    """The text after the bracket that opens the list of Features."""
    start = text.lstrip()
    if start.startswith("["):
        return start[1:]
    key = start.find('"features"')
    bracket = start.find("[", key)
    if not start.startswith("{") or key < 0 or bracket < 0:
        what = "the file is not GeoJSON: it is no FeatureCollection and no list of Features"
        raise InputError(what, path, REMEDY)
    return start[bracket + 1 :]
