"""The commands export and import."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.cli.commands.exchange import Format
from her2batch.errors import InputError
from her2batch.exchange.outgoing import FORMATS
from her2batch.store.cohort import Cohort
from tests.exchange.stored_examples import make_stored_cohort


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cohort:
    monkeypatch.chdir(tmp_path)
    return make_stored_cohort(tmp_path / "cohort", "S1", "S2", dim=8)


def test_export_offers_every_format() -> None:
    assert [one.value for one in Format] == list(FORMATS)
    assert CliRunner().invoke(app, ["export", "cohort", "--to", "xlsx"]).exit_code == 2


@pytest.mark.usefixtures("cohort")
def test_export_writes_to_a_folder_of_its_format_and_prints_it() -> None:
    result = CliRunner().invoke(app, ["export", "cohort", "--to", "geojson"])
    assert result.exit_code == 0
    assert result.stdout.startswith("2 files of 2 slides, ")
    assert ": export/geojson\nnext: drag a file onto its slide in QuPath" in result.stdout
    assert Path("export/geojson/S1.tiles.geojson").is_file()
    assert "2/2 files" in result.stderr


@pytest.mark.usefixtures("cohort")
def test_json_prints_one_object_and_nothing_else() -> None:
    result = CliRunner().invoke(app, ["export", "cohort", "--to", "csv", "--slide", "S2", "--json"])
    found = json.loads(result.stdout)
    assert (found["files"], found["slides"], found["exit_code"]) == (6, 1, 0)
    assert result.stderr == ""


def test_exported_embeddings_can_be_imported(cohort: Cohort) -> None:
    runner = CliRunner()
    runner.invoke(app, ["export", "cohort", "--to", "clam-h5"])
    words = ["import", "cohort", "export/clam-h5/features_stain/h5_files", "--encoder", "mine"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0
    assert "mine: 2 slides imported, 0 were there already, 0 files refused" in result.stdout
    assert "--input mine" in result.stdout
    again = json.loads(runner.invoke(app, [*words, "--json"]).stdout)
    assert (again["slides"], again["already"], again["encoders"]) == ([], ["S1", "S2"], ["mine"])
    assert runner.invoke(app, ["verify", "cohort"]).exit_code == 0
    assert cohort.table_names().count("embeddings/mine") == 1


@pytest.mark.usefixtures("cohort")
def test_a_refused_file_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "S1.h5").write_bytes(b"no HDF5")
    result = CliRunner().invoke(app, ["import", "cohort", "S1.h5", "--encoder", "mine"])
    assert result.exit_code == 2
    assert result.stdout.startswith("REFUSED S1.h5: the file cannot be read as HDF5")


@pytest.mark.usefixtures("cohort")
def test_an_export_into_the_store_is_refused() -> None:
    result = CliRunner().invoke(app, ["export", "cohort", "--to", "csv", "--out", "cohort/csv"])
    assert isinstance(result.exception, InputError)
    assert "inside the cohort" in str(result.exception)
