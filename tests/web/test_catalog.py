"""The catalog returns what the current rows name, and nothing else."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.store.cohort import RETIRED, Cohort, write_row
from her2batch.web.catalog import MAX_OPEN_PYRAMIDS, Catalog


def first_her2_slide(cohort: Cohort) -> str:
    return next(one for one, row in sorted(cohort.rows().items()) if row["n_tiles"] and row["stain"] == "her2")


def test_predictions_are_those_named_by_rows(cohort: Cohort) -> None:
    catalog = Catalog(cohort)
    slide_id = first_her2_slide(cohort)
    rows = catalog.predictions(slide_id)
    assert [(one["bundle"], one["task"]) for one in rows] == [
        *(("membrane", task) for task in ("her2-4way", "her2-3way", "her2-binary")),
        *(("cells", task) for task in ("her2-4way", "her2-3way", "her2-binary", "her2-5way")),
    ]
    row = catalog.row(slide_id)
    write_row(cohort, {**row, "files": [one for one in row["files"] if "predictions" not in one["path"]]})
    catalog.invalidate()
    assert catalog.predictions(slide_id) == []
    assert catalog.table("predictions/membrane", slide_id) is None


def test_later_rows_appear_and_an_empty_cohort_works(cohort: Cohort, tmp_path: Path) -> None:
    new = Cohort(tmp_path / "new")
    new.create(cohort.plan())
    catalog = Catalog(new)
    assert catalog.slide_summaries() == []
    row = cohort.rows()[first_her2_slide(cohort)]
    for name in ("one", "two"):
        write_row(new, {**row, "slide_id": name, "files": []})
        until = time.monotonic() + 20
        while name not in catalog.rows() and time.monotonic() < until:
            time.sleep(0.1)
        assert name in catalog.rows()
    assert [one["slide_id"] for one in catalog.slide_summaries()] == ["one", "two"]
    assert catalog.slide_summaries() is catalog.slide_summaries()


@pytest.mark.parametrize("name", ["../cohort", "..", "", "nobody", "a/b", "%2e%2e", "\0"])
def test_unknown_slide_ids_are_not_used_as_paths(cohort: Cohort, name: str) -> None:
    catalog = Catalog(cohort)
    for method in (catalog.row, catalog.deep_zoom, catalog.thumbnail, catalog.shares):
        with pytest.raises(InputError, match="no such slide"):
            method(name)


def test_retired_pyramid_is_not_opened(cohort: Cohort) -> None:
    slide_id = first_her2_slide(cohort)
    row = cohort.rows()[slide_id]
    catalog = Catalog(cohort)
    catalog.deep_zoom(slide_id)
    write_row(cohort, {**row, "flags": [*row["flags"], RETIRED]})
    catalog.invalidate()
    with pytest.raises(InputError, match="no pyramid"):
        catalog.tile(slide_id, 0, 0, 0)
    assert catalog.thumbnail(slide_id).startswith(b"\xff\xd8")


def test_threads_get_identical_tiles_while_pyramids_are_closed(cohort: Cohort) -> None:
    ids = [one for one, row in sorted(cohort.rows().items()) if row["status"] == "done"]
    assert len(ids) > MAX_OPEN_PYRAMIDS
    reference = Catalog(cohort)
    expected = {one: reference.tile(one, reference.deep_zoom(one).max_level - 1, 1, 1) for one in ids}
    catalog, barrier = Catalog(cohort), threading.Barrier(8)

    def tiles_are_identical(k: int) -> bool:
        barrier.wait()
        return all(
            catalog.tile(one, catalog.deep_zoom(one).max_level - 1, 1, 1) == expected[one] for one in ids[k:] + ids[:k]
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(tiles_are_identical, range(8)))
    assert len(catalog._open) <= MAX_OPEN_PYRAMIDS
