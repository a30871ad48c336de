"""The example of a settings file: valid as it is, complete, and valid with every comment removed."""

import tomllib
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.job_settings import NightlySettings, read_settings
from her2batch.nightly.example import SECTIONS, example_settings, write_example


def test_the_example_is_valid_and_changes_no_default_but_the_folders(tmp_path: Path) -> None:
    write_example(tmp_path / "night.toml")
    settings = read_settings(tmp_path / "night.toml", NightlySettings)
    expected = NightlySettings(scans="/scans", cohort="/data/cohort", window={"until": "06:00"})
    assert settings == expected


def test_every_setting_of_the_example_may_be_uncommented() -> None:
    lines = [line.removeprefix("# ") for line in example_settings().splitlines()]
    is_setting = [line.split(" = ")[0].isidentifier() and " = " in line for line in lines]
    text = "\n".join(line for line, keep in zip(lines, is_setting, strict=True) if keep or line.startswith("["))
    assert "null" not in text
    values = tomllib.loads(text)
    settings = NightlySettings.model_validate(values)
    for section in SECTIONS:
        given = set(values[section])
        assert given == getattr(settings, section).model_fields_set
    assert given >= {"mail_to", "smtp_security", "link", "ping", "textfile"}


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "night.toml"
    path.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        write_example(path)
    assert path.read_text() == "mine"
    with pytest.raises(InputError, match="cannot be written"):
        write_example(tmp_path / "nowhere" / "night.toml")
