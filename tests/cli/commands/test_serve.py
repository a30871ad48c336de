"""The command serve: an error is one line and exit code 2, and no port is opened."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.errors import StoreError


def test_a_missing_cohort_is_refused(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["serve", str(tmp_path / "none")])
    assert isinstance(found.exception, StoreError)
    assert "there is no cohort here" in str(found.exception)
    assert found.exception.exit_code == 2


@pytest.mark.parametrize("options", [["--port", "0"], ["--workers", "0"], ["--host", "0.0.0.0"]])
def test_wrong_options_are_refused(tmp_path: Path, options: list[str]) -> None:
    assert CliRunner().invoke(app, ["serve", str(tmp_path), *options]).exit_code == 2
