"""The command stress: its summary, its files and its exit code."""

import json
from pathlib import Path

from typer.testing import CliRunner

from her2batch.cli.app import app
from tests.conftest import Synthetic


def test_slides_are_stressed_and_reported(synthetic: Synthetic, tmp_path: Path) -> None:
    out = tmp_path / "stress.html"
    arguments = ["stress", synthetic.cohort, "--out", out, "--slides", 2, "--tiles", 2, "--workers", 0]
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert len(found["slides"]) == 2
    assert len(found["shifts"]) == 12
    assert found["score_falls_with_dab"] == []
    assert out.exists()
    assert Path(found["json"]).exists()
