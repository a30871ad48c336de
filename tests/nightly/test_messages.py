"""Words of a night: every error code, every outcome, and every error that ends a night; none names a slide."""

from pathlib import Path

import pytest

from her2batch.errors import REMEDIES, HeadLost, InputError, StoreError, WeightsError
from her2batch.job_settings import NightlySettings
from her2batch.nightly import messages
from her2batch.nightly.messages import (
    FAILURE_WORDS,
    disk_sentence,
    explain_error,
    failure_sentences,
    failure_text,
    headline,
    went_well,
)
from her2batch.nightly.summary import NightSummary
from her2batch.store.cohort import Cohort


def test_every_error_code_has_words() -> None:
    assert FAILURE_WORDS.keys() == REMEDIES.keys()


def test_failures_are_sentences_the_most_frequent_first() -> None:
    night = NightSummary("n", "t", failures={"gone": 1, "truncated": 3}, not_scored=1)
    assert failure_sentences(night) == [
        "3 slides end too early: the file was not copied completely (truncated).",
        "1 slide disappeared while it was read (gone).",
        "1 slide could not be scored with the bundle.",
    ]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"review": 3, "failed": 2}, "3 to look at, 2 failed"),
        ({"review": 0}, "0 to look at"),
        ({"failed": 1, "not_scored": 1, "deferred": 4}, "0 to look at, 2 failed, 4 deferred"),
        ({"review": 3, "held": True, "alarms": 1}, "results held back, 1 alarm"),
        ({"review": 1, "stopped": True}, "stopped, 1 to look at"),
        ({"error": "StoreError", "review": 3}, "ended with an error"),
        ({"review": 1, "disk_low": True}, "1 to look at, disk nearly full"),
    ],
)
def test_a_night_in_a_few_words(facts: dict, words: str) -> None:
    assert headline(NightSummary("n", "t", **facts)) == words


def test_a_night_ended_well_when_its_results_may_be_used() -> None:
    well = {"seen": 2, "done": 1, "failed": 1}
    assert went_well(NightSummary("n", "t", **well))
    for fact in ({"held": True}, {"stopped": True}, {"error": "InputError"}, {"done": 0}):
        assert not went_well(NightSummary("n", "t", **{**well, **fact}))


def test_an_error_is_explained_by_what_is_wrong_not_by_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = NightlySettings(scans=str(tmp_path / "scans"), cohort=str(tmp_path / "cohort"))
    secret = "/scans/DOE^JANE.svs"
    assert "mount the share" in explain_error(InputError("x", secret), settings)
    (tmp_path / "scans").mkdir()
    cohort = Cohort(tmp_path / "cohort")
    cohort.prepare_folder()
    with cohort.lock():
        assert "Another run" in explain_error(StoreError("x", secret), settings)
    monkeypatch.setattr(messages, "free_bytes", lambda _: 3e8)
    assert "0.3 GB are free" in explain_error(StoreError("x", secret), settings)
    monkeypatch.undo()
    for error in (InputError, StoreError, WeightsError, HeadLost, ZeroDivisionError, OSError):
        words = explain_error(error("x", secret), settings)
        assert words.endswith(".")
        assert "DOE" not in words


def test_a_low_disk_is_counted_in_nights() -> None:
    night = NightSummary("n", "t", free_bytes=15_000_000_000, written_bytes=4_000_000_000)
    assert disk_sentence(night) == "15 GB are free on the disk of the cohort."
    night.disk_low = True
    assert "room for about 3 nights" in disk_sentence(night)
    night.written_bytes = 20_000_000_000
    assert "room for less than one night" in disk_sentence(night)
    assert disk_sentence(NightSummary("n", "t")) is None


@pytest.mark.parametrize("code", FAILURE_WORDS)
def test_one_slide_is_singular(code: str) -> None:
    """The mail said "1 slide end too early" and "1 slide state no resolution"."""
    words = failure_text(1, code).split()
    assert words[:2] == ["1", "slide"]
    assert not {"end", "state", "were", "are", "show", "lack", "have", "need", "they", "them"} & set(words)
    assert failure_text(2, code).startswith("2 slides ")
