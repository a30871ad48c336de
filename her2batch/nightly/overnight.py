"""The nightly run: ingest new slides, score them with the bundle, check for drift, write a report, send a summary.

One settings file controls the run (`job_settings.NightlySettings`). The next night continues an interrupted one: a
slide that has a row is neither ingested nor scored again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from her2batch.errors import Her2BatchError, InputError
from her2batch.exchange.lis.identities import identities_for
from her2batch.exchange.lis.outbox import send_lines, send_results
from her2batch.exchange.lis.transport import parse_receiver
from her2batch.files.atomic import atomic_write
from her2batch.files.locations import remove_tree, to_location
from her2batch.job_settings import NightlySettings
from her2batch.models.bundle import check_bundle_fits, read_bundle
from her2batch.models.predictor import BundlePredictor
from her2batch.nightly import drift, notify, retention, sentinels
from her2batch.nightly.messages import calibration_sentences, explain_error
from her2batch.nightly.nights_index import write_nights_index
from her2batch.nightly.summary import INTERNAL_ERROR, NightSummary, count_error_codes, count_results, disk_usage
from her2batch.pipeline.calibration.apply import load_calibration
from her2batch.pipeline.calibration.run import calibrate_slides
from her2batch.pipeline.growth.added_encoders import proven_plan
from her2batch.pipeline.growth.ingest_summary import IngestSummary
from her2batch.pipeline.queue import local_now, next_occurrence
from her2batch.pipeline.resume.plan_change import PlanChangedError, option_with_value, settle_plan
from her2batch.reports import cases
from her2batch.reports.controls.control_trend import NightControls, night_controls
from her2batch.reports.night_page import render_night_page
from her2batch.reports.report_data import assess_slides
from her2batch.reports.worklists import distribution_text
from her2batch.runtime.ingest import IngestRequest, ProgressCallback, ingest
from her2batch.runtime.ray_session import RaySession, connect, stop_on_signals
from her2batch.runtime.score import NoTaskAppliesError, score
from her2batch.settings import REGION_SETTINGS, Plan
from her2batch.slides.discover import discover_slides
from her2batch.store.cohort import Cohort, Row
from her2batch.store.outcome_counts import OUTCOMES

LineCallback = Callable[[str], None]
"""Called with one line of text."""


@dataclass
class NightFindings:
    """The content of a night's report."""

    night: NightSummary
    fresh: list[Row] = field(default_factory=list)
    failures: list[Row] = field(default_factory=list)
    deferred: list[Row] = field(default_factory=list)
    review: list[Row] = field(default_factory=list)  # row and assessment (`found`) of each slide, in order of work
    verdicts: list[Mapping[str, Any]] = field(default_factory=list)
    controls: NightControls = field(default_factory=NightControls)
    distribution: str = ""
    cases: list[cases.Case] = field(default_factory=list)
    drift: list[drift.DriftTest] = field(default_factory=list)
    sentinels: sentinels.SentinelResult | None = None
    notes: list[str] = field(default_factory=list)


def run_overnight(
    settings: NightlySettings,
    on_progress: ProgressCallback = lambda *_: None,
    on_note: LineCallback = lambda _: None,
    on_summary: LineCallback = lambda _: None,
) -> NightSummary:
    """Do one nightly run, from waiting for its start to its report.

    on_summary: called once with the summary as a line of JSON, also before an error is raised.  Raises InputError,
    StoreError, WeightsError for errors that stop the whole run.
    """
    notify.check_hook(settings.hook)
    findings = NightFindings(NightSummary("", local_now().isoformat(timespec="seconds")))
    try:
        _run_night(settings, findings, on_progress, on_note)
    except Exception as error:
        findings.night.error = type(error).__name__ if isinstance(error, Her2BatchError) else INTERNAL_ERROR
        findings.night.reason = explain_error(error, settings)
        _keep_failed_night(settings, findings.night)
        notify.send_summary(settings.hook, findings.night)
        on_summary(findings.night.to_json())
        raise
    on_summary(findings.night.to_json())
    return findings.night


