"""Command-line options: a settings model as options of a command, and options that several commands share."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout, everything else on stderr")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="show no progress")]
COHORT_HELP = "the cohort: a folder, or s3://BUCKET/NAME"


def parse_location(text: str) -> Path:
    """Return a cohort's location as a path; a relative folder stays relative."""
    from her2batch.files.locations import URL_SEPARATOR, to_location

    return to_location(text) if URL_SEPARATOR in str(text) else Path(text)


OutOption = Annotated[
    Path, typer.Option("--out", "-o", help=COHORT_HELP, show_default=True, parser=parse_location, metavar="COHORT")
]
CohortArgument = Annotated[Path, typer.Argument(help=COHORT_HELP, parser=parse_location, metavar="COHORT")]
RunOption = Annotated[Path, typer.Option("--out", "-o", help="folder of the training run")]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="folder with encoder weights; default: the Hugging Face cache")
]
KeyOption = Annotated[Path | None, typer.Option("--pseudonymize", help="key file of a pseudonymized cohort")]
LABELS_HELP = "label sheet (CSV, XLSX), or a clinical table of TCGA or cBioPortal"
LabelsOption = Annotated[
    Path | None, typer.Option("--labels", help=f"{LABELS_HELP}; default: the labels given to ingest")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=HEADER",
        help="header of a column of the label sheet, such as slide_id=Filename; repeatable",
    ),
]
"""Every command that reads a label sheet has this option."""
DEFAULT_COHORT = Path("cohort")


def parse_columns(texts: list[str] | None) -> dict[str, str]:
    """Return our name → header from the texts of --column. Raises InputError for other texts and unknown names."""
    from her2batch.store.label_sheets.headers import parse_column_options

    return parse_column_options(texts or ())


def emit(as_json: bool, data: dict[str, Any], show: Callable[[], None]) -> None:
    """Print a command's result: one JSON object on stdout, or what `show` prints.

    A reader of stdout that has gone away (`| head`) changes neither what was done nor the exit code.
    """
    try:
        if as_json:
            print(json.dumps(data, default=str))
        else:
            show()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich makes the one the other
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def options(
    model: type[BaseModel],
    leave_out: tuple[str, ...] = (),
    help_texts: Mapping[str, str] | None = None,
    only_given: bool = False,
) -> Callable[[Callable[..., Any]], Any]:
    """Give a command one option for every field of a settings model; the command receives the model itself.

    Every option is declared once, in `settings`. A value that the model refuses is a usage error.  help_texts: field →
    help text, where it is more than the field's description.  only_given: `model_fields_set` of the model are the
    options that the user gave; the help shows the defaults of the others in brackets.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        fields = {name: field for name, field in model.model_fields.items() if name not in leave_out}
        signature = inspect.signature(command, eval_str=True)
        target = next(name for name, parameter in signature.parameters.items() if parameter.annotation is model)

        @wraps(command)
        def run(**arguments: Any) -> Any:
            values = {name: arguments.pop(name) for name in fields}
            try:
                settings = model(**{name: value for name, value in values.items() if value not in (None, [])})
            except ValidationError as error:
                first = error.errors()[0]
                option = "--" + str(first["loc"][0] if first["loc"] else "options").replace("_", "-")
                raise typer.BadParameter(f"{first['msg']}", param_hint=option) from error
            note_unused_address(getattr(settings, "address", None))
            return command(**arguments, **{target: settings})

        parameters = [parameter for name, parameter in signature.parameters.items() if name != target]
        texts = help_texts or {}
        parameters += [
            _parameter(name, field, texts.get(name, field.description), only_given) for name, field in fields.items()
        ]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def note_unused_address(address: str | None) -> None:
    """Print a line on stderr if the environment names another Ray cluster than --address does, which decides."""
    found = os.environ.get("RAY_ADDRESS")
    if found and address not in (None, "auto", found):
        print(f"her2batch: RAY_ADDRESS={found} is set and not used: --address is {address}", file=sys.stderr)


def _parameter(name: str, field: FieldInfo, help_text: str | None, unset: bool) -> inspect.Parameter:
    """Return a command's parameter for a settings field; a tuple of texts is a repeatable option in the singular.

    unset: the parameter is None where the option is not given, so that the model knows that it was not.
    """
    repeatable = field.annotation == tuple[str, ...]
    flag = "--" + (name.removesuffix("s") if repeatable else name).replace("_", "-")
    types = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    plain = next((kind for kind in (bool, int, float, str) if kind is field.annotation or kind in types), str)
    default = list(field.default) if repeatable else field.default
    kind: Any = plain | None
    if repeatable:
        kind = list[str] | None if unset else list[str]
    show_default: bool | str = True
    if unset and default not in (None, False):
        show_default = ", ".join(default) if repeatable else str(default)
    annotation = Annotated[kind, typer.Option(flag, help=help_text, show_default=show_default)]
    default = None if unset else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
