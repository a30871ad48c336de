"""Tests of a nightly run, from the scanner to the report, and of its checks before it starts."""

import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from her2batch.errors import InputError, StoreError
from her2batch.job_settings import NightlySettings, read_settings
from her2batch.nightly import drift, retention
from her2batch.nightly.mail import compose_mail
from her2batch.nightly.messages import headline
from her2batch.nightly.metrics import textfile
from her2batch.nightly.overnight import (
    NightFindings,
    _calibrate_slides,
    _check_settings,
    _score_sentinels,
    _score_slides,
    _send_results,
    _summarize,
    _window_is_open,
    run_overnight,
)
from her2batch.nightly.summary import NightSummary
from her2batch.pipeline.calibration.run import CalibrationRequest, calibrate_cohort
from her2batch.reports.night_page import render_night_page
from her2batch.runtime.ingest import IngestSummary
from her2batch.runtime.ray_session import RaySession
from her2batch.settings import Plan
from her2batch.store.audit import cohort_status, verify_cohort
from her2batch.store.cohort import Cohort, write_row
from her2batch.tasks import IHC_SCORES
from tests.exchange.lis.examples import make_cohort
from tests.exchange.lis.receivers import LisServer, running
from tests.models.bundles import untrained
from tests.nightly.scanner import SLIDES, NightRun, write_toml
from tests.nightly.test_notify import webhook
from tests.pipeline.calibration.laboratories import add_slide, make_laboratory, write_sheet


