"""The commands synth and doctor."""

import json
from pathlib import Path

from typer.testing import CliRunner

from her2batch.cli.app import app


def test_synth_writes_slides_and_their_labels(tmp_path: Path) -> None:
    words = ["synth", str(tmp_path / "s"), "--slides", "1", "--width", "700", "--height", "600"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert result.stdout.startswith("1 slides in ")
    assert (tmp_path / "s" / "labels.csv").is_file()


def test_doctor_lists_python_and_ray() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    assert {line["name"] for line in json.loads(result.stdout)["lines"]} >= {"python", "ray"}


def test_synth_with_the_profile_of_the_paper_counts_patients(tmp_path: Path) -> None:
    words = ["synth", str(tmp_path / "s"), "--profile", "paper", "--slides", "1", "--width", "700", "--height", "600"]
    result = CliRunner().invoke(app, [*words, "--stain", "her2", "--quiet"])
    assert result.exit_code == 0
    assert result.stdout.startswith("1 slides in ")
    labels = (tmp_path / "s" / "labels.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in labels[1:]] == [["P001-1", "P001"]]
