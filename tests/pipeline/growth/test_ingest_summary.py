"""The outcome of an ingest adds up, and decides the exit code."""

from pathlib import Path

import pytest

from her2batch.errors import STOPPED
from her2batch.pipeline.growth.ingest_summary import IngestSummary, count_slides
from her2batch.pipeline.inventory import Inventory


def test_slides_are_counted_by_their_rows() -> None:
    entries = {name: {"slide_id": name, "reason": "hidden", "outcome": "slide"} for name in ("a", "b", "c", "d")}
    inventory = Inventory(outcomes={"a": "current", "b": "todo", "c": "todo", "d": "ignored"}, entries=entries)
    summary = IngestSummary(Path("c"))
    rows = {"a": {"status": "done", "n_tiles": 3}, "b": {"status": "failed", "n_tiles": None}}
    count_slides(summary, inventory, rows)
    assert (summary.seen, summary.done, summary.failed, summary.ignored, summary.tiles) == (4, 1, 1, 1, 3)
    assert (summary.already, summary.failures) == (1, [rows["b"]])
    assert (summary.adds_up, summary.exit_code) == (False, 1)  # c has no row


@pytest.mark.parametrize(("change", "code"), [
    (lambda one: None, 0), (lambda one: setattr(one, "stopped", True), STOPPED),
    (lambda one: one.missing.append("lost.svs"), 3), (lambda one: one.added.failures.update(a="damaged"), 3),
    (lambda one: one.added.without_pyramid.append("a"), 0),
])  # fmt: skip
def test_the_exit_code_follows_the_outcome(change: object, code: int) -> None:
    summary = IngestSummary(Path("c"))
    change(summary)
    assert summary.exit_code == code
