"""The command validate: register, report, check, and its exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.errors import InputError
from her2batch.store.validation.criteria import DEFAULT_CRITERIA
from tests.conftest import Synthetic
from tests.reports.validation.conftest import make_validated


def call(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["validate", *map(str, arguments)], catch_exceptions=False)
    if isinstance(done.exception, InputError):
        raise done.exception
    return done.exit_code, done.stdout


def test_criteria_are_registered_then_validated_then_checked(synthetic: Synthetic, tmp_path: Path) -> None:
    cohort, labels = make_validated(synthetic, tmp_path)
    criteria, report = tmp_path / "criteria.toml", tmp_path / "report.html"
    criteria.write_text(DEFAULT_CRITERIA)
    code, text = call(cohort.root, "--criteria", criteria, "--register", "--json")
    registered = json.loads(text)
    assert (code, registered["comparisons_before"]) == (0, 0)
    code, text = call(cohort.root, "--labels", labels, "--out", report)
    assert code == 0
    assert "before predictions and labels were first compared" in text
    assert report.exists()
    assert json.loads(report.with_suffix(".json").read_text())["criteria_sha256"] == registered["criteria_sha256"]
    code, text = call("--check", report.with_suffix(".json"), cohort.root)
    assert (code, "valid" in text) == (0, True)
    report.write_text(report.read_text() + " ")
    code, text = call("--check", report.with_suffix(".json"), cohort.root, "--json")
    assert code == 3
    assert json.loads(text) == {"valid": False, "reasons": ["the HTML file of the report was changed"]}


def test_register_needs_criteria(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--criteria"):
        call(tmp_path, "--register")
