"""A validation from registration to check: what the report says, and what makes it void."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.reports.validation.validating import ValidationRequest, void_reasons, write_validation_report
from her2batch.store.cohort import Cohort
from her2batch.store.validation import fingerprint
from her2batch.store.validation.criteria import DEFAULT_CRITERIA
from her2batch.store.validation.registrations import read_log, register_criteria
from tests.reports.validation.conftest import Validated


def write(validated: Validated, name: str = "v", **more: object) -> Path:
    request = replace(ValidationRequest(validated.labels), **more)
    return write_validation_report(validated.cohort, request, validated.labels.parent / f"{name}.html").json


def unlink_copy(path: Path) -> Path:
    """Give a file content of its own: the cohorts of the tests share theirs."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def test_report_of_registered_criteria_is_valid_and_says_so(validated: Validated) -> None:
    entry = register_criteria(validated.cohort, DEFAULT_CRITERIA)
    report = write(validated)
    found = json.loads(report.read_text())
    assert found["registered"] == entry["time"]
    assert found["registered_before"]
    assert f"{len(entry['slides'])} registered slides" in " ".join(found["registration"])
    assert found["agreement"]["n"] == len(found["fingerprint"]["tables"])
    assert set(found["sites"]) == {"north", "south"}
    assert set(found["scanners"]) == {"alpha", "beta"}
    assert found["repeated_scans"]["n"] > 0
    pages = {path.stem for path in report.with_name("v_slides").glob("*.html")}
    assert pages == {one["slide_id"] for one in found["discordant"]}
    assert void_reasons(report, validated.cohort, labels=validated.labels) == []
    assert [one["kind"] for one in read_log(validated.cohort)] == ["registered", "compared"]


def test_criteria_that_came_after_the_figures_are_called_so(validated: Validated, tmp_path: Path) -> None:
    first = json.loads(write(validated, "a").read_text())
    assert first["registered"] is None
    assert "default criteria" in first["registration"][0]
    criteria = tmp_path / "criteria.toml"
    criteria.write_text(DEFAULT_CRITERIA.replace("0.95", "0.10"))
    second = json.loads(write(validated, "b", criteria=criteria).read_text())
    assert "not registered before" in second["registration"][0]
    register_criteria(validated.cohort, criteria.read_text())
    third = json.loads(write(validated, "c").read_text())
    assert not third["registered_before"]
    assert "after the figures had been seen" in third["registration"][0]
    assert third["criteria"] == criteria.read_text()


def test_slides_that_were_registered_and_are_missing_are_counted(validated: Validated) -> None:
    register_criteria(validated.cohort, DEFAULT_CRITERIA)
    lines = validated.labels.read_text().splitlines(keepends=True)
    validated.labels.write_text("".join(lines[:-2]))
    text = " ".join(json.loads(write(validated).read_text())["registration"])
    assert "2 registered slides have no label" in text


def change_plan(cohort: Cohort, report: Path) -> None:
    path = unlink_copy(cohort.settings)
    path.write_text(path.read_text() + "\n")


def change_predictions(cohort: Cohort, report: Path) -> None:
    slide = next(iter(json.loads(report.read_text())["fingerprint"]["tables"]))
    path = unlink_copy(cohort.table("predictions/membrane", slide))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def remove_predictions(cohort: Cohort, report: Path) -> None:
    slide = next(iter(json.loads(report.read_text())["fingerprint"]["tables"]))
    cohort.table("predictions/membrane", slide).unlink()


def change_json(cohort: Cohort, report: Path) -> None:
    report.write_text(report.read_text().replace('"her2-4way"', '"her2-5way"', 1))


def change_html(cohort: Cohort, report: Path) -> None:
    html = report.with_suffix(".html")
    html.write_text(html.read_text().replace("research", "clinical", 1))


def change_log(cohort: Cohort, report: Path) -> None:
    path = cohort.root / "validation" / "00001.json"
    path.write_text(path.read_text().replace("membrane", "cells", 1))


def remove_log(cohort: Cohort, report: Path) -> None:
    (cohort.root / "validation" / "00001.json").unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_plan, "plan"),
        (change_predictions, "predictions of slide"),
        (remove_predictions, "predictions of slide"),
        (change_json, "JSON file"),
        (change_html, "HTML file"),
        (change_log, "validation log"),
        (remove_log, "validation log"),
    ],
)
def test_one_changed_byte_makes_the_report_void(validated: Validated, change: object, named: str) -> None:
    report = write(validated)
    change(validated.cohort, report)
    assert any(named in one for one in void_reasons(report, validated.cohort))


def test_changed_bundle_version_or_labels_make_the_report_void(
    validated: Validated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bundle.toml").write_text("x = 1\n")
    report = write(validated, bundle=bundle)
    assert void_reasons(report, validated.cohort, bundle) == []
    assert "--bundle" in void_reasons(report, validated.cohort)[0]
    (bundle / "bundle.toml").write_text("x = 2\n")
    assert "bundle.toml" in void_reasons(report, validated.cohort, bundle)[0]
    (bundle / "bundle.toml").write_text("x = 1\n")
    validated.labels.write_text(validated.labels.read_text() + "\n")
    assert "label sheet" in void_reasons(report, validated.cohort, bundle, validated.labels)[0]
    versions = {**fingerprint.package_versions(), "numpy": "9.9"}
    monkeypatch.setattr(fingerprint, "package_versions", lambda: versions)
    assert "numpy" in void_reasons(report, validated.cohort, bundle)[0]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}'])
def test_other_files_are_no_reports(validated: Validated, content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InputError, match="is no validation report"):
        void_reasons(path, validated.cohort)


def test_task_must_be_that_of_the_criteria(validated: Validated) -> None:
    register_criteria(validated.cohort, DEFAULT_CRITERIA)
    with pytest.raises(InputError, match="criteria are about her2-4way"):
        write(validated, task="her2-binary")


def test_binary_task_is_validated_by_its_default_criteria(validated: Validated) -> None:
    found = json.loads(write(validated, task="her2-binary").read_text())
    assert list(found["cuts"]) == ["positive"]
    assert re.match("Not |Accepted", found["conclusion"])
