"""The commands train, reproduce, tune and score."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.errors import InputError, StoreError


def test_train_needs_a_cohort_or_a_run_to_resume() -> None:
    result = CliRunner().invoke(app, ["train"])
    assert result.exit_code == 2
    assert "--resume" in result.stderr


@pytest.mark.parametrize("command", ["train", "reproduce", "tune"])
def test_a_folder_without_a_cohort_is_refused_by_name(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [command, str(tmp_path), "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, StoreError)
    assert str(tmp_path) in str(result.exception)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["score", str(tmp_path), "--bundle", str(tmp_path / "b")])
    assert isinstance(result.exception, (InputError, StoreError))