def _run_night(
    settings: NightlySettings, findings: NightFindings, on_progress: ProgressCallback, on_note: LineCallback
) -> None:
    """Do the steps of a nightly run and collect their findings."""
    settings = _check_settings(settings)
    stopped, night = threading.Event(), findings.night
    with stop_on_signals(stopped):
        if not _wait_for_window(settings, stopped, on_note):
            night.stopped = True
            return
    begin, cohort = local_now(), Cohort(to_location(settings.cohort))
    night.night, night.started = begin.strftime("%Y%m%d-%H%M%S"), begin.isoformat(timespec="seconds")
    with connect(settings.resources) as session:
        findings.sentinels = _score_sentinels(settings, cohort, session, on_note)
        summary = _ingest_new_slides(settings, session, on_progress)
        findings.notes += summary.labels.warnings if summary.labels is not None else []
        _score_slides(settings, session, night, findings.notes)
    if not (night.stopped or summary.stopped):  # the next night calibrates what this one leaves
        _calibrate_slides(settings, cohort, summary.relabelled, night, findings.notes)
    _summarize(settings, cohort, summary, findings, begin)
    _send_results(settings, cohort, findings)
    night.ended = local_now().isoformat(timespec="seconds")
    night.seconds = (local_now() - begin).total_seconds()
    findings.notes += notify.send_summary(settings.hook, night)
    _write_report(settings, cohort, findings)
    for note in notify.call_ping(settings.hook, night):
        on_note(note)


def _check_settings(settings: NightlySettings) -> NightlySettings:
    """Check everything that the settings name, before waiting for the start. Raises InputError, StoreError.

    Returns the settings with the whole plan: a setting that the file does not state is that of the cohort.
    """
    if not Path(settings.scans).exists():
        raise InputError(
            "scans: there is no such folder", settings.scans, "mount the folder, or correct the settings file"
        )
    drift.site_reader(settings.drift.site)
    if settings.send is not None:
        parse_receiver(settings.send.to)
        if not Path(settings.send.identities).is_file():
            raise InputError("send.identities: there is no such file", settings.send.identities, "correct the setting")
    for name in ("labels", "weights", "pseudonymize", "bundle", "calibration"):
        path = getattr(settings, name)
        if path is not None and not Path(path).exists():
            raise InputError(f"{name}: there is no such file or folder", path, "correct the settings file")
    settings = settings.model_copy(update={"plan": _settle_plan(settings)})
    if settings.bundle is not None:
        bundle = read_bundle(Path(settings.bundle))
        check_bundle_fits(bundle, settings.plan)
        BundlePredictor(bundle)  # a head that cannot be loaded is an error now, not at six in the morning
    if settings.calibration is not None:
        load_calibration(Path(settings.calibration), settings.plan)
    if settings.sentinels is not None and not Path(settings.sentinels.folder).is_dir():
        raise InputError(
            "sentinels.folder: there is no such folder", settings.sentinels.folder, "create it, or remove the setting"
        )
    return settings


def _settle_plan(settings: NightlySettings) -> Plan:
    """The plan of the night. Raises PlanChangedError if it would replace the results of finished slides."""
    cohort = Cohort(to_location(settings.cohort))
    try:
        return settle_plan(cohort, settings.plan, exact=True)
    except PlanChangedError as error:
        options = " ".join(option_with_value(name, value) for name, (_, value) in error.changes.items())
        command = f"her2batch ingest {settings.scans} --out {settings.cohort} {options} --replan"
        remedy = f"correct [plan] in the settings file, or compute them again, which the nights go on with: {command}"
        raise PlanChangedError(cohort, error.changes, error.slides, remedy) from error


def _wait_for_window(settings: NightlySettings, stopped: threading.Event, on_note: LineCallback) -> bool:
    """Wait until the window opens, if it is not open yet. Returns False when the run was stopped meanwhile."""
    if settings.start is None or _window_is_open(settings, local_now()):
        return True
    start = next_occurrence(settings.start, local_now())
    on_note(f"waiting until {start:%H:%M}")
    while local_now() < start:
        if stopped.wait(min(30.0, max(0.05, (start - local_now()).total_seconds()))):
            return False
    return True


def _window_is_open(settings: NightlySettings, at: datetime) -> bool:
    """Return whether the window is open: from its start to its end, or for half a day if it has no end."""
    assert settings.start is not None
    opens = next_occurrence(settings.start, at)
    if settings.window.until is None:
        return (opens - at).total_seconds() > 12 * 3600
    return next_occurrence(settings.window.until, at) < opens


