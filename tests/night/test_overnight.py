"""A night in miniature, from the scanner to the report; and what a night refuses before it begins."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from her2batch.errors import InputError
from her2batch.night.overnight import _inside, overnight
from her2batch.settings import Overnight, from_toml
from her2batch.tables.audit import status, verify
from her2batch.tables.store import Cohort
from her2batch.way.supply import now
from tests.conftest import Synthetic
from tests.models.bundles import untrained

SLIDES = 20


class Scanner(threading.Thread):
    """Writes 20 slides over a night: one cut, one slow, one twice, one replaced after it was done."""

    def __init__(self, made: list[Path], scans: Path, cohort: Cohort) -> None:
        super().__init__(daemon=True)
        self.made, self.scans, self.cohort = made, scans, cohort
        self.cut, self.slow, self.twice, self.replaced = made[3].name, made[5].name, made[7].name, made[0].name

    def run(self) -> None:
        slow = threading.Thread(target=self._slowly)
        for k, path in enumerate(self.made[: SLIDES - 1]):
            if path.name == self.slow:
                slow.start()
            elif path.name == self.cut:
                (self.scans / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            else:
                shutil.copy(path, self.scans / f".{path.name}.part")
                (self.scans / f".{path.name}.part").rename(self.scans / path.name)
            time.sleep(0.3)
            if k == 12:
                shutil.copy(self.scans / self.twice, self.scans / f"copy-{self.twice}")  # the twentieth
        while self.replaced.removesuffix(".svs") not in self.cohort.rows():
            time.sleep(0.2)
        shutil.copy(self.made[SLIDES], self.scans / ".new.part")
        (self.scans / ".new.part").rename(self.scans / self.replaced)
        slow.join()

    def _slowly(self) -> None:
        data = next(path for path in self.made if path.name == self.slow).read_bytes()
        with (self.scans / self.slow).open("wb") as file:
            for at in range(0, len(data), len(data) // 40 + 1):
                file.write(data[at : at + len(data) // 40 + 1])
                file.flush()
                time.sleep(0.15)


def write_toml(folder: Path, **more: str) -> Path:
    lines = [f'scans = "{folder / "scans"}"', f'cohort = "{folder / "cohort"}"', *more.pop("top", "").splitlines()]
    for name, body in {"window": "settle = 1.0\nlinger = false", **more}.items():
        lines += [f"[{name}]", *body.splitlines()]
    (folder / "night.toml").write_text("\n".join(lines))
    return folder / "night.toml"


def times_of(cohort: Cohort) -> list[dict]:
    return [row for path in cohort.runs.glob("ingest-*.parquet") for row in pq.read_table(path).to_pylist()]


def journal(cohort: Cohort) -> list[dict]:
    return [json.loads(line) for path in sorted(cohort.runs.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_a_night_in_miniature(synthetic: Synthetic, tmp_path: Path) -> None:
    scans, cohort = tmp_path / "scans", Cohort(tmp_path / "cohort")
    scans.mkdir()
    made = sorted(synthetic.scans.iterdir())
    end = (now() + timedelta(seconds=40)).strftime("%H:%M:%S")
    bundle = untrained(tmp_path / "bundle")
    top = f'labels = "{synthetic.labels}"\nbundle = "{bundle.path}"\nkeep_nights = 1'
    path = write_toml(tmp_path, top=top, window=f'settle = 1.0\nuntil = "{end}"')
    scanner = Scanner(made, scans, cohort)
    scanner.start()
    command = [sys.executable, "-m", "her2batch.cli", "overnight", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=150)
    scanner.join(60)
    night = json.loads(run.stdout)
    assert run.returncode == night["exit_code"] == 3, run.stderr
    counts = {name: night[name] for name in ("seen", "done", "failed", "deferred", "duplicate", "ignored")}
    assert counts == {"seen": 20, "done": 18, "failed": 1, "deferred": 0, "duplicate": 1, "ignored": 0}
    assert night["adds_up"]
    assert night["failures"] == {"truncated": 1}
    ended = Counter(one["slide_id"] for one in journal(cohort) if one["event"] == "slide")
    first = scanner.replaced.removesuffix(".svs")
    assert ended.pop(first) == 2  # what it was, and what it is
    assert set(ended.values()) == {1}  # nothing else was done twice, and the slow one not before it was whole
    assert cohort.rows()[first]["bytes"] == made[SLIDES].stat().st_size
    assert list(verify(cohort)) == []
    assert status(cohort).adds_up
    report = next((cohort.root / "nights").glob("*/report.html")).read_text()
    assert "seen 20 = 18 done + 1 failed" in report
    words = json.dumps(night)
    assert not any(one["slide_id"] in words for one in cohort.rows().values())  # the line names nobody

    assert (night["scored"], night["not_scored"]) == (18, 0)
    assert len(list(cohort.root.glob(f"tables/predictions/{bundle.id}/*.parquet"))) == 18

    write_toml(tmp_path, top=top)  # the next night finds nothing new, and waits for nothing
    again = subprocess.run([*command, "--quiet"], capture_output=True, text=True, timeout=100)
    night = json.loads(again.stdout)
    assert (night["seen"], night["done"], night["fresh"], night["scored"]) == (20, 18, 0, 0)
    assert len(list((cohort.root / "nights").iterdir())) == 1


def test_settings_are_checked_before_anything_waits_for_them(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for more, words in (
        ({"top": 'colour = "red"'}, "colour"), ({"window": 'until = "6am"'}, "window.until"),
        ({"top": 'bundle = "nowhere"'}, "bundle"), ({"top": 'labels = "nowhere.csv"'}, "labels"),
        ({"sentinels": 'folder = "nowhere"'}, "sentinels.folder"), ({"hook": 'webhook = "ftp://x"'}, "hook.webhook"),
        ({"drift": 'site = "("'}, "drift.site"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words.replace(".", r"\.")):
            overnight(from_toml(write_toml(tmp_path, **more), Overnight))
    (tmp_path / "odd.toml").write_text("x = [")
    with pytest.raises(InputError, match="no TOML"):
        from_toml(tmp_path / "odd.toml", Overnight)
    with pytest.raises(InputError, match="can't be read"):
        from_toml(tmp_path / "none.toml", Overnight)


@pytest.mark.parametrize(
    ("at", "until", "open_"),
    [("18:59", "06:00", False), ("19:00", "06:00", True), ("23:00", "06:00", True), ("05:59", "06:00", True),
     ("06:01", "06:00", False), ("20:00", None, True), ("12:00", None, False)],
)  # fmt: skip
def test_a_window_goes_through_midnight(at: str, until: str | None, open_: bool) -> None:
    window = {} if until is None else {"window": {"until": until}}
    settings = Overnight(scans="s", cohort="c", start="19:00", **window)
    moment = datetime.fromisoformat(f"2026-06-01T{at}:30").astimezone()
    assert _inside(settings, moment) == open_
