"""The command that validates a cohort's predictions against labels, with criteria that were written down before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from her2batch.cli.options import CohortArgument, ColumnOption, Json, KeyOption, LabelsOption, emit, parse_columns


def validate(
    *,
    cohort: CohortArgument,
    labels: LabelsOption = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="the HTML file to write; a JSON file is written beside it")
    ] = Path("validation.html"),
    criteria: Annotated[
        Path | None, typer.Option(help="TOML file with acceptance criteria; default: those registered last")
    ] = None,
    register: Annotated[
        bool, typer.Option("--register", help="register the criteria before any figure is seen, and compare nothing")
    ] = False,
    check: Annotated[
        Path | None, typer.Option(metavar="REPORT.json", help="say whether a validation report still holds")
    ] = None,
    predictions: Annotated[
        str | None, typer.Option(help="predictions to validate: membrane, or the id of a bundle or calibration")
    ] = None,
    method: Annotated[str | None, typer.Option(help="method to validate, if the predictions are of several")] = None,
    task: Annotated[str | None, typer.Option(help="task to validate; default: that of the criteria")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="folder of the bundle, or calibration file, that made the predictions")
    ] = None,
    column: ColumnOption = None,
    pseudonymize: KeyOption = None,
    as_json: Json = False,
) -> int:
    """Validate predictions against labels: agreement, reproducibility, discordant slides, verdicts on criteria."""
    from her2batch.errors import InputError

    if register:
        if criteria is None:
            raise InputError("--register registers criteria", None, "name their file with --criteria")
        return _register(cohort, criteria, as_json)
    if check is not None:
        return _check(cohort, check, bundle, labels, as_json)
    from her2batch.reports.validation.validating import ValidationRequest, write_validation_report
    from her2batch.store.cohort import Cohort
    from her2batch.store.pseudonyms import Pseudonymizer, read_key

    names = Pseudonymizer(read_key(pseudonymize) if pseudonymize is not None else None)
    request = ValidationRequest(labels, parse_columns(column), criteria, predictions, method, task, bundle, names)
    found = write_validation_report(Cohort(cohort), request, out.absolute())

    def show() -> None:
        print(found.content["registration"][0])
        for verdict in found.verdicts:
            print(verdict.sentence)
        print(found.content["conclusion"])
        print(f"report: {found.html}, {found.json}")

    emit(as_json, {"report": str(found.html), "json": str(found.json), **found.content}, show)
    return 0


def _register(root: Path, criteria: Path, as_json: bool) -> int:
    """Register criteria in the validation log of a cohort."""
    from her2batch.store.cohort import Cohort
    from her2batch.store.validation.criteria import read_criteria
    from her2batch.store.validation.registrations import comparisons_before, read_log, register_criteria

    _, text = read_criteria(criteria)
    cohort = Cohort(root)
    entry = register_criteria(cohort, text)
    earlier = len(comparisons_before(read_log(cohort), entry))
    data = {name: entry[name] for name in ("number", "time", "criteria_sha256", "sha256")}
    data |= {"slides": len(entry["slides"]), "comparisons_before": earlier}

    def show() -> None:
        print(f"registered at {entry['time']} for {len(entry['slides'])} slides")
        print(f"checksum of the criteria: {entry['criteria_sha256']}")
        print(f"checksum of the entry: {entry['sha256']}; note it in your records")
        if earlier:
            print("predictions of these slides were compared with labels before: the report will say so")

    emit(as_json, data, show)
    return 0


def _check(root: Path, report: Path, bundle: Path | None, labels: Path | None, as_json: bool) -> int:
    """Say whether a report still holds; exit code 3 if it is void."""
    from her2batch.reports.validation.validating import void_reasons
    from her2batch.store.cohort import Cohort

    reasons = void_reasons(report, Cohort(root), bundle, labels)

    def show() -> None:
        print(f"{report}: {'void' if reasons else 'valid'}")
        for reason in reasons:
            print(f"  {reason}")

    emit(as_json, {"valid": not reasons, "reasons": reasons}, show)
    return 3 if reasons else 0