def _ingest_new_slides(settings: NightlySettings, session: RaySession, on_progress: ProgressCallback) -> IngestSummary:
    """Ingest the scan folder, waiting for files that are still being copied."""
    request = IngestRequest(
        Path(settings.scans),
        to_location(settings.cohort),
        labels=_optional_path(settings.labels),
        weights=_optional_path(settings.weights),
        key=_optional_path(settings.pseudonymize),
        regions=_optional_path(settings.regions),
        controls=settings.controls,
        exact_plan=True,
        columns=settings.columns,
    )
    window = settings.window.model_copy(
        update={"watch": True}
    )  # so that a file that is still being copied is waited for
    return ingest(request, settings.plan, settings.resources, on_progress, window, session)


def _score_slides(settings: NightlySettings, session: RaySession, night: NightSummary, notes: list[str]) -> None:
    """Score every slide that has no predictions of the bundle yet."""
    if settings.bundle is None or session.stopped.is_set():
        night.stopped = session.stopped.is_set()
        return
    cohort = Cohort(to_location(settings.cohort))
    if not any(row["status"] == "done" for row in cohort.rows().values()):
        return
    try:
        scored = score(cohort.root, Path(settings.bundle), settings.resources, session=session)
    except NoTaskAppliesError as error:  # until there are slides of the bundle's stain, the night goes on without
        notes.append(str(error))
        return
    night.scored, night.not_scored, night.stopped = scored.scored, len(scored.failures), scored.stopped
    notes += scored.failures.values()


def _calibrate_slides(
    settings: NightlySettings, cohort: Cohort, relabelled: Collection[str], night: NightSummary, notes: list[str]
) -> None:
    """Predict with the calibration, after the bundle, whose heads may be calibrated too. Older slides are skipped.

    relabelled: slides to predict again, because their labels have changed.
    """
    if settings.calibration is None or not any(row["status"] == "done" for row in cohort.rows().values()):
        return
    try:
        found = calibrate_slides(cohort.root, Path(settings.calibration), again=relabelled)
    except InputError as error:  # until there are slides of the calibration's stain, the night goes on without
        night.calibrations_failed = 1
        notes.append(f"the calibration was not used: {error}")
        return
    night.calibration, night.calibrated, night.not_calibrated = found.id, found.calibrated, len(found.failures)
    night.outside_calibration, night.outside_causes = found.outside, found.causes
    notes += [*calibration_sentences(night), *found.failures.values()]


def _score_sentinels(
    settings: NightlySettings, cohort: Cohort, session: RaySession, on_note: LineCallback
) -> sentinels.SentinelResult | None:
    """Ingest and score the sentinels again and compare them with their reference."""
    if settings.sentinels is None:
        return None
    on_note("scoring the sentinels")
    nested = Cohort(cohort.sentinels)
    remove_tree(nested.root)  # results of the previous night must not count as those of tonight
    cohort.create(proven_plan(cohort, settings.plan))
    key = _optional_path(settings.pseudonymize)
    request = IngestRequest(
        Path(settings.sentinels.folder), nested.root, weights=_optional_path(settings.weights), key=key
    )
    controls = settings.plan.controls
    if controls is not None:
        controls = controls.model_copy(update={"annotations": None})
    without: dict[str, object] = dict.fromkeys(REGION_SETTINGS, ())  # sentinels have no regions
    plan = settings.plan.model_copy(update={**without, "controls": controls})
    if discover_slides(request.scans).slides:  # without any the report is held back; the night's slides are done
        ingest(request, plan, settings.resources, session=session)
    if settings.bundle is not None and any(row["status"] == "done" for row in nested.rows().values()):
        with suppress(NoTaskAppliesError):  # the membrane rule is compared all the same
            score(nested.root, Path(settings.bundle), settings.resources, session=session)
    return sentinels.check_sentinels(nested, cohort.root / "sentinels.json", settings.sentinels, _scoring_ids(settings))


def _scoring_ids(settings: NightlySettings) -> dict[str, str]:
    """Return the ids that determine a score: plan and bundle."""
    bundle = read_bundle(Path(settings.bundle)).id if settings.bundle is not None else "membrane"
    return {"plan": settings.plan.id, "bundle": bundle}


