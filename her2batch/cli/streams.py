"""Terminals and files whose encoding is not UTF-8: characters are replaced on the screen, files are UTF-8 all the same.

Python takes the encoding of the screen and of text files from the locale. Under LANG=C without coercion, a Windows or a
Latin locale, or PYTHONIOENCODING, a character such as → would otherwise end a command after all its work.
"""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata

ERROR_HANDLER = "her2batch"
"""Name of the error handler of the standard streams."""

ASCII_TEXT = {
    "→": "->", "←": "<-", "≠": "!=", "≥": ">=", "≤": "<=", "≈": "~", "±": "+/-", "−": "-", "×": "x", "·": "-",
    "µ": "u", "μ": "u", "κ": "kappa", "σ": "sigma", "…": "...", "–": "-", "—": "-", "“": '"', "”": '"', "‘": "'",
    "’": "'", "•": "*", "█": "#", "━": "-", "─": "-", "│": "|", "╸": "-", "╺": "-", "✓": "ok", "✗": "no", "ß": "ss",
}  # fmt: skip
"""Text in ASCII for characters that the screens of her2batch use."""


def main_encoding() -> str:
    """Return the normalised name of the encoding in which Python opens text files."""
    import locale

    name = "utf-8" if sys.flags.utf8_mode else locale.getencoding()
    return codecs.lookup(name).name


def use_utf8_files() -> None:
    """Start this command again in Python's UTF-8 mode where the locale has another encoding for files.

    The standard streams keep the encoding of the locale. Workers of Ray inherit the mode.
    """
    if main_encoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  (the same command)


def replace_characters() -> None:
    """Replace characters that the standard streams cannot encode, instead of raising UnicodeEncodeError."""
    codecs.register_error(ERROR_HANDLER, _ascii_text)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERROR_HANDLER)


def _ascii_text(error: UnicodeError) -> tuple[str, int]:
    """Error handler of codecs: the part that cannot be encoded as ASCII, and the position after it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii_character, error.object[error.start : error.end])), error.end


def _ascii_character(character: str) -> str:
    if character in ASCII_TEXT:
        return ASCII_TEXT[character]
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or ("" if unicodedata.combining(character) else "?")
