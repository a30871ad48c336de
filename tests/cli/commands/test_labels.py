"""The command that shows how a label sheet is understood."""

import json
from pathlib import Path

from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort, write_row


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in words])
    return (2 if result.exception and not isinstance(result.exception, SystemExit) else result.exit_code), (
        result.stdout or str(result.exception)
    )


def test_rows_are_shown_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Filename;IHC score\nA.svs;Score 3+\nB.svs;0 (null)\n")
    words = ("labels", tmp_path / "a.csv", "--column", "slide_id=Filename", "--column", "her2=IHC score", "--json")
    code, out = invoke(*words)
    rows = json.loads(out)["rows"]
    assert code == 0
    assert [(row["slide_id"], row["her2"], row["her2_detail"]) for row in rows] == [
        ("A", "3+", None),
        ("B", "0", "null"),
    ]


def test_what_is_not_understood_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("slide_id,her2\nA,2-3+\n")
    code, out = invoke("labels", tmp_path / "a.csv")
    assert code == 2
    assert "line 2: her2 is '2-3+'" in out
    assert invoke("labels", tmp_path / "a.csv", "--column", "slide_id")[0] == 2
    assert invoke("labels", tmp_path / "a.csv", "--cohort", tmp_path / "none")[0] == 2


def test_labels_are_compared_with_a_cohort(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path / "cohort")
    cohort.create(Plan())
    for slide_id, path in [("S1", "/s/S1.svs"), ("1", "/a/1.svs"), ("1-ab", "/b/1.svs")]:
        write_row(cohort, {"slide_id": slide_id, "path": path, "files": []})
    (tmp_path / "a.csv").write_text("slide_id,her2\nS1.svs,0\nS9,3+\n")
    code, out = invoke("labels", tmp_path / "a.csv", "--cohort", cohort.root, "--json")
    found = json.loads(out)
    assert (code, found["met"], found["unlabelled"]) == (0, 1, ["1", "1-ab"])
    assert found["unmet"] == [{"line": 3, "slide_id": "S9"}]
    (tmp_path / "a.csv").write_text("slide_id,her2\n1,0\n")
    code, out = invoke("labels", tmp_path / "a.csv", "--cohort", cohort.root)
    assert code == 2
    assert "could mean /a/1.svs or /b/1.svs" in out
