"""The command `send`: one line for each outcome, exit codes as documented."""

import json
from pathlib import Path

import pytest

from her2batch.cli.app import app
from tests.exchange.lis.examples import make_cohort
from tests.exchange.lis.receivers import LisServer, running


def run(*words: object) -> int:
    return int(app([str(word) for word in words], standalone_mode=False) or 0)


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "identities.csv"
    path.write_text("slide_id,patient_id,accession\nS000,1,A1\nS001.svs,2,A2\n")
    return path


def test_results_are_sent_and_the_rest_is_listed(tmp_path: Path, sheet: Path, capsys) -> None:
    cohort = make_cohort(tmp_path / "c", 3)
    with running(LisServer()) as lis:
        words = ("send", cohort.root, "--to", lis.address, "--identities", sheet, "--quiet")
        assert run(*words) == 3
        assert capsys.readouterr().out.splitlines() == [
            "2 preliminary results sent",
            "0 unchanged: the receiver has their present results",
            "1 without identity, not sent: S002",
        ]
        assert run(*words, "--json") == 3
        found = json.loads(capsys.readouterr().out)
    assert (found["unchanged"], found["without_identity"], found["exit_code"]) == (2, ["S002"], 3)
    assert lis.fields("PID", 3) == ["1^^^^MR", "2^^^^MR"]


def test_dry_run_says_what_would_be_sent(tmp_path: Path, sheet: Path, capsys) -> None:
    cohort = make_cohort(tmp_path / "c", 2)
    assert run("send", cohort.root, "--to", "mllp://127.0.0.1:9", "--identities", sheet, "--dry-run", "--quiet") == 0
    assert capsys.readouterr().out.startswith("2 preliminary results would be sent\n")
