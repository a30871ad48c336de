"""The commands on slides and cohorts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.errors import InputError
from her2batch.pipeline.resume.plan_change import PlanChangedError
from tests.conftest import MakeSlide, Synthetic


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in words])
    return result.exit_code, result.stdout


def test_dry_run_lists_the_slides_and_writes_nothing(make_slide: MakeSlide, tmp_path: Path) -> None:
    scans = make_slide("a.tiff").parent
    code, out = invoke("ingest", scans, "--out", tmp_path / "c", "--dry-run", "--json")
    found = json.loads(out)
    assert code == 0
    assert [(row["slide_id"], row["what"]) for row in found["slides"]] == [("a", "ingest (generic-tiff, 0.25 µm/px)")]
    assert not (tmp_path / "c").exists()


def test_ingest_status_and_verify_agree(make_slide: MakeSlide, tmp_path: Path) -> None:
    scans, cohort = make_slide("a.tiff").parent, tmp_path / "c"
    code, out = invoke("ingest", scans, "--out", cohort, "--workers", 0, "--json")
    assert (code, json.loads(out)["done"]) == (0, 1)
    code, out = invoke("status", cohort, "--json")
    assert (code, json.loads(out)["adds_up"]) == (0, True)
    code, out = invoke("verify", cohort, "--json")
    assert (code, json.loads(out)["problems"], json.loads(out)["reviews"]) == (0, [], 0)


def test_status_as_json_lists_failures(make_slide: MakeSlide, tmp_path: Path) -> None:
    scans, cohort = make_slide("a.tiff", mpp=None).parent, tmp_path / "c"
    assert invoke("ingest", scans, "--out", cohort, "--workers", 0, "--json")[0] == 3
    found = json.loads(invoke("status", cohort, "--json")[1])
    assert found["codes"] == {"no-mpp": 1}
    assert [row["slide_id"] for row in found["failures"]] == ["a"]


@pytest.mark.parametrize("words", [["--mpp", "99"], ["--until", "25:00"], ["--reader", "magic"]])
def test_a_setting_out_of_range_is_a_usage_error(tmp_path: Path, words: list[str]) -> None:
    assert invoke("ingest", tmp_path, *words)[0] == 2


def test_a_mistyped_setting_replaces_nothing(synthetic: Synthetic, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(synthetic.cohort, cohort)
    before = {path: path.read_bytes() for path in cohort.rglob("*") if path.is_file()}
    for more in ([], ["--dry-run"]):
        result = CliRunner().invoke(app, ["ingest", str(synthetic.scans), "--out", str(cohort), "--mpp", "1.0", *more])
        assert isinstance(result.exception, PlanChangedError)  # one line and exit code 2
        assert "(mpp 0.5 → 1.0), which would compute 24 finished slides again" in str(result.exception)
    assert {path: path.read_bytes() for path in cohort.rglob("*") if path.is_file()} == before
    code, out = invoke("ingest", synthetic.scans, "--out", cohort, "--mpp", 1.0, "--replan", "--dry-run", "--json")
    assert (code, json.loads(out)["todo"]) == (0, 24)


@pytest.mark.slow
def test_an_ingest_finishes_when_its_output_is_closed(make_slide: MakeSlide, tmp_path: Path) -> None:
    scans = make_slide("a.tiff").parent
    make_slide("b.tiff", seed=1)
    command = [sys.executable, "-m", "her2batch.cli", "ingest", str(scans), "--out", str(tmp_path / "c")]
    run = subprocess.Popen([*command, "--workers", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    run.stderr.close()
    assert run.wait(timeout=120) == 0
    assert json.loads(invoke("status", tmp_path / "c", "--json")[1])["done"] == 2


def test_a_settings_file_is_made_checked_and_never_overwritten(
    make_slide: MakeSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_slide("S1.tiff")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    made = runner.invoke(app, ["overnight", "--init"])
    assert (made.exit_code, made.stdout) == (
        0,
        "night.toml: edit it, then run her2batch overnight --check night.toml\n",
    )
    path = tmp_path / "night.toml"
    again = runner.invoke(app, ["overnight", "--init"])
    assert isinstance(again.exception, InputError)
    refused = runner.invoke(app, ["overnight", "--check", str(path)])  # there is no /scans here
    assert refused.exit_code == 2
    assert "mount the share" in refused.stdout
    text = path.read_text().replace('"/scans"', f'"{tmp_path / "scans"}"')
    text = text.replace('"/data/cohort"', f'"{tmp_path / "c"}"')
    path.write_text(text.replace("# warn_gigabytes = 20.0", "warn_gigabytes = 0"))
    checked = runner.invoke(app, ["overnight", str(path), "--check"])
    assert checked.exit_code == 0, checked.stdout
    assert "1 in the folder now" in checked.stdout
    assert not (tmp_path / "c").exists()
    assert runner.invoke(app, ["overnight"]).exit_code == 2
