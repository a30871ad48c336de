"""The page of all nights: the newest first, with alarms in words; a damaged summary does not hide the others."""

import re
from pathlib import Path

from her2batch.nightly.nights_index import INDEX, read_summaries, write_nights_index
from her2batch.nightly.summary import NightSummary
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort


def cohort_with_nights(folder: Path) -> Cohort:
    cohort = Cohort(folder / "cohort")
    cohort.create(Plan())
    nights = {
        "20260601-190000": NightSummary("20260601-190000", "2026-06-01T19:00:00+02:00", seen=9, done=9, review=3),
        "20260602-190000": NightSummary("20260602-190000", "2026-06-02T19:00:00+02:00", seen=9, done=7, failed=2,
                                        held=True, alarms=2, disk_low=True, free_bytes=12_000_000_000),
    }  # fmt: skip
    for name, night in nights.items():
        (cohort.nights / name).mkdir(parents=True)
        (cohort.nights / name / "summary.json").write_text(night.to_json())
        (cohort.nights / name / "report.html").touch()
    (cohort.nights / "20260603-190000").mkdir()
    (cohort.nights / "20260603-190000" / "summary.json").write_text("{")
    return cohort


def test_nights_have_their_counts_and_alarms(tmp_path: Path) -> None:
    cohort = cohort_with_nights(tmp_path)
    write_nights_index(cohort)
    html = (cohort.nights / INDEX).read_text()
    rows = html.split("<tr>")[2:]
    assert ["20260603" in rows[0], "2026-06-02 19:00" in rows[1], "2026-06-01 19:00" in rows[2]] == [True] * 3
    assert "its summary cannot be read" in rows[0]
    assert "results held back, 2 drift alarms, disk nearly full" in rows[1]
    assert "none" in rows[2]
    assert 'href="20260602-190000/report.html"' in rows[1]
    assert "Content-Security-Policy" in html
    heads = re.findall(r"<th[^>]*>(.*?)</th>", html)
    assert heads[:4] == ["night", "to look at", "failed", "alarms"]  # in view on a telephone
    assert {row.count("<td>") for row in rows} == {len(heads)}


def test_a_summary_of_an_older_version_lacks_fields(tmp_path: Path) -> None:
    cohort = cohort_with_nights(tmp_path)
    (cohort.nights / "20260601-190000" / "summary.json").write_text('{"night": "x", "seen": 4, "done": 4}')
    assert [one.get("seen") for one in read_summaries(cohort)] == [None, 9, 4]
    assert read_summaries(cohort)[2]["disk_low"] is False
