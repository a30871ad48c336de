"""Tests of outcome counts: their sum and their text, for every summary that has them."""

from dataclasses import replace
from pathlib import Path

import pytest

from her2batch.nightly.summary import NightSummary
from her2batch.runtime.ingest import IngestSummary
from her2batch.store.audit import CohortStatus
from her2batch.store.outcome_counts import OUTCOMES, OutcomeCounts

COUNTS = OutcomeCounts(seen=15, done=9, failed=1, deferred=2, duplicate=3, ignored=0)


def test_every_file_has_one_outcome() -> None:
    assert COUNTS.adds_up
    assert COUNTS.equation == "seen 15 = 9 done + 1 failed + 2 deferred + 3 duplicate + 0 ignored"


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_missing_file_shows(outcome: str) -> None:
    counts = replace(COUNTS, **{outcome: getattr(COUNTS, outcome) + 1})
    assert not counts.adds_up
    assert "seen 15 ≠ " in counts.equation


@pytest.mark.parametrize("summary", [
    CohortStatus(15, 9, 1, 2, 3, 0), IngestSummary(Path("c"), 15, 9, 1, 2, 3, 0),
    NightSummary("n", "s", seen=15, done=9, failed=1, deferred=2, duplicate=3, ignored=0),
])  # fmt: skip
def test_all_summaries_count_alike(summary: CohortStatus | IngestSummary | NightSummary) -> None:
    assert OutcomeCounts.of(summary) == COUNTS
    assert summary.adds_up
    summary.ignored += 1
    assert not summary.adds_up
