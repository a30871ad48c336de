"""The nightly job: what is new is ingested, scored with the bundle, checked, summed up, and told.

One file of settings decides it (`settings.NightlySettings`). A night that was cut short goes on in the next: rows are
what counts, and a slide that has one is not done, nor scored, again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from her2batch.errors import Her2BatchError, InputError
from her2batch.files.atomic import atomic_write
from her2batch.files.locations import remove_tree, to_location
from her2batch.models.bundle import check_bundle_fits, read_bundle
from her2batch.models.predictor import BundlePredictor
from her2batch.nightly import drift, notify, retention, sentinels
from her2batch.nightly.summary import INTERNAL_ERROR, NightSummary, count_error_codes, disk_usage
from her2batch.pipeline.queue import next_time, now
from her2batch.reports import cases
from her2batch.reports.night_page import render_night_page
from her2batch.runtime.ingest import IngestRequest, IngestSummary, ingest
from her2batch.runtime.ingest import ProgressCallback as Told
from her2batch.runtime.ray_session import RaySession, connect, stoppable
from her2batch.runtime.score import score
from her2batch.settings import NightlySettings
from her2batch.store.cohort import Cohort, Row
from her2batch.store.outcome_counts import OUTCOMES

LineCallback = Callable[[str], None]
"""Called with a line for whoever watches."""


@dataclass
class NightFindings:
    """What a night's report shows, beside its counts."""

    night: NightSummary
    fresh: list[Row] = field(default_factory=list)
    failures: list[Row] = field(default_factory=list)
    deferred: list[Row] = field(default_factory=list)
    review: list[Row] = field(default_factory=list)
    cases: list[cases.Case] = field(default_factory=list)
    drift: list[drift.DriftTest] = field(default_factory=list)
    sentinels: sentinels.SentinelResult | None = None
    notes: list[str] = field(default_factory=list)


def run_overnight(
    settings: NightlySettings,
    told: Told = lambda *_: None,
    say: LineCallback = lambda _: None,
    line: LineCallback = lambda _: None,
) -> NightSummary:
    """One night, from its start to its report. Raises InputError, StoreError, WeightsError for what stops all of it.

    line: called once with the summary, also before it raises: whoever reads nothing else is told then, too.
    """
    notify.check_hook(settings.hook)
    found = NightFindings(NightSummary("", now().isoformat(timespec="seconds")))
    try:
        _run_night(settings, found, told, say)
    except Exception as error:
        found.night.error = type(error).__name__ if isinstance(error, Her2BatchError) else INTERNAL_ERROR
        notify.send_summary(settings.hook, found.night)
        line(found.night.line())
        raise
    line(found.night.line())
    return found.night


def _run_night(settings: NightlySettings, found: NightFindings, told: Told, say: LineCallback) -> None:
    """The night itself."""
    _check_settings(settings)
    stopped, night = threading.Event(), found.night
    with stoppable(stopped):
        if not _wait_for_window(settings, stopped, say):
            night.stopped = True
            return
    begin, cohort = now(), Cohort(to_location(settings.cohort))
    night.night, night.started = begin.strftime("%Y%m%d-%H%M%S"), begin.isoformat(timespec="seconds")
    with connect(settings.resources) as session:
        found.sentinels = _sentinels(settings, cohort, session, say)
        summary = _ingest(settings, session, told)
        _score(settings, session, night, found.notes)
    _summarize(settings, cohort, summary, found, begin)
    night.ended = now().isoformat(timespec="seconds")
    night.seconds = (now() - begin).total_seconds()
    found.notes += notify.send_summary(settings.hook, night)
    _write_report(settings, cohort, found)


def _check_settings(settings: NightlySettings) -> None:
    """Refuse what can't be used, before anybody waits for it. Raises InputError."""
    if not Path(settings.scans).exists():
        raise InputError("scans: there is no such folder", settings.scans, "mount it, or mend the settings file")
    drift.site_reader(settings.drift.site)
    for name in ("labels", "weights", "pseudonymize", "bundle"):
        path = getattr(settings, name)
        if path is not None and not Path(path).exists():
            raise InputError(f"{name}: there is no such file or folder", path, "mend the settings file")
    if settings.bundle is not None:
        bundle = read_bundle(Path(settings.bundle))
        check_bundle_fits(bundle, settings.plan)
        BundlePredictor(bundle)  # a head that can't be loaded is said now, not at six in the morning
    if settings.sentinels is not None and not Path(settings.sentinels.folder).is_dir():
        raise InputError("sentinels.folder: there is no such folder", settings.sentinels.folder, "make it, or leave it")


def _wait_for_window(settings: NightlySettings, stopped: threading.Event, say: LineCallback) -> bool:
    """Wait until the window opens, if it isn't open already; False: stopped meanwhile."""
    if settings.start is None or _window_is_open(settings, now()):
        return True
    start = next_time(settings.start, now())
    say(f"waits until {start:%H:%M}")
    while now() < start:
        if stopped.wait(min(30.0, max(0.05, (start - now()).total_seconds()))):
            return False
    return True


def _window_is_open(settings: NightlySettings, at: datetime) -> bool:
    """Whether the window is open: from its start, to its end where it has one, else for half a day."""
    assert settings.start is not None
    opens = next_time(settings.start, at)
    if settings.window.until is None:
        return (opens - at).total_seconds() > 12 * 3600
    return next_time(settings.window.until, at) < opens


