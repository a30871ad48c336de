"""What a dead run left in a cohort, and away with it: drafts, half-written files, files that no row names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping

from her2batch.files.locations import delete_objects, remove_tree, slide_of_file, top_level_name
from her2batch.store.cohort import Cohort, Row


def remove_leftovers(cohort: Cohort) -> None:
    """Remove drafts and half-written files. Only under the lock."""
    for left in cohort.draft_root.glob(".draft-*"):
        shutil.rmtree(left, ignore_errors=True)
    if cohort.remote:
        return
    for folder in (cohort.root, *cohort.slides.parent.glob("**/")):
        for part in folder.glob(".*.part"):
            part.unlink(missing_ok=True)


def remove_orphans(cohort: Cohort, rows: Mapping[str, Row]) -> list[str]:
    """Remove files of slides that no row names: a run died between putting them in place and the row. Names them.

    rows: every row there is.  Files of a row that can't be read stay: its slide is done again.  Only under the lock.
    """
    named = {top_level_name(file["path"]) for row in rows.values() for file in row["files"]}
    lost = {path.stem for path in cohort.slides.glob("*.parquet")} - rows.keys()
    strays = [name for name in _tops(cohort) if name not in named and slide_of_file(name) not in lost]
    for name in strays:
        path = cohort.root / name
        if name.endswith(".zarr"):
            remove_tree(path)
        elif cohort.remote:
            delete_objects(path)
        else:
            path.unlink(missing_ok=True)
    return strays


def _tops(cohort: Cohort) -> Iterator[str]:
    """Files that belong to slides and Zarr folders, by their names in the cohort, each once."""
    if cohort.remote:
        inside = ("tables/", "pyramids/", "thumbnails/")
        found = {top_level_name(name) for name in cohort.object_sizes() if name.startswith(inside)}
    else:
        folders = [cohort.table(name, "any").parent for name in cohort.table_names()]
        paths = [path for folder in folders for path in folder.glob("[!.]*.parquet")]
        paths += cohort.pyramid("any").parent.glob("[!.]*.zarr")
        paths += cohort.thumbnail("any").parent.glob("[!.]*.jpg")
        found = {path.relative_to(cohort.root).as_posix() for path in paths}
    yield from sorted(name for name in found if not name.startswith(("tables/slides/", "tables/runs/")))
