"""Retention of pyramids: old ones are deleted by age, and the oldest until the rest fits. Tables are always kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from her2batch.files.locations import remove_tree
from her2batch.job_settings import RetentionSettings
from her2batch.nightly.drift import finish_times
from her2batch.store.cohort import RETIRED, Cohort, Row, write_row


def due_pyramids(
    rows: Mapping[str, Row], finished: Mapping[str, datetime], settings: RetentionSettings, now: datetime
) -> list[str]:
    """Return the slides whose pyramids are due for deletion, oldest first. A slide of unknown age counts as oldest."""
    long_ago = datetime.min.replace(tzinfo=now.tzinfo)
    sizes = {slide_id: size for slide_id, row in rows.items() if (size := pyramid_bytes(row))}
    by_age = sorted(sizes, key=lambda slide_id: (finished.get(slide_id, long_ago), slide_id))
    limit = None if settings.days is None else now - timedelta(days=settings.days)
    due = [slide_id for slide_id in by_age if limit is not None and finished.get(slide_id, long_ago) < limit]
    left = sum(sizes.values()) - sum(sizes[slide_id] for slide_id in due)
    for slide_id in by_age[len(due) :]:
        if settings.gigabytes is None or left <= settings.gigabytes * 1e9:
            break
        due.append(slide_id)
        left -= sizes[slide_id]
    return due


def pyramid_bytes(row: Row) -> int:
    """Return the bytes of a slide's pyramid."""
    return sum(file["bytes"] for file in row["files"] or () if file["path"].startswith("pyramids/"))


def retire_pyramids(cohort: Cohort, settings: RetentionSettings, now: datetime) -> list[str]:
    """Delete the pyramids that are due; returns their slides.

    A slide's row is written first, without its pyramid. If the process is killed in between, the next night deletes the
    files that no row names.
    """
    with cohort.lock():
        rows = cohort.rows()
        for slide_id, row in rows.items():
            if RETIRED in row["flags"] and not pyramid_bytes(row):
                remove_tree(cohort.pyramid(slide_id))
        due = due_pyramids(rows, finish_times(cohort), settings, now)
        for slide_id in due:
            delete_pyramid(cohort, rows[slide_id])
        cohort.update_row_cache()
    return due


def delete_pyramid(cohort: Cohort, row: Row) -> None:
    """Write a slide's row without its pyramid, then delete the files. The caller holds the cohort's lock."""
    files = [file for file in row["files"] if not file["path"].startswith("pyramids/")]
    write_row(cohort, {**row, "files": files, "flags": [*row["flags"], RETIRED]})
    remove_tree(cohort.pyramid(row["slide_id"]))
