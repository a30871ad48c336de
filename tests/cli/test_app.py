"""The command line as a whole: greeting, version, help, closed streams, internal errors."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from her2batch.cli import app as module
from her2batch.cli.app import COMMANDS, app
from tests.conftest import MakeSlide, Synthetic


def test_without_arguments_a_newcomer_gets_three_commands() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    commands = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("    her2batch ")]
    assert commands == ["demo", "ingest", "report"]
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_version_is_the_installed_one() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"her2batch {metadata.version('her2batch')}\n")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", ["", *(command.__name__.rstrip("_").replace("_", "-") for command in COMMANDS)])
def test_help_has_a_short_flag_everywhere(command: str, flag: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), flag])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_shell_completion_can_be_installed() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout
    environment = os.environ | {"_HER2BATCH_COMPLETE": "source_bash"}
    code = "import sys; sys.argv[0] = 'her2batch'; from her2batch.cli.app import main; main()"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "complete" in run.stdout
    assert "her2batch" in run.stdout


def test_output_and_quiet_have_short_flags() -> None:
    def flags(command: str) -> list[str]:
        return CliRunner().invoke(app, [command, "-h"], env={"COLUMNS": "120"}).stdout.split()

    assert all("-o" in flags(command) for command in ("ingest", "train", "reproduce", "tune", "report", "export"))
    quiet = ("ingest", "overnight", "train", "reproduce", "tune", "score", "export", "import", "demo")
    assert all("-q" in flags(command) for command in quiet)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_cause_no_traceback(closed: str, tmp_path: Path) -> None:
    line = f"exec {sys.executable} -m her2batch.cli status {tmp_path} {closed}"
    run = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


def test_a_closed_stream_is_not_given_to_the_next_file() -> None:
    code = "from her2batch.cli.app import open_missing_streams as o; o(); f = open('/dev/zero'); assert f.fileno() > 2"
    run = subprocess.run(["sh", "-c", f'exec {sys.executable} -c "{code}" <&- >&-'], capture_output=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, b"")


def test_an_unexpected_error_is_one_line_with_the_file_of_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> int:
        raise ZeroDivisionError("x")

    assert module._run(broken) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("her2batch: internal error: ZeroDivisionError: x; the traceback is in ")
    log = Path(line.rsplit(" ", 1)[1])
    assert "ZeroDivisionError" in log.read_text()
    log.unlink()


def test_an_object_store_without_credentials_or_answer_is_no_internal_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    forbidden = exceptions.ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadBucket")
    silent = exceptions.EndpointConnectionError(endpoint_url="http://x")
    for error in (exceptions.NoCredentialsError(), silent, forbidden):

        def broken(error: Exception = error) -> int:
            raise error

        assert module._run(broken) == 2
        line = capsys.readouterr().err
        assert line.startswith("her2batch: the object store cannot be used (")
        assert "AWS_ACCESS_KEY_ID" in line


REFUSED = (
    "ingest nowhere --out new",
    "ingest nowhere --out a/b/new",
    "ingest empty --out new",
    "ingest texts",
    "ingest texts --dry-run",
    "ingest scans --out new --labels nowhere.csv",
    "ingest scans --out new --labels texts/a.txt",
    "ingest scans --out new --encoder uni --weights empty",
    "ingest scans --out new --urgent nowhere",
    "ingest scans --out new --bundle nowhere",
    "ingest scans --out texts",
    "train COHORT --out run --labels nowhere.csv --workers 0",
    "train COHORT --out a/run --labels texts/a.txt --workers 0",
    "train COHORT --out run --task er --labels thin.csv --workers 0",
    "train COHORT --out run --method convnext-small --option pretrained=empty",
    "train COHORT --out run --method convnext-small --option pretrained=empty --input patches-low",
    "reproduce COHORT --out run --labels thin.csv --workers 0",
    "reproduce COHORT --out run --option pretrained=empty --option size=full",
    "tune COHORT --out run --method svm",
    "tune COHORT --out run --method convnext-small --option pretrained=empty",
    "status nowhere",
    "score nowhere --bundle empty",
    "report nowhere --out r.html",
    "export nowhere --to csv --out x",
    "serve nowhere",
    "overnight nowhere.toml",
)
"""Commands with a wrong path, option or file. COHORT is a finished cohort."""


@pytest.mark.parametrize("command", REFUSED)
def test_a_refused_command_leaves_nothing_behind(
    command: str, synthetic: Synthetic, make_slide: MakeSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make_slide("S1.tiff")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no slide")
    (tmp_path / "thin.csv").write_text("slide_id,patient_id,her2\nP001-1,P001,3+\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("her2batch.runtime.ray_session._start", lambda *_: pytest.fail("Ray was started"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    words = [str(synthetic.cohort) if word == "COHORT" else word for word in command.split()]
    assert module._run(lambda: app(words)) == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert len(capsys.readouterr().err.splitlines()) == 1  # one message, whatever it is that is wrong
