"""The page of a night: values are escaped, no external resources, no results while the report is held back."""

import re
from types import SimpleNamespace

from her2batch.assessment import assess_slide
from her2batch.nightly.drift import DriftTest
from her2batch.nightly.sentinels import SentinelResult
from her2batch.nightly.summary import NightSummary
from her2batch.reports.cases import Case, SlidePrediction
from her2batch.reports.night_page import render_night_page
from her2batch.reports.theme import csp_for_file
from her2batch.reports.worklists import distribution_text
from tests.test_assessment import entry, prediction, slide

EVIL = "<script>alert('x')</script>"


def findings(**more: object) -> dict:
    night = NightSummary(
        "20260601-190000", "2026-06-01T19:00:00+02:00", "2026-06-02T06:00:00+02:00", 39_600.0, seen=4, done=2,
        failed=1, deferred=1, free_bytes=None, deferred_seconds=(60.0, 4000.0),
    )  # fmt: skip
    row = {"slide_id": "S1", "stain": "her2", "status": "done", "error_code": None, "patient_id": EVIL}
    case = Case(
        EVIL, [row], [SlidePrediction("S1", "her2-4way", "membrane", "2+", ("2+", "3+"), True, 2.0)], ["slides differ"]
    )
    predictions = [prediction("2+", reasons=["near-10-percent"]), prediction("negative", "her2-binary")]
    found = assess_slide(slide(patient_id=EVIL), predictions)
    verdict = entry("3+", slide_id="S1", predicted="2+", reviewer=f"Dr. {EVIL}")
    return {
        "night": night, "fresh": [row], "cases": [case], "notes": [EVIL],
        "failures": [{"slide_id": EVIL, "error_code": "truncated", "error": f"/scans/{EVIL}: is cut; copy it again"}],
        "deferred": [{"path": f"/scans/{EVIL}.svs", "reason": "the window ended"}],
        "review": [{"row": row, "found": found}], "verdicts": [verdict],
        "distribution": distribution_text([found]),
        "drift": [DriftTest("north", "dab", 0.3, 0.2, 30, 300, 1e-9, True)],
        "sentinels": SentinelResult(3), **more,
    }  # fmt: skip


def test_page_shows_counts_reviews_drift_and_sentinels() -> None:
    html = render_night_page(findings())
    for words in ("seen 4 = 2 done + 1 failed + 1 deferred", "equivocal, ISH needed",
                  "1 HER2 slide scored: 1 × 2+; 1 needs ISH; 1 to review", "near the guideline", "changed to 3+, Dr. ",
                  "the window ended",
                  "has shifted", "All 3 sentinel slides have the scores of the reference", "1 h 06 min",
                  "free space: unknown"):  # fmt: skip
        assert words in html, words


def test_2_plus_without_ish_has_no_definite_class() -> None:
    html = render_night_page(findings(cases=[], notes=[]))
    assert not re.search(r"\b(negative|positive|low|high)\b", html[html.index("<main>") :])


def test_names_of_files_and_patients_are_escaped() -> None:
    html = render_night_page(findings())
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 7


def test_no_external_resource_is_loaded() -> None:
    html = render_night_page(findings())
    assert f'<meta http-equiv="Content-Security-Policy" content="{csp_for_file()}">' in html
    assert "http" not in html.replace("http-equiv", "")


def test_held_back_night_shows_the_reason_and_no_results() -> None:
    given = findings(sentinels=SentinelResult(3, deviations=["S9, her2-4way · membrane: class 1+ → 2+"]))
    given["night"].held = True
    html = render_night_page(given)
    assert "held back" in html
    assert "class 1+ → 2+" in html
    assert "truncated" in html
    for hidden in ("ISH needed", "slides differ", "has shifted", "1 × 2+"):
        assert hidden not in html


def test_night_without_findings_has_no_sections() -> None:
    empty = {name: [] for name in ("fresh", "cases", "notes", "failures", "deferred", "review", "drift", "verdicts")}
    html = render_night_page(SimpleNamespace(**findings(**empty, sentinels=None)).__dict__)
    assert "<h2>" not in html
