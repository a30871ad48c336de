"""A terminal or a locale that is not UTF-8 never ends a command: characters are replaced."""

import io
import os
import subprocess
import sys

import pytest

from her2batch.cli import streams
from her2batch.cli.console import print_status
from her2batch.store.audit import CohortStatus

SCREEN = "mpp 0.5 → 1.0 µm/px · 3.2 mm² × 4 ≠ 5 … Zoë Müller 漢字 \udcff ━━"

LOCALES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "latin-1 strict": {"PYTHONIOENCODING": "latin-1:strict"},
    "C without coercion": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
}


def run_command(words: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    command = [sys.executable, "-m", "her2batch.cli", *words]
    return subprocess.run(command, capture_output=True, env={**kept, **variables}, timeout=120)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "shift_jis", "koi8-r", "utf-8"])
def test_every_character_is_printed_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", out)
    streams.replace_characters()
    sys.stdout.write(f"{SCREEN}\n")
    print_status(CohortStatus(tissue_mm2=3.2, archived=1, unreachable=2))
    out.flush()
    text = out.buffer.getvalue().decode(encoding)
    if encoding == "ascii":
        assert text.splitlines()[0] == "mpp 0.5 -> 1.0 um/px - 3.2 mm2 x 4 != 5 ... Zoe Muller ?? ? --"
    assert "mpp 0.5" in text
    assert "archived" in text


@pytest.mark.parametrize("name", LOCALES)
def test_help_is_shown_in_every_locale(name: str) -> None:
    run = run_command(["ingest", "--help"], LOCALES[name])
    assert (run.returncode, run.stderr) == (0, b"")
    assert b"--mpp" in run.stdout


def test_an_error_with_characters_of_its_own_keeps_its_exit_code(tmp_path: object) -> None:
    run = run_command(["status", f"{tmp_path}/Zoë → 漢"], LOCALES["C without coercion"])
    assert run.returncode == 2
    assert b"there is no cohort here" in run.stderr


def test_files_are_utf8_in_a_locale_that_is_not() -> None:
    """The command starts itself again in Python's UTF-8 mode; the screen keeps its encoding."""
    code = """
from her2batch.cli import streams
streams.use_utf8_files()
import sys
print(streams.main_encoding(), sys.stdout.encoding, sys.argv[1:])
"""
    command = [sys.executable, "-c", code, "a", "b"]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **LOCALES["C without coercion"]})
    encoding, screen, *words = run.stdout.split(maxsplit=2)
    assert (encoding, words) == ("utf-8", ["['a', 'b']\n"])
    assert screen.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968")


def test_utf8_locales_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "main_encoding", lambda: "utf-8")
    monkeypatch.setattr(os, "execv", None)
    streams.use_utf8_files()
