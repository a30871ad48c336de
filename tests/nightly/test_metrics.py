"""Metrics of a night: the text format of Prometheus, replaced in one step."""

import re
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.nightly.metrics import GAUGES, check_textfile, textfile, write_textfile
from her2batch.nightly.summary import NightSummary

NIGHT = NightSummary(
    "20260601-190000", "2026-06-01T19:00:00+00:00", "2026-06-02T03:00:00+00:00", seen=3, done=2, failed=1,
    review=1, free_bytes=15_000_000_000, disk_low=True, failures={"truncated": 1},
)  # fmt: skip


def samples(text: str) -> dict[str, float]:
    """Samples of the text format; every metric must have its help and type first."""
    found, declared = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            declared.add(line.split()[2])
        elif not line.startswith("#"):
            match = re.fullmatch(r'([a-z0-9_]+)(\{[a-z]+="[^"]*"\})? (\S+)', line)
            assert match is not None, line
            assert match[1] in declared
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


def test_the_metrics_are_those_of_the_summary() -> None:
    found = samples(textfile(NIGHT))
    assert {f"her2batch_night_{name}" for name in GAUGES} <= found.keys()
    assert found["her2batch_night_review"] == 1
    assert found["her2batch_night_free_bytes"] == 15e9
    assert found["her2batch_night_disk_low"] == found["her2batch_night_ended_well"] == 1
    assert found['her2batch_night_failures{code="truncated"}'] == 1
    assert found["her2batch_night_end_time_seconds"] == 1780369200


def test_a_night_that_ended_early_has_metrics_too() -> None:
    found = samples(textfile(NightSummary("", "2026-06-01T19:00:00+00:00", error="StoreError")))
    assert (found["her2batch_night_ended_well"], found["her2batch_night_exit_code"]) == (0, 2)
    assert "her2batch_night_free_bytes" not in found  # not known: no sample, rather than a wrong one


def test_the_file_is_replaced_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "her2batch.prom"
    path.write_text("old")
    write_textfile(path, NIGHT)
    assert path.read_text() == textfile(NIGHT)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in tmp_path.iterdir()] == ["her2batch.prom"]  # node_exporter would read a second one


def test_a_file_that_node_exporter_would_not_read_is_refused(tmp_path: Path) -> None:
    check_textfile(None)
    check_textfile(str(tmp_path / "a.prom"))
    for path in (tmp_path / "a.txt", tmp_path / "nowhere" / "a.prom"):
        with pytest.raises(InputError, match=r"hook\.textfile"):
            check_textfile(str(path))
