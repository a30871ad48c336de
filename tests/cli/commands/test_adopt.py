"""The command adopt: what it prints, its JSON and its exit codes."""

import json
from pathlib import Path

import pytest

from her2batch.cli.commands.adopt import LayoutName, adopt
from her2batch.exchange.adopt.layouts import LAYOUTS
from tests.exchange.adopt import sets


def test_layouts_are_those_of_the_package() -> None:
    assert [name.value for name in LayoutName] == list(LAYOUTS)


def test_summary_names_problems_resolution_and_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = sets.make_bci(tmp_path / "set")
    assert adopt(layout=LayoutName.bci, folder=root, out=tmp_path / "scans", quiet=True) == 0
    text = capsys.readouterr().out
    assert "IHC/train/00010_train.png: misnamed" in text
    assert "note: the set does not say which patches are of one slide" in text
    assert "4 slides in 2 groups, 4 with a label: 4 lossless" in text
    assert "resolution: 0.46 µm/px; set: BCI (Liu et al. 2022" in text
    assert f"next: her2batch ingest {tmp_path / 'scans/slides'} --labels {tmp_path / 'scans/labels.csv'}" in text


def test_json_has_the_same_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = sets.make_single_folder(tmp_path / "set")
    (root / "1_d.jpg").write_bytes(b"\xff\xd8")
    code = adopt(layout=LayoutName.single_folder, folder=root, out=tmp_path / "s", mpp=0.25, as_json=True)
    data = json.loads(capsys.readouterr().out)
    assert (code, data["exit_code"], data["slides"], list(data["failed"])) == (3, 3, 5, ["1_d.jpg"])
