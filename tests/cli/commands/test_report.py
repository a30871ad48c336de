"""The command report."""

import json
from pathlib import Path

from typer.testing import CliRunner

from her2batch.cli.app import app
from tests.conftest import Synthetic


def test_report_writes_one_file_and_its_figures_and_prints_the_path(synthetic: Synthetic, tmp_path: Path) -> None:
    out, figures = tmp_path / "r.html", tmp_path / "figures"
    words = ["report", str(synthetic.cohort), "--out", str(out), "--pages", "1", "--figures", str(figures), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    kept = {"report": str(out), "bytes": out.stat().st_size, "slides": 1, "figures": found["figures"]}
    assert found == {**kept, "review_queue": None}  # no calibration
    assert len(list(figures.iterdir())) == 3 * found["figures"]
    plain = CliRunner().invoke(app, words[:-1])
    assert plain.stdout == f"report: {out}\n"


def test_a_folder_without_a_cohort_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "r.html")])
    assert "there is no cohort here" in str(result.exception)
    assert not (tmp_path / "r.html").exists()
