"""Settings become options once; a value that the settings refuse is a usage error."""

import json
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from her2batch.cli.options import emit, note_unused_address, options, parse_location
from her2batch.settings import Plan, RunWindow


@options(Plan, leave_out=("bundle",))
def show_plan(plan: Plan) -> None:
    typer.echo(plan.model_dump_json())


@options(RunWindow)
def show_window(window: RunWindow) -> None:
    typer.echo(window.model_dump_json())


def invoke(command: object, *words: str) -> Result:
    application = typer.Typer()
    application.command()(command)
    return CliRunner().invoke(application, list(words), env={"COLUMNS": "200"})


def test_every_field_is_an_option_with_its_default() -> None:
    assert json.loads(invoke(show_plan).stdout) == Plan().model_dump(mode="json")


def test_a_tuple_is_a_repeatable_option_in_the_singular() -> None:
    plan = json.loads(invoke(show_plan, "--encoder", "stain", "--encoder", "uni", "--mpp", "0.25").stdout)
    assert (plan["encoders"], plan["mpp"]) == (["stain", "uni"], 0.25)


def test_a_value_out_of_range_names_its_option() -> None:
    result = invoke(show_plan, "--mpp-override", "99")
    assert result.exit_code == 2
    assert "--mpp-override" in result.stderr


def test_the_help_is_what_the_settings_say() -> None:
    text = invoke(show_window, "--help").stdout
    assert all(f"--{name}" in text for name in RunWindow.model_fields)
    assert str(RunWindow.model_fields["until"].description)[:40] in text


def test_a_relative_folder_stays_relative() -> None:
    assert parse_location("cohort") == Path("cohort")


def test_a_result_is_one_json_object_or_text(capsys: pytest.CaptureFixture[str]) -> None:
    emit(True, {"path": Path("a")}, lambda: typer.echo("text"))
    assert json.loads(capsys.readouterr().out) == {"path": "a"}
    emit(False, {}, lambda: typer.echo("text"))
    assert capsys.readouterr().out == "text\n"


def test_an_address_in_the_environment_that_is_not_used_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    for address in (None, "auto"):
        note_unused_address(address)
    assert capsys.readouterr().err == ""
    note_unused_address("local")
    assert "RAY_ADDRESS=http://127.0.0.1:8265 is set and not used: --address is local" in capsys.readouterr().err


def test_only_given_options_are_set() -> None:
    @options(Plan, leave_out=("bundle",), only_given=True)
    def show_given(plan: Plan) -> None:
        typer.echo(json.dumps(sorted(plan.model_fields_set)))

    assert json.loads(invoke(show_given).stdout) == []
    given = invoke(show_given, "--mpp", "0.5", "--encoder", "stain", "--lossless")
    assert json.loads(given.stdout) == ["encoders", "lossless", "mpp"]
    assert "(0.5)" in invoke(show_given, "--help").stdout
