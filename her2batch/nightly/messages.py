"""Causes and outcomes of a night in plain words. They name no slide, patient or file, so that they can be mailed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from her2batch.errors import HeadLost, InputError, StoreError, WeightsError
from her2batch.files.locations import free_bytes, to_location
from her2batch.files.locks import is_locked
from her2batch.job_settings import NightlySettings
from her2batch.nightly.summary import HELD_EXIT_CODE, NightSummary
from her2batch.reasons import REASONS
from her2batch.runtime.ingest import MIN_FREE_BYTES

FAILURE_WORDS: Final = {
    "unreadable": "cannot be opened: the file is damaged or of an unknown format",
    "truncated": "end too early: the file was not copied completely",
    "no-mpp": "state no resolution",
    "too-coarse": "were scanned too coarsely for the plan",
    "not-a-slide": "are no images of slides",
    "no-tissue": "show no tissue",
    "blank-tiles": "lack a part of the image",
    "bad-regions": "have a file of regions that cannot be read",
    "unstable": "were still being written",
    "gone": "disappeared while they were read",
    "worker-lost": "ended the process that read them",
    "timeout": "took too long",
    "out-of-memory": "need more memory than a worker may use",
    "store-write": "could not be stored: the disk is full or refused the write",
    "internal": "failed with an internal error",
}
"""Error code → what happened, as the end of a sentence that begins with a number of slides."""


SINGULAR: Final = {
    "end": "ends", "state": "states", "were": "was", "are": "is", "show": "shows",
    "lack": "lacks", "have": "has", "need": "needs", "they": "it", "them": "it",
}  # fmt: skip
"""Word of FAILURE_WORDS → the same for one slide."""


def failure_text(count: int, code: str) -> str:
    """Return how many slides failed and how, such as "1 slide states no resolution"."""
    words = FAILURE_WORDS.get(code, code)
    if count == 1:
        words = words.replace("are no images of slides", "is no image of a slide")
        words = " ".join(SINGULAR.get(word, word) for word in words.split(" "))
    return f"{count_text(count, 'slide')} {words}"


def failure_sentences(night: NightSummary) -> list[str]:
    """Return a sentence for each error code, the most frequent first, such as "2 slides end too early: …"."""
    codes = sorted(night.failures.items(), key=lambda item: (-item[1], item[0]))
    sentences = [f"{failure_text(count, code)} ({code})." for code, count in codes]
    if night.not_scored:
        sentences.append(f"{count_text(night.not_scored, 'slide')} could not be scored with the bundle.")
    return sentences + calibration_sentences(night)


def calibration_sentences(night: NightSummary) -> list[str]:
    """Return what a calibration could not do: a sentence with its id for each cause; none if it did all."""
    if night.calibrations_failed:
        return ["The calibration could not be used; the report of the night says why. Predictions are uncalibrated."]
    name, sentences = f"the calibration {night.calibration}", []
    if night.not_calibrated:
        sentences.append(f"{count_text(night.not_calibrated, 'slide')} could not be predicted with {name}.")
    for cause, count in night.outside_causes.items():
        sentences.append(f"{count_text(count, 'slide')} without {name}: {REASONS[cause][1]}.")
    return sentences


def count_text(count: int, noun: str) -> str:
    """Return a number with its noun, such as "1 slide" or "2 slides"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def headline(night: NightSummary) -> str:
    """Return the night in a few words, such as "3 to look at, 2 failed"."""
    if night.error is not None:
        return "ended with an error"
    parts = ["results held back"] if night.held else [f"{night.review:,} to look at"]
    failed = night.failed + night.not_scored + night.not_calibrated
    parts += [f"{failed:,} failed"] if failed else []
    parts += ["calibration not used"] if night.calibrations_failed else []
    parts += [f"{night.outside_calibration:,} outside the calibration"] if night.outside_calibration else []
    parts += [f"{night.deferred:,} deferred"] if night.deferred else []
    parts += [count_text(night.alarms, "alarm")] if night.alarms else []
    parts += ["disk nearly full"] if night.disk_low else []
    return ("stopped, " if night.stopped else "") + ", ".join(parts)


def went_well(night: NightSummary) -> bool:
    """Return whether the night ended by itself with results that may be used. Single slides may have failed."""
    return night.exit_code in (0, 3)


def explain_error(error: Exception, settings: NightlySettings) -> str:
    """Return why a night ended early, in a sentence with the remedy.

    The error's own message is not used, because it may name a slide; it is in the log of the machine.
    """
    cohort = to_location(settings.cohort)
    if isinstance(error, HeadLost):
        return "The Ray cluster, or a part of Ray on this machine, was lost. Run the same command again to continue."
    if isinstance(error, WeightsError):
        return "The weights of a model are missing or damaged. `her2batch overnight --check` names them."
    if not isinstance(error, (InputError, StoreError)):
        return "An internal error. The log of the machine names the file with the traceback; please report it."
    if not Path(settings.scans).exists():
        return "The scan folder is not there: mount the share, or correct `scans` in the settings file."
    free = free_bytes(cohort)
    if free is not None and free < MIN_FREE_BYTES:
        return f"The disk of the cohort is full: {free / 1e9:.1f} GB are free. Make room, then run it again."
    if is_locked(cohort):
        return "Another run holds the cohort: wait until it has ended, or stop it."
    if isinstance(error, StoreError):
        return "The cohort cannot be used. The log of the machine has the reason and the remedy."
    return "A setting, or a file that the settings name, cannot be used. `her2batch overnight --check` names it."


OUTCOMES: Final = {
    0: "Everything is done.",
    1: "The counts do not add up: report this as a fault.",
    3: "Finished; some slides failed.",
    HELD_EXIT_CODE: "The results are held back, because the sentinel slides were scored differently. Do not use them "
    "before the cause is known.",
    130: "The night was stopped. The next night continues with the remaining slides.",
}
"""Exit code → outcome in a sentence."""


def disk_sentence(night: NightSummary) -> str | None:
    """Return the state of the cohort's disk, or None where it has none.

    The number of nights assumes that each writes as much as this one.
    """
    if night.free_bytes is None:
        return None
    text = f"{night.free_bytes / 1e9:,.0f} GB are free on the disk of the cohort"
    if night.disk_low:
        text += ": less than the limit in the settings file"
        if night.written_bytes:
            nights = int(night.free_bytes // night.written_bytes)
            text += (
                ", room for less than one night" if not nights else f", room for about {count_text(nights, 'night')}"
            )
        text += ". Make room, or limit the pyramids with [retention]"
    return f"{text}."