def _summarize(
    settings: NightlySettings, cohort: Cohort, summary: IngestSummary, findings: NightFindings, begin: datetime
) -> None:
    """Fill in counts, lists and checks from the tables on disk."""
    night, rows = findings.night, cohort.rows()
    findings.notes += summary.added.failures.values()
    if summary.unreachable:
        slides = f"{summary.unreachable} slides of the cohort came from it"
        findings.notes.append(f"the scan folder has no slides, but {slides}: is its share mounted?")
    for name in ("seen", *OUTCOMES, "tiles"):
        setattr(night, name, getattr(summary, name))
    night.stopped = night.stopped or summary.stopped
    night.fresh, night.deferred_seconds = len(summary.fresh), summary.left
    night.failures = count_error_codes(summary.failures)
    findings.fresh = [rows[slide_id] for slide_id in summary.fresh if slide_id in rows]
    findings.failures = summary.failures
    findings.deferred = [entry for entry in cohort.read_intake() if entry["outcome"] == "deferred"]
    night.source_bytes = sum(row["bytes"] or 0 for row in findings.fresh)
    findings.cases = cases.find_cases(cohort, summary.fresh)
    assessed = assess_slides(cohort, findings.fresh, findings.notes)
    findings.review = [
        {"row": row, "found": assessed[row["slide_id"]]}
        for row in sorted(findings.fresh, key=lambda row: (*assessed[row["slide_id"]].rank, row["slide_id"]))
        if assessed[row["slide_id"]].review and row["status"] != "failed"
    ]
    findings.verdicts = [verdict for found in assessed.values() if (verdict := found.verdict) is not None]
    findings.distribution = distribution_text(list(assessed.values()))
    night.classes = count_results(assessed.values())
    findings.controls = night_controls(cohort, summary.fresh)
    night.controls_failed = findings.controls.failed
    night.conflicts = sum(bool(case.conflicts) for case in findings.cases)
    night.review = len(findings.review)
    night.held = findings.sentinels is not None and findings.sentinels.held
    if not night.stopped:  # a stopped run must end quickly: the next night does both
        findings.drift = drift.detect_drift(cohort, set(summary.fresh), settings.drift, begin)
        night.alarms = sum(test.alarm for test in findings.drift)
        night.retired = len(retention.retire_pyramids(cohort, settings.retention, local_now()))
    rows = cohort.rows()
    night.store_bytes, night.free_bytes = disk_usage(cohort, rows)
    night.written_bytes = disk_usage(cohort, {row["slide_id"]: row for row in findings.fresh})[0]
    night.disk_low = night.free_bytes is not None and night.free_bytes < settings.disk.warn_gigabytes * 1e9


def _send_results(settings: NightlySettings, cohort: Cohort, findings: NightFindings) -> None:
    """Send new results to the laboratory information system. What it does not take is noted and waits."""
    night = findings.night
    if settings.send is None or night.stopped or night.held:
        return
    receiver = parse_receiver(settings.send.to)
    try:
        known = identities_for(cohort, Path(settings.send.identities), _optional_path(settings.pseudonymize))
        sent = send_results(cohort, receiver, known)
    except (Her2BatchError, OSError) as error:
        night.not_sent = night.done
        findings.notes.append(f"no result was sent to the laboratory information system: {error}")
        return
    night.sent, night.not_sent = sum(map(len, sent.accepted.values())), sent.open_ends
    findings.notes += send_lines(sent, dry_run=False) if sent.open_ends else []


def _write_report(settings: NightlySettings, cohort: Cohort, findings: NightFindings) -> None:
    """Write the files of this night and remove those of the oldest nights."""
    folder = cohort.nights / findings.night.night
    if not cohort.remote:
        folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {
        "summary.json": findings.night.to_json() + "\n",
        "report.html": render_night_page(vars(findings)),
    }
    for name, text in files.items():
        with atomic_write(folder / name) as part:
            part.write_text(text, "utf-8")
    nights = sorted(path for path in cohort.nights.iterdir() if path.is_dir())
    for old in nights[: -settings.keep_nights]:
        remove_tree(old)
    write_nights_index(cohort)


def _keep_failed_night(settings: NightlySettings, night: NightSummary) -> None:
    """Write the summary of a night that ended early, so that the list of nights shows it, where there is a cohort."""
    cohort = Cohort(to_location(settings.cohort))
    with suppress(OSError):  # of the disk, which may be why the night ended
        if cohort.remote or not cohort.settings.is_file():
            return
        started = datetime.fromisoformat(night.started)
        night.night = night.night or started.strftime("%Y%m%d-%H%M%S")
        (cohort.nights / night.night).mkdir(parents=True, exist_ok=True)
        with atomic_write(cohort.nights / night.night / "summary.json") as part:
            part.write_text(night.to_json() + "\n", "utf-8")
        write_nights_index(cohort)


def _optional_path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None
