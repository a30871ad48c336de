"""A settings model as the options of a command, and what several commands share: each is declared once."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel, ValidationError

Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout, everything else on stderr")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress")]
PLACE = "the cohort: a folder, or s3://BUCKET/NAME"


def as_place(text: str) -> Path:
    """A cohort's place; a relative one stays as it was given."""
    from her2batch.files.locations import AWAY, to_location

    return to_location(text) if AWAY in str(text) else Path(text)


OutOption = Annotated[Path, typer.Option(help=PLACE, show_default=True, parser=as_place, metavar="PLACE")]
CohortArgument = Annotated[Path, typer.Argument(help=PLACE, parser=as_place, metavar="COHORT")]
OUT = Path("cohort")


def emit(as_json: bool, data: dict[str, Any], show: Callable[[], None]) -> None:
    """What a command found: one JSON object on stdout, or its screen.

    Whoever listened may have gone (`| head`): what was done is done all the same, and so is the exit code.
    """
    try:
        if as_json:
            print(json.dumps(data, default=str))
        else:
            show()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich makes the one the other
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def options(model: type[BaseModel], leave_out: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Give a command one option for every field of a settings model; it receives the model itself.

    A value the model refuses is a usage error. An option is so declared once, in `settings`.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        fields = {name: one for name, one in model.model_fields.items() if name not in leave_out}
        own = inspect.signature(command, eval_str=True)
        into = next(name for name, one in own.parameters.items() if one.annotation is model)

        @wraps(command)
        def run(**given: Any) -> Any:
            values = {name: given.pop(name) for name in fields}
            try:
                settings = model(**{name: value for name, value in values.items() if value not in (None, [])})
            except ValidationError as error:
                first = error.errors()[0]
                option = "--" + str(first["loc"][0] if first["loc"] else "options").replace("_", "-")
                raise typer.BadParameter(f"{first['msg']}", param_hint=option) from error
            return command(**given, **{into: settings})

        parameters = [one for name, one in own.parameters.items() if name != into]
        for name, one in fields.items():
            parameters.append(_parameter(name, one))
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _parameter(name: str, one: Any) -> inspect.Parameter:
    flag = "--" + (name.removesuffix("s") if one.annotation == tuple[str, ...] else name).replace("_", "-")
    repeatable = one.annotation == tuple[str, ...]
    kinds = [kind for kind in get_args(one.annotation) if kind is not type(None)]
    plain = next((kind for kind in (bool, int, float, str) if kind is one.annotation or kind in kinds), str)
    default = list(one.default) if repeatable else one.default
    kind: Any = list[str] if repeatable else plain | None
    annotation = Annotated[kind, typer.Option(flag, help=one.description)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
