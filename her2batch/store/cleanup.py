"""Cleanup after a killed run: drafts, half-written files and files without a row."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping

from her2batch.files.locations import delete_objects, remove_tree, slide_of_file, top_level_name
from her2batch.store.cohort import Cohort, Row


def remove_leftovers(cohort: Cohort) -> None:
    """Delete drafts and half-written files. Call it under the lock only."""
    for draft in cohort.draft_root.glob(".draft-*"):
        shutil.rmtree(draft, ignore_errors=True)
    if cohort.remote:
        return
    for folder in (cohort.root, *cohort.slides.parent.glob("**/")):
        for part in folder.glob(".*.part"):
            part.unlink(missing_ok=True)


def remove_orphans(cohort: Cohort, rows: Mapping[str, Row]) -> list[str]:
    """Delete files that no row names, left by a run that was killed before it wrote the row. Returns their names.

    rows: all readable rows.  Files of a slide whose row can't be read are kept: the slide is processed again.
    Call it under the lock only.
    """
    named = {top_level_name(file["path"]) for row in rows.values() for file in row["files"]}
    unreadable = {path.stem for path in cohort.slides.glob("*.parquet")} - rows.keys()
    orphans = [name for name in _top_level_names(cohort) if name not in named and slide_of_file(name) not in unreadable]
    for name in orphans:
        path = cohort.root / name
        if name.endswith(".zarr"):
            remove_tree(path)
        elif cohort.remote:
            delete_objects(path)
        else:
            path.unlink(missing_ok=True)
    return orphans


def _top_level_names(cohort: Cohort) -> Iterator[str]:
    """Names in the cohort of all files and Zarr folders that belong to slides."""
    if cohort.remote:
        folders = ("tables/", "pyramids/", "thumbnails/")
        names = {top_level_name(name) for name in cohort.object_sizes() if name.startswith(folders)}
    else:
        tables = [cohort.table(name, "any").parent for name in cohort.table_names()]
        paths = [path for folder in tables for path in folder.glob("[!.]*.parquet")]
        paths += cohort.pyramid("any").parent.glob("[!.]*.zarr")
        paths += cohort.thumbnail("any").parent.glob("[!.]*.jpg")
        names = {path.relative_to(cohort.root).as_posix() for path in paths}
    yield from sorted(name for name in names if not name.startswith(("tables/slides/", "tables/runs/")))
