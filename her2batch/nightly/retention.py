"""Which pyramids go: those older than so many days, and the oldest until the rest fits. Tables stay for ever."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from her2batch.files.locations import remove_tree
from her2batch.nightly.drift import finish_times
from her2batch.settings import RetentionSettings
from her2batch.store.cohort import RETIRED, Cohort, Row, write_row


def due_pyramids(
    rows: Mapping[str, Row], finished: Mapping[str, datetime], settings: RetentionSettings, now: datetime
) -> list[str]:
    """Slides whose pyramids go, the oldest first. A slide of which nobody knows when it was done counts as oldest."""
    long_ago = datetime.min.replace(tzinfo=now.tzinfo)
    sizes = {one: size for one, row in rows.items() if (size := pyramid_bytes(row))}
    ages = sorted(sizes, key=lambda one: (finished.get(one, long_ago), one))
    limit = None if settings.days is None else now - timedelta(days=settings.days)
    gone = [one for one in ages if limit is not None and finished.get(one, long_ago) < limit]
    left = sum(sizes.values()) - sum(sizes[one] for one in gone)
    for one in ages[len(gone) :]:
        if settings.gigabytes is None or left <= settings.gigabytes * 1e9:
            break
        gone.append(one)
        left -= sizes[one]
    return gone


def pyramid_bytes(row: Row) -> int:
    """Bytes of a slide's pyramid."""
    return sum(file["bytes"] for file in row["files"] or () if file["path"].startswith("pyramids/"))


def retire_pyramids(cohort: Cohort, settings: RetentionSettings, now: datetime) -> list[str]:
    """Let go of what is due; returns the slides.

    A slide's row is written first, without its pyramid: killed in between, the files are nobody's, and the next night
    removes them.
    """
    with cohort.lock():
        rows = cohort.rows()
        for slide_id, row in rows.items():
            if RETIRED in row["flags"] and not pyramid_bytes(row):
                remove_tree(cohort.pyramid(slide_id))
        gone = due_pyramids(rows, finish_times(cohort), settings, now)
        for slide_id in gone:
            delete_pyramid(cohort, rows[slide_id])
        cohort.update_row_cache()
    return gone


def delete_pyramid(cohort: Cohort, row: Row) -> None:
    """A slide's row without its pyramid, then away with the files. Only under the lock."""
    files = [file for file in row["files"] if not file["path"].startswith("pyramids/")]
    write_row(cohort, {**row, "files": files, "flags": [*row["flags"], RETIRED]})
    remove_tree(cohort.pyramid(row["slide_id"]))
