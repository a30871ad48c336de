"""Writes the validation report of a cohort, and says later whether it still holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from her2batch.errors import InputError, StoreError
from her2batch.files.atomic import atomic_write, file_sha256
from her2batch.reports.agreement.readers import agreement_of_readers
from her2batch.reports.report_data import ReportData, load_report_data
from her2batch.reports.slide_page import write_slide_pages
from her2batch.reports.validation.comparison import (
    Comparison,
    choose_predictions,
    compare,
    read_validation_labels,
)
from her2batch.reports.validation.measures import Measures
from her2batch.reports.validation.validation_page import ValidationFacts, render_validation_page
from her2batch.reports.validation.verdicts import Verdict, conclusion, judge
from her2batch.store.cohort import Cohort
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.validation.criteria import (
    Criteria,
    criteria_sha256,
    default_criteria,
    parse_criteria,
    read_criteria,
)
from her2batch.store.validation.fingerprint import find_differences, take_fingerprint
from her2batch.store.validation.registrations import (
    FIRST_HASH,
    Entry,
    append_entry,
    comparisons_before,
    content_sha256,
    newest_registration,
    read_log,
    slide_digests,
)

FORMAT: Final = 1
"""Version of the JSON file of a validation report."""


@dataclass(frozen=True)
class ValidationRequest:
    """What is validated.

    labels: label sheet; None: the labels of the cohort.  columns: our name → header of the sheet.  criteria: file with
    criteria; None: those that were registered last, else the default ones.  predictions, method, task: which
    predictions; None: those that the assessment leads with.  bundle: folder of the bundle, or calibration file, that
    made them.
    """

    labels: Path | None = None
    columns: dict[str, str] = field(default_factory=dict)
    criteria: Path | None = None
    predictions: str | None = None
    method: str | None = None
    task: str | None = None
    bundle: Path | None = None
    names: Pseudonymizer = field(default_factory=Pseudonymizer)


@dataclass(frozen=True)
class ValidationReport:
    """The files of a validation report, and what they say.  content: the JSON file."""

    html: Path
    json: Path
    pages: int
    verdicts: tuple[Verdict, ...]
    content: dict[str, Any]


def write_validation_report(cohort: Cohort, request: ValidationRequest, out: Path) -> ValidationReport:
    """Compare predictions with labels and write the report: HTML, JSON beside it, a page for each discordant slide.

    The comparison is written to the validation log of the cohort first.  Raises InputError, StoreError.
    """
    log = read_log(cohort)
    data = load_report_data(cohort)
    criteria, text, registration = _applied_criteria(log, request)
    labels = read_validation_labels(cohort, data, request.labels, request.columns, request.names)
    choice = choose_predictions(data, criteria.task, request.predictions, request.method)
    comparison = compare(data, labels, choice)
    label_facts = {
        "name": request.labels.name if request.labels is not None else "labels of the cohort",
        "sha256": file_sha256(request.labels if request.labels is not None else cohort.labels),
    }
    sentences, before = _registration_sentences(log, registration, request, data, comparison)
    head = _log_comparison(cohort, data, comparison, criteria_sha256(text), label_facts["sha256"])
    measures = Measures(comparison)
    verdicts = judge(criteria, measures)
    facts = ValidationFacts(
        criteria.title, tuple(sentences), before,
        take_fingerprint(cohort, [one.slide_id for one in comparison.slides], choice.folder, request.bundle),
        label_facts, head, datetime.now(UTC).isoformat(timespec="seconds"),
        tuple(agreement_of_readers((labels.rows[one.slide_id] for one in comparison.slides), comparison.patients)),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    data, pages = _write_pages(data, comparison, out)
    html, _ = render_validation_page(data, measures, verdicts, facts)
    with atomic_write(out) as part:
        part.write_text(html, encoding="utf-8")
    content = _as_json(measures, verdicts, facts, text, registration)
    content["html"] = {"name": out.name, "sha256": hashlib.sha256(html.encode()).hexdigest()}
    content["sha256"] = content_sha256(content)
    path = out.with_suffix(".json")
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return ValidationReport(out, path, pages, tuple(verdicts), content)


def _write_pages(data: ReportData, comparison: Comparison, out: Path) -> tuple[ReportData, int]:
    """Write the pages of the discordant slides; return the data with their links, and their number."""
    folder = out.with_name(f"{out.stem}_slides")
    links = {one.slide_id: f"{folder.name}/{one.slide_id}.html" for one in comparison.discordant}
    data = replace(data, page_links=links, page_folder=folder)
    pages = write_slide_pages(data, folder, f"../{out.name}", "validation report") if links else 0
    return data, pages


def _applied_criteria(log: list[Entry], request: ValidationRequest) -> tuple[Criteria, str, Entry | None]:
    """Return the criteria that apply, their text, and their registration; None for criteria that were not registered.

    Raises InputError where the task is not that of the criteria.
    """
    if request.criteria is not None:
        criteria, text = read_criteria(request.criteria)
        registration = newest_registration(log, criteria_sha256(text))
    elif (registration := newest_registration(log)) is not None:
        text = registration["criteria"]
        criteria = parse_criteria(text)
    else:
        text = default_criteria(request.task or "her2-4way")
        criteria = parse_criteria(text)
    if request.task not in (None, criteria.task):
        what = f"the criteria are about {criteria.task}, not about {request.task}"
        raise InputError(what, request.criteria, f"give criteria for {request.task} with --criteria")
    return criteria, text, registration


def _registration_sentences(
    log: list[Entry],
    registration: Entry | None,
    request: ValidationRequest,
    data: ReportData,
    comparison: Comparison,
) -> tuple[list[str], bool]:
    """Return what is known of when the criteria were written down, the main sentence first; and whether before."""
    if registration is None and request.criteria is None:
        return ["No criteria were registered: the default criteria of her2batch apply."], False
    if registration is None:
        return ["The criteria were not registered before the figures were seen."], False
    time, earlier = registration["time"], comparisons_before(log, registration)
    if earlier:
        main = (
            f"The criteria were registered at {time}, after the figures had been seen: predictions of these slides "
            f"were compared with labels at {earlier[0]['time']}."
        )
    else:
        main = f"The criteria were registered at {time}, before predictions and labels were first compared here."
    sentences = [main, f"Checksum of the criteria: {registration['criteria_sha256']}."]
    if registration["labels_in_cohort"]:
        sentences.append(
            "The cohort had labels at that time, so that its report could show the agreement before the registration."
        )
    return [*sentences, *_slide_sentences(registration, data, comparison)], not earlier


def _slide_sentences(registration: Entry, data: ReportData, comparison: Comparison) -> list[str]:
    """Return how the compared slides differ from the registered ones."""
    registered = set(registration["slides"])
    digests = {slide_id: slide_digests([row])[0] for slide_id, row in data.rows.items() if row["status"] == "done"}
    compared = {digests[one.slide_id] for one in comparison.slides if one.slide_id in digests}
    excluded = {digests[row["slide_id"]] for row in comparison.excluded if row["slide_id"] in digests}
    gone, unlabelled = registered - set(digests.values()), registered - compared - excluded
    sentences = [f"{len(registered & compared)} of {len(registered)} registered slides are compared."]
    if added := len(compared - registered):
        sentences.append(f"{added} compared slides were not registered: they came to the cohort later.")
    if gone:
        sentences.append(f"{len(gone)} registered slides are no longer in the cohort.")
    if without := len(unlabelled - gone):
        sentences.append(f"{without} registered slides have no label.")
    return sentences


def _log_comparison(cohort: Cohort, data: ReportData, comparison: Comparison, criteria: str, labels_sha256: str) -> str:
    """Write the comparison to the log and return the checksum of its newest entry."""
    content = {
        "criteria_sha256": criteria,
        "labels_sha256": labels_sha256,
        **comparison.choice._asdict(),
        "slides": slide_digests(data.rows[one.slide_id] for one in comparison.slides),
    }
    return str(append_entry(cohort, "compared", content)["sha256"])


def _as_json(
    measures: Measures, verdicts: list[Verdict], facts: ValidationFacts, criteria: str, registration: Entry | None
) -> dict[str, Any]:
    comparison = measures.comparison
    classes = {name: measures.class_agreement(name) for name in comparison.classes}
    return {
        "format": FORMAT,
        "created": facts.created,
        "conclusion": conclusion(verdicts),
        "verdicts": [verdict.as_json for verdict in verdicts],
        "criteria": criteria,
        "criteria_sha256": criteria_sha256(criteria),
        "registered": None if registration is None else registration["time"],
        "registered_before": facts.registered_before,
        "registration": list(facts.registration),
        "task": comparison.choice.task,
        "method": comparison.choice.method,
        "agreement": measures.agreement.as_json,
        "kappa": measures.kappa.as_json,
        "results": measures.results.as_json,
        "not_for_review": measures.unattended_agreement.as_json,
        "cuts": {
            cut: {
                "positive": measures.positive_agreement(cut).as_json,
                "negative": measures.negative_agreement(cut).as_json,
            }
            for cut in comparison.classes[1:]
        },
        "classes": {name: {"positive": own.as_json, "negative": not_.as_json} for name, (own, not_) in classes.items()},
        "repeated_scans": {**measures.repeated_scans.as_json, "score_sd": measures.score_sd},
        "slides_of_patient": measures.slides_of_patient.as_json,
        **{
            f"{by}s": {
                name: {"agreement": own.agreement.as_json, "kappa": own.kappa.as_json}
                for name, own in measures.parts(by).items()
            }
            for by in ("site", "scanner")
        },
        "readers": [found.as_json for found in facts.readers],
        "discordant": [
            {"slide_id": one.slide_id, "truth": one.truth, "predicted": one.predicted, "site": one.site,
             "scanner": one.scanner, "review": one.prediction["review"]}
            for one in comparison.discordant
        ],
        "excluded": [{name: row[name] for name in ("slide_id", "reason", "words")} for row in comparison.excluded],
        "fingerprint": dict(facts.fingerprint),
        "labels": dict(facts.labels),
        "log_sha256": facts.log_head,
    }  # fmt: skip


# -- does a report still hold? -----------------------------------------------------------------------------------


def void_reasons(report: Path, cohort: Cohort, bundle: Path | None = None, labels: Path | None = None) -> list[str]:
    """Return why a validation report no longer holds, a sentence each; none for a valid one.

    report: its JSON file.  bundle: where the bundle is now.  labels: the label sheet, to compare it too.
    Raises InputError for a file that is no validation report, StoreError without a cohort.
    """
    cohort.check()
    content = _read_report(report)
    reasons = []
    if content["sha256"] != content_sha256(content):
        reasons.append("the JSON file of the report was changed")
    html = report.with_name(str(content["html"]["name"]))
    if html.exists() and file_sha256(html) != content["html"]["sha256"]:
        reasons.append("the HTML file of the report was changed")
    recorded = content["fingerprint"]
    try:
        now = take_fingerprint(cohort, recorded["tables"], recorded["predictions"], bundle)
        reasons += find_differences(recorded, now)
    except (KeyError, TypeError, AttributeError) as error:
        raise _no_report(report, error) from error
    if bundle is not None and recorded["bundle"] is None:
        reasons.append("the report does not record the bundle: it was made without --bundle")
    if labels is not None and file_sha256(labels) != content["labels"]["sha256"]:
        reasons.append("the label sheet differs from the one of the report")
    return [*reasons, *_log_reasons(cohort, content["log_sha256"])]


def _log_reasons(cohort: Cohort, noted: str) -> list[str]:
    """Return why the validation log no longer shows the comparison of a report."""
    try:
        known = {FIRST_HASH, *(entry["sha256"] for entry in read_log(cohort))}
    except StoreError as error:
        return [f"the validation log was changed: {Path(str(error.path)).name} {error.message}"]
    return [] if noted in known else ["the validation log no longer has the entry of this report"]


def _read_report(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        needed = {"format", "sha256", "fingerprint", "html", "labels", "log_sha256"}
        if not isinstance(content, dict) or not needed <= content.keys():
            raise ValueError("parts are missing")
    except (OSError, ValueError) as error:
        raise _no_report(path, error) from error
    if content["format"] != FORMAT:
        what = f"has format {content['format']}; this her2batch reads format {FORMAT}"
        raise InputError(what, path, "check it with the version that wrote it")
    return dict(content)


def _no_report(path: Path, error: Exception) -> InputError:
    what = f"is no validation report ({type(error).__name__})"
    return InputError(what, path, "name the JSON file beside the HTML file of the report")