def log_entries(cohort: Cohort) -> list[dict]:
    return [json.loads(line) for path in sorted(cohort.runs.glob("*.jsonl")) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_night_accounts_for_every_file(quiet_night: NightRun) -> None:
    cohort, night, scanner = quiet_night.cohort, quiet_night.night, quiet_night.scanner
    assert quiet_night.exit_code == night["exit_code"] == 3, quiet_night.stderr
    counts = {name: night[name] for name in ("seen", "done", "failed", "deferred", "duplicate", "ignored")}
    assert counts == {"seen": 12, "done": 10, "failed": 1, "deferred": 0, "duplicate": 1, "ignored": 0}
    assert night["adds_up"]
    assert night["failures"] == {"truncated": 1}
    ended = Counter(one["slide_id"] for one in log_entries(cohort) if one["event"] == "slide")
    first = scanner.replaced.removesuffix(".svs")
    assert ended.pop(first) == 2  # the first file and its replacement
    assert set(ended.values()) == {1}  # no other slide twice; the slow one only once complete
    assert cohort.rows()[first]["bytes"] == quiet_night.slides[SLIDES].stat().st_size
    assert (night["scored"], night["not_scored"]) == (10, 0)
    assert len(list(cohort.root.glob(f"tables/predictions/{quiet_night.bundle}/*.parquet"))) == 10
    assert list(verify_cohort(cohort)) == []
    assert cohort_status(cohort).adds_up
    report = next((cohort.root / "nights").glob("*/report.html")).read_text()
    assert "seen 12 = 10 done + 1 failed" in report
    index = (cohort.root / "nights" / "index.html").read_text()
    assert f'href="{night["night"]}/report.html"' in index
    assert night["written_bytes"] > 0
    words = json.dumps(night)
    assert not any(one["slide_id"] in words for one in cohort.rows().values())  # the summary contains no slide name


@pytest.mark.slow
def test_the_next_night_finds_nothing_new_and_does_not_wait(
    quiet_night: NightRun, tmp_path: Path, ray_session: RaySession
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(quiet_night.cohort.root, cohort)
    path = write_toml(quiet_night.folder, top=f"{quiet_night.top}\nkeep_nights = 1", cohort=str(cohort))
    lines: list[str] = []
    run_overnight(read_settings(path, NightlySettings), on_summary=lines.append)
    night = json.loads(lines[0])
    assert (night["seen"], night["done"], night["fresh"], night["scored"]) == (12, 10, 0, 0)
    assert {one.name for one in (cohort / "nights").iterdir()} == {night["night"], "index.html"}


@pytest.mark.slow
def test_a_run_can_be_followed_afterwards(quiet_night: NightRun) -> None:
    follow = [sys.executable, "-m", "her2batch.cli", "status", str(quiet_night.cohort.root), "--follow"]
    run = subprocess.run(follow, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0
    lines = run.stderr.splitlines()
    assert "started on" in lines[0]
    assert any("failed, truncated" in line for line in lines)
    assert any("of 11 slides" in line and " MB of " in line for line in lines)
    assert lines[-1].endswith("ended")


def test_a_night_with_a_changed_plan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    cohort = Cohort(tmp_path / "cohort")
    cohort.create(Plan(mpp=1.0))

    def files() -> list[Path]:
        """Files of the cohort, without the summary of the night."""
        return [path for path in cohort.root.rglob("*") if path.is_file() and cohort.nights not in path.parents]

    row = {"slide_id": "S1", "status": "done", "mpp_source": "file", "plan_id": Plan(mpp=1.0).id, "files": []}
    write_row(cohort, row)
    before = {path: path.read_bytes() for path in files()}
    summaries: list[str] = []
    settings = read_settings(write_toml(tmp_path, plan="mpp = 0.25", window='until = "00:00"'), NightlySettings)
    with pytest.raises(InputError, match=r"mpp 1\.0 → 0\.25.*1 finished slide .*ingest .* --mpp 0\.25 --replan"):
        run_overnight(settings, on_summary=summaries.append)
    assert json.loads(summaries[0])["error"] == "PlanChangedError"
    assert {path: path.read_bytes() for path in files()} == before
    same = _check_settings(read_settings(write_toml(tmp_path, plan="tile = 224"), NightlySettings))
    assert same.plan == Plan(mpp=1.0)  # what the file does not state is as stored


def test_settings_are_checked_before_waiting(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for more, words in (
        ({"top": 'colour = "red"'}, "colour"), ({"window": 'until = "6am"'}, "window.until: give a local time of day"),
        ({"top": 'bundle = "nowhere"'}, "bundle"), ({"top": 'labels = "nowhere.csv"'}, "labels"),
        ({"top": 'calibration = "nowhere.toml"'}, "calibration: there is no such file"),
        ({"sentinels": 'folder = "nowhere"'}, "sentinels.folder"), ({"hook": 'webhook = "ftp://x"'}, "hook.webhook"),
        ({"drift": 'site = "("'}, "drift.site"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words.replace(".", r"\.")):
            run_overnight(read_settings(write_toml(tmp_path, **more), NightlySettings))
    (tmp_path / "odd.toml").write_text("x = [")
    with pytest.raises(InputError, match="not valid TOML"):
        read_settings(tmp_path / "odd.toml", NightlySettings)
    with pytest.raises(InputError, match="can't be read"):
        read_settings(tmp_path / "none.toml", NightlySettings)


@pytest.mark.slow
def test_a_failed_night_sends_its_summary(tmp_path: Path) -> None:
    """The folder of scans is not mounted; then another run holds the cohort's lock."""
    posted: list[dict] = []
    with webhook(posted) as address:
        path = write_toml(tmp_path, hook=f'webhook = "{address}"', resources="workers = 0")
        lines: list[str] = []
        with pytest.raises(InputError, match="no such folder"):
            run_overnight(read_settings(path, NightlySettings), on_summary=lines.append)
        (tmp_path / "scans").mkdir()
        cohort = Cohort(tmp_path / "cohort")
        cohort.create(Plan())
        with cohort.lock(), pytest.raises(StoreError, match="is in use"):
            run_overnight(read_settings(path, NightlySettings), on_summary=lines.append)
    assert [one["error"] for one in posted] == ["InputError", "StoreError"]
    assert [one["exit_code"] for one in posted] == [2, 2]
    assert "mount the share" in posted[0]["reason"]
    assert "Another run holds the cohort" in posted[1]["reason"]
    index = (cohort.nights / "index.html").read_text()
    assert "Another run holds the cohort" in index  # a night that ended early is in the list too, without a report
    assert "href=" not in index
    assert [json.loads(one) for one in lines] == posted
    assert str(tmp_path) not in "".join(lines)


def test_a_stopped_night_skips_drift_and_retention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drift reads two tables of every slide of two months, which takes longer than the ten seconds of a stop."""
    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    for module, name in ((drift, "detect_drift"), (retention, "retire_pyramids")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("a stopped night continued"))
    found = NightFindings(NightSummary("n", "t"))
    settings = NightlySettings(scans="s", cohort="c")
    _summarize(settings, cohort, IngestSummary(cohort.root, stopped=True), found, datetime.now().astimezone())
    assert found.night.exit_code == 130


@pytest.mark.parametrize(
    ("at", "until", "is_open"),
    [("18:59", "06:00", False), ("19:00", "06:00", True), ("23:00", "06:00", True), ("05:59", "06:00", True),
     ("06:01", "06:00", False), ("20:00", None, True), ("12:00", None, False)],
)  # fmt: skip
def test_a_window_spans_midnight(at: str, until: str | None, is_open: bool) -> None:
    window = {} if until is None else {"window": {"until": until}}
    settings = NightlySettings(scans="s", cohort="c", start="19:00", **window)
    moment = datetime.fromisoformat(f"2026-06-01T{at}:30").astimezone()
    assert _window_is_open(settings, moment) == is_open


def test_a_bundle_that_applies_to_no_slide_is_a_note_in_the_report(tmp_path: Path) -> None:
    bundle, cohort = untrained(tmp_path / "bundle", "er"), Cohort(tmp_path / "cohort")
    cohort.create(Plan())
    write_row(cohort, {"slide_id": "a", "stain": "ihc", "status": "done", "flags": [], "files": []})
    settings = NightlySettings(scans=str(tmp_path), cohort=str(cohort.root), bundle=str(bundle.path))
    night, notes = NightSummary("n", "t"), []
    _score_slides(settings, SimpleNamespace(stopped=threading.Event()), night, notes)
    assert (night.scored, night.exit_code) == (0, 0)
    assert "no task of the bundle (er) applies to a slide of this cohort (1 of an unknown marker)" in notes[0]
    assert not cohort.table(f"predictions/{bundle.id}", "a").exists()


def test_a_night_calibrates_the_slides_that_are_new_to_its_calibration(tmp_path: Path) -> None:
    cohort, labels = make_laboratory(tmp_path / "cohort", dict.fromkeys(IHC_SCORES, 2))
    path, sheet = tmp_path / "c.toml", write_sheet(tmp_path / "labels.csv", labels)
    source = f"predictions/{calibrate_cohort(CalibrationRequest(cohort.root, path, sheet)).calibration.id}"
    settings = NightlySettings(scans=str(tmp_path), cohort=str(cohort.root), calibration=str(path))
    notes: list[str] = []
    _calibrate_slides(settings, cohort, (), NightSummary("n", "t"), notes)
    assert all(cohort.read(source, slide).num_rows for slide in labels)
    made = {slide: cohort.table(source, slide).stat().st_mtime_ns for slide in labels}
    add_slide(cohort, "new-1", "1+", np.random.default_rng(1))
    night = NightSummary("n", "t")
    _calibrate_slides(settings, cohort, {"0x000-1"}, night, notes)
    assert cohort.read(source, "new-1").num_rows
    again = {slide for slide in labels if cohort.table(source, slide).stat().st_mtime_ns != made[slide]}
    assert again == {"0x000-1"}  # its label has changed
    assert notes == []
    assert (f"predictions/{night.calibration}", night.calibrated, night.outside_calibration) == (source, 2, 0)


def test_a_night_counts_and_names_what_its_calibration_could_not_do(tmp_path: Path) -> None:
    """One slide of another scanner, one beyond the range of the counterstain, and one whose tables are damaged."""
    cohort, labels = make_laboratory(tmp_path / "cohort", dict.fromkeys(IHC_SCORES, 2))
    path, sheet = tmp_path / "c.toml", write_sheet(tmp_path / "labels.csv", labels)
    calibrate_cohort(CalibrationRequest(cohort.root, path, sheet))
    add_slide(cohort, "dark-1", "1+", np.random.default_rng(1), counterstain=0.9)
    add_slide(cohort, "scanner-1", "1+", np.random.default_rng(1), format="philips")
    cohort.table("membrane", "0x000-1").write_bytes(b"damaged")
    night, notes = NightSummary("n", "2026-06-01T19:00:00"), []
    settings = NightlySettings(
        scans=str(tmp_path), cohort=str(cohort.root), calibration=str(path), hook={"mail_to": ["a@b"]}
    )
    _calibrate_slides(settings, cohort, (), night, notes)
    assert (night.calibrated, night.not_calibrated, night.outside_calibration, night.exit_code) == (9, 1, 2, 3)
    assert night.outside_causes == {"calibration-drift": 1, "calibration-scanner": 1}
    mail = compose_mail(settings.hook, night)
    assert mail["Subject"] == "her2batch: 0 to look at, 1 failed, 2 outside the calibration (night of 1 June 2026)"
    words = mail.get_body(("plain",)).get_content()
    assert f"1 slide without the calibration {night.calibration}: its counterstain lies outside the range" in words
    assert "9 with the calibration" in words
    assert "dark-1" not in words
    assert any("0x000-1" in note for note in notes)  # the report may name slides
    assert "her2batch_night_outside_calibration 2" in textfile(night)
    assert f"{night.calibration}: 9 slides predicted" in render_night_page(vars(NightFindings(night)))


def test_a_calibration_of_another_stain_is_a_note_in_the_report(tmp_path: Path) -> None:
    known, labels = make_laboratory(tmp_path / "known", dict.fromkeys(IHC_SCORES, 1))
    path, sheet = tmp_path / "c.toml", write_sheet(tmp_path / "labels.csv", labels)
    calibrate_cohort(CalibrationRequest(known.root, path, sheet))
    cohort = Cohort(tmp_path / "er")
    cohort.create(Plan())
    add_slide(cohort, "a-1", "1+", np.random.default_rng(0), stain="er")
    notes: list[str] = []
    settings = NightlySettings(scans=str(tmp_path), cohort=str(cohort.root), calibration=str(path))
    night = NightSummary("n", "t")
    _calibrate_slides(settings, cohort, (), night, notes)
    assert "is for slides stained for her2; the cohort has er" in notes[0]
    assert (night.calibrations_failed, night.calibration, night.exit_code) == (1, None, 0)
    assert headline(night) == "0 to look at, calibration not used"


def test_a_night_warns_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the summary, the report and the subject of the mail."""
    from her2batch.nightly import overnight

    cohort = Cohort(tmp_path / "c")
    cohort.create(Plan())
    monkeypatch.setattr(overnight, "disk_usage", lambda *_: (10_000_000_000, 15_000_000_000))
    for limit, low in ((20, True), (10, False), (0, False)):
        found = NightFindings(NightSummary("n", "2026-06-01T19:00:00", "2026-06-01T20:00:00"))
        settings = NightlySettings(scans="s", cohort="c", disk={"warn_gigabytes": limit}, hook={"mail_to": ["a@b"]})
        _summarize(settings, cohort, IngestSummary(cohort.root), found, datetime.now().astimezone())
        assert found.night.disk_low is low
        assert ("less than the limit" in render_night_page(vars(found))) == low
        assert ("disk nearly full" in compose_mail(settings.hook, found.night)["Subject"]) == low


@pytest.mark.parametrize("names", [(), ("readme.txt",)])
def test_sentinels_that_are_gone_hold_the_report_back_and_do_not_end_the_night(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "sentinels").mkdir()
    for name in names:
        (tmp_path / "sentinels" / name).write_text("no slide")
    settings = NightlySettings(scans="s", cohort="c", sentinels={"folder": str(tmp_path / "sentinels")})
    result = _score_sentinels(settings, Cohort(tmp_path / "c"), SimpleNamespace(), lambda _: None)
    assert result is not None
    assert result.held


class TestSend:
    """New results go to the laboratory information system at the end of a night."""

    @staticmethod
    def settings(tmp_path: Path, address: str) -> NightlySettings:
        sheet = tmp_path / "identities.csv"
        sheet.write_text("slide_id,patient_id,accession\nS000,1,A1\nS001,2,A2\n")
        send = {"to": address, "identities": str(sheet)}
        return NightlySettings(scans=str(tmp_path), cohort=str(tmp_path / "c"), send=send)

    def test_results_are_sent_once(self, tmp_path: Path) -> None:
        cohort, findings = make_cohort(tmp_path / "c", 2), NightFindings(NightSummary("n", ""))
        with running(LisServer()) as lis:
            for _ in range(2):
                _send_results(self.settings(tmp_path, lis.address), cohort, findings)
        assert lis.tries == 2
        assert (findings.night.sent, findings.night.not_sent, findings.night.exit_code) == (0, 0, 0)

    @pytest.mark.parametrize("state", ["held", "stopped"])
    def test_a_night_that_is_held_back_or_stopped_sends_nothing(self, tmp_path: Path, state: str) -> None:
        cohort, findings = make_cohort(tmp_path / "c", 2), NightFindings(NightSummary("n", "", **{state: True}))
        with running(LisServer()) as lis:
            _send_results(self.settings(tmp_path, lis.address), cohort, findings)
        assert lis.tries == 0

    def test_what_is_not_taken_is_noted_and_does_not_end_the_night(self, tmp_path: Path) -> None:
        cohort, findings = make_cohort(tmp_path / "c", 3), NightFindings(NightSummary("n", ""))
        with running(LisServer(("reject",))) as lis:
            _send_results(self.settings(tmp_path, lis.address), cohort, findings)
        assert (findings.night.not_sent, findings.night.exit_code) == (3, 3)
        assert "S000 rejected by the receiver: AR no such patient" in findings.notes
        assert "1 without identity, not sent: S002" in findings.notes

    def test_a_sheet_that_cannot_be_used_is_found_before_the_night(self, tmp_path: Path) -> None:
        settings = self.settings(tmp_path, "mllp://127.0.0.1:9")
        (tmp_path / "identities.csv").unlink()
        with pytest.raises(InputError, match=r"send\.identities"):
            _check_settings(settings)