def _ingest(settings: NightlySettings, session: RaySession, told: Told) -> IngestSummary:
    order = IngestRequest(
        Path(settings.scans), to_location(settings.cohort), None, _path(settings.labels), _path(settings.weights),
        _path(settings.pseudonymize),
    )  # fmt: skip
    window = settings.window.model_copy(update={"watch": True})  # also once: a file that is being copied can wait
    return ingest(order, settings.plan, settings.resources, told, window, session)


def _score(settings: NightlySettings, session: RaySession, night: NightSummary, notes: list[str]) -> None:
    """The bundle's predictions for every slide that has none of it yet."""
    if settings.bundle is None or session.stopped.is_set():
        night.stopped = session.stopped.is_set()
        return
    cohort = Cohort(to_location(settings.cohort))
    if not any(row["status"] == "done" for row in cohort.rows().values()):
        return
    scored = score(cohort.root, Path(settings.bundle), settings.resources, session=session)
    night.scored, night.not_scored, night.stopped = scored.scored, len(scored.failures), scored.stopped
    notes += scored.failures.values()


def _sentinels(
    settings: NightlySettings, cohort: Cohort, session: RaySession, say: LineCallback
) -> sentinels.SentinelResult | None:
    """The sentinels, read and scored anew, against what was kept of them."""
    if settings.sentinels is None:
        return None
    say("scoring the sentinels")
    nested = Cohort(cohort.sentinels)
    remove_tree(nested.root)  # nothing of last night's may be taken for tonight's
    cohort.create(settings.plan)
    key = _path(settings.pseudonymize)
    order = IngestRequest(Path(settings.sentinels.folder), nested.root, weights=_path(settings.weights), key=key)
    ingest(order, settings.plan, settings.resources, session=session)
    if settings.bundle is not None and any(row["status"] == "done" for row in nested.rows().values()):
        score(nested.root, Path(settings.bundle), settings.resources, session=session)
    return sentinels.check_sentinels(nested, cohort.root / "sentinels.json", settings.sentinels, _ids(settings))


def _ids(settings: NightlySettings) -> dict[str, str]:
    """What decides a score: plan and bundle."""
    bundle = read_bundle(Path(settings.bundle)).id if settings.bundle is not None else "membrane"
    return {"plan": settings.plan.id, "bundle": bundle}


def _summarize(
    settings: NightlySettings, cohort: Cohort, summary: IngestSummary, found: NightFindings, begin: datetime
) -> None:
    """Counts, lists and checks, from the tables as they are on the disk."""
    night, rows = found.night, cohort.rows()
    for name in ("seen", *OUTCOMES, "tiles"):
        setattr(night, name, getattr(summary, name))
    night.stopped = night.stopped or summary.stopped
    night.fresh, night.failures, night.deferred_seconds = (
        len(summary.fresh),
        count_error_codes(summary.failures),
        summary.left,
    )
    found.fresh = [rows[one] for one in summary.fresh if one in rows]
    found.failures = summary.failures
    found.deferred = [entry for entry in cohort.read_intake() if entry["outcome"] == "deferred"]
    night.source_bytes = sum(row["bytes"] or 0 for row in found.fresh)
    found.cases = cases.find_cases(cohort, summary.fresh)
    found.review = _review(cohort, found.fresh)
    night.conflicts = sum(bool(case.conflicts) for case in found.cases)
    night.review = len({one["slide_id"] for one in found.review})
    night.held = found.sentinels is not None and found.sentinels.held
    if not night.stopped:  # both take longer than a stop may: the next night does them
        found.drift = drift.detect_drift(cohort, set(summary.fresh), settings.drift, begin)
        night.alarms = sum(one.alarm for one in found.drift)
        night.retired = len(retention.retire_pyramids(cohort, settings.retention, now()))
    night.store_bytes, night.free_bytes = disk_usage(cohort, cohort.rows())


def _review(cohort: Cohort, fresh: list[Row]) -> list[Row]:
    """What a pathologist opens first of a night's slides: a row a slide and method that asks for it, and why."""
    found: dict[tuple[str, str], Row] = {}
    for name in cohort.table_names():
        if not name.startswith("predictions/"):
            continue
        for row in fresh:
            if not cohort.table(name, row["slide_id"]).exists():
                continue
            for one in cohort.read(name, row["slide_id"]).to_pylist():
                if one["review"]:
                    key = (row["slide_id"], one["method"])
                    said = found.setdefault(
                        key, {"slide_id": key[0], "method": key[1], "predictions": [], "reasons": []}
                    )
                    said["predictions"].append(one)
                    said["reasons"] += [why for why in one["reasons"] or () if why not in said["reasons"]]
    return [found[key] for key in sorted(found)]


def _write_report(settings: NightlySettings, cohort: Cohort, found: NightFindings) -> None:
    """Write the night's files, and let go of the oldest nights'."""
    folder = cohort.nights / found.night.night
    if not cohort.remote:
        folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {"summary.json": found.night.line() + "\n", "report.html": render_night_page(vars(found))}
    for name, text in files.items():
        with atomic_write(folder / name) as part:
            part.write_text(text)
    nights = sorted(one for one in cohort.nights.iterdir() if one.is_dir())
    for old in nights[: -settings.keep_nights]:
        remove_tree(old)


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None
