"""The demo, which is the README's first command."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from her2batch.cli import demo as module
from her2batch.cli.demo import demo
from her2batch.models.bundle import read_bundle
from her2batch.synthetic.cohort import make_cohort
from tests.conftest import Synthetic

METHODS = {"clam-sb", "random-forest", "svm", "mlp"}


@pytest.mark.slow
def test_the_demo_trains_and_scores_held_out_slides(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small slides, one epoch and no search for settings, in the serial loop. Slides to train on are there already."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "known").symlink_to(synthetic.labels.parent)
    monkeypatch.setattr(module, "make_cohort", partial(make_cohort, workers=1))
    short = {"patches_per_slide": 4, "options": ("search=false", "epochs=1")}
    monkeypatch.setattr(module, "SIZE", (1700, 1400))
    monkeypatch.setattr(module, "TRAINING", module.TRAINING.model_copy(update=short))
    found = demo(tmp_path / "demo", 18, 2, quiet=True, workers=0)
    assert found.exit_code == 0
    bundle = read_bundle(tmp_path / "demo" / "run" / "bundle")
    assert {one.method for one in bundle.info.models} == {*METHODS, "convnext-small"}
    assert found.report == tmp_path / "demo" / "report.html"
    html = found.report.read_text()
    assert all(f'id="slide-{row["slide_id"]}"' in html for row in found.rows)
    assert "Training run" in html
    assert (tmp_path / "demo" / "run" / "report.html").is_file()
    assert found.rows
    for row in found.rows:
        assert {"membrane", *METHODS} <= row.keys()


@pytest.mark.long
def test_the_command_prints_the_predictions_of_each_method_for_held_out_slides(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "her2batch.cli", "demo", str(out), "--slides", "18", "--held-out", "3"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    assert all(name in run.stdout for name in {"membrane", *METHODS}), run.stdout
    assert (out / "report.html").is_file()
