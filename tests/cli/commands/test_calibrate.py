"""`her2batch calibrate`, and `score --calibration`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.tasks import IHC_SCORES
from tests.pipeline.calibration.laboratories import make_laboratory, write_sheet


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in words])
    return (2 if result.exception and not isinstance(result.exception, SystemExit) else result.exit_code), (
        result.stdout or str(result.exception)
    )


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cohort and labels of its slides."""
    folder = tmp_path_factory.mktemp("laboratory")
    _, labels = make_laboratory(folder / "cohort", dict.fromkeys(IHC_SCORES, 2))
    write_sheet(folder / "labels.csv", labels, dict.fromkeys(labels, "north"))
    return folder


def test_a_calibration_is_made_and_used(laboratory: Path) -> None:
    cohort, file = laboratory / "cohort", laboratory / "c.toml"
    code, out = invoke("calibrate", cohort, "--labels", laboratory / "labels.csv", "--out", file, "--json")
    made = json.loads(out)
    assert code == 0
    assert made["methods"][0]["slides"] == dict.fromkeys(IHC_SCORES, 2)
    assert made["methods"][0]["too_few"] == list(IHC_SCORES)
    code, out = invoke("score", cohort, "--calibration", file, "--json")
    found = json.loads(out)
    assert code == found["exit_code"] == 0
    assert found["calibration"]["id"] == made["id"]
    assert found["calibration"]["abstained"] == 8
    assert (cohort / "tables" / "predictions" / made["id"]).is_dir()


def test_the_screen_says_on_what_it_stands_and_what_to_do_next(laboratory: Path) -> None:
    words = ("calibrate", laboratory / "cohort", "--labels", laboratory / "labels.csv", "--per", "site")
    code, out = invoke(*words, "--out", laboratory / "d.toml")
    assert code == 0
    for text in (
        "membrane, her2-4way",
        "north",
        "0: 2, 1+: 2",
        "needs labelled slides of 9 patients",
        "her2batch score",
    ):
        assert text in " ".join(out.split())
    code, out = invoke("score", laboratory / "cohort", "--calibration", laboratory / "d.toml")
    assert "8 slides predicted with the calibration: 8 without a single class" in " ".join(out.split())


@pytest.mark.parametrize(
    "words",
    [
        ("calibrate", "none"),
        ("calibrate", "cohort"),
        ("calibrate", "cohort", "--labels", "none.csv"),
        ("calibrate", "cohort", "--labels", "labels.csv", "--per", "day"),
        ("calibrate", "cohort", "--labels", "labels.csv", "--coverage", "1.5"),
        ("score", "cohort"),
        ("score", "cohort", "--calibration", "none.toml"),
        ("score", "cohort", "--calibration", "labels.csv"),
    ],
)
def test_what_cannot_be_done_is_exit_code_2(laboratory: Path, words: tuple[str, ...], monkeypatch) -> None:
    monkeypatch.chdir(laboratory)
    assert invoke(*words)[0] == 2
    assert not (laboratory / "calibration.toml").exists()
