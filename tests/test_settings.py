"""Settings: read from a TOML file, or refused with the file, the setting and the remedy."""

from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.job_settings import NightlySettings, TrainJob, read_settings
from her2batch.settings import Plan, RunWindow


def test_settings_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "night.toml"
    path.write_text('scans = "/s"\ncohort = "/c"\n[plan]\nmpp = 1.0\n[window]\nuntil = "06:00"\n')
    settings = read_settings(path, NightlySettings)
    assert (settings.plan, settings.window) == (Plan(mpp=1.0), RunWindow(until="06:00"))


@pytest.mark.parametrize(("text", "message"), [
    ("scans = ", "is not valid TOML .*docs/configuration.md has an example"),
    ('scans = "/s"\n', "cohort: Field required; docs/configuration.md lists every setting"),
    ('scans = "/s"\ncohort = "/c"\ncolour = "red"\n', "colour: Extra inputs are not permitted"),
    ('scans = "/s"\ncohort = "/c"\n[plan]\nmpp = -1.0\n', r"plan\.mpp: Input should be greater"),
])  # fmt: skip
def test_an_error_names_the_file_the_setting_and_the_page(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "night.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"night\.toml: {message}"):
        read_settings(path, NightlySettings)


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"job\.toml: can't be read"):
        read_settings(tmp_path / "job.toml", TrainJob)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Plan().mpp = 1.0
