"""The catalog shows what rows name, as they name it now, and nothing else."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from her2batch.errors import InputError
from her2batch.store.cohort import RETIRED, Cohort, write_row
from her2batch.web.catalog import OPEN, Catalog


def first(cohort: Cohort) -> str:
    return next(one for one, row in sorted(cohort.rows().items()) if row["n_tiles"] and row["stain"] == "her2")


def test_predictions_are_those_that_rows_name(cohort: Cohort) -> None:
    catalog = Catalog(cohort)
    slide_id = first(cohort)
    rows = catalog.predictions(slide_id)
    assert [one["task"] for one in rows] == ["her2-4way", "her2-3way", "her2-binary"]
    assert {one["bundle"] for one in rows} == {"membrane"}
    row = catalog.row(slide_id)
    write_row(cohort, {**row, "files": [one for one in row["files"] if "predictions" not in one["path"]]})
    catalog.stale()
    assert catalog.predictions(slide_id) == []
    assert catalog.table("predictions/membrane", slide_id) is None


def test_a_row_that_comes_later_is_seen_and_an_empty_cohort_is_shown(cohort: Cohort, tmp_path: Path) -> None:
    new = Cohort(tmp_path / "new")
    new.create(cohort.plan())
    catalog = Catalog(new)
    assert catalog.lines() == []
    row = cohort.rows()[first(cohort)]
    for name in ("one", "two"):
        write_row(new, {**row, "slide_id": name, "files": []})
        until = time.monotonic() + 20
        while name not in catalog.rows() and time.monotonic() < until:
            time.sleep(0.1)
        assert name in catalog.rows()
    assert [one["slide_id"] for one in catalog.lines()] == ["one", "two"]
    assert catalog.lines() is catalog.lines()


@pytest.mark.parametrize("name", ["../cohort", "..", "", "nobody", "a/b", "%2e%2e", "\0"])
def test_what_is_no_slide_is_no_path_either(cohort: Cohort, name: str) -> None:
    catalog = Catalog(cohort)
    for ask in (catalog.row, catalog.zoom, catalog.thumbnail, catalog.shares):
        with pytest.raises(InputError, match="no such slide"):
            ask(name)


def test_a_pyramid_that_was_let_go_is_not_opened(cohort: Cohort) -> None:
    slide_id = first(cohort)
    row = cohort.rows()[slide_id]
    catalog = Catalog(cohort)
    catalog.zoom(slide_id)
    write_row(cohort, {**row, "flags": [*row["flags"], RETIRED]})
    catalog.stale()
    with pytest.raises(InputError, match="no pyramid"):
        catalog.tile(slide_id, 0, 0, 0)
    assert catalog.thumbnail(slide_id).startswith(b"\xff\xd8")


def test_many_threads_get_the_same_tiles_while_pyramids_come_and_go(cohort: Cohort) -> None:
    ids = [one for one, row in sorted(cohort.rows().items()) if row["status"] == "done"]
    assert len(ids) > OPEN
    alone = Catalog(cohort)
    wanted = {one: alone.tile(one, alone.zoom(one).last - 1, 1, 1) for one in ids}
    catalog, gate = Catalog(cohort), threading.Barrier(8)

    def look(k: int) -> bool:
        gate.wait()
        return all(catalog.tile(one, catalog.zoom(one).last - 1, 1, 1) == wanted[one] for one in ids[k:] + ids[:k])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(8)))
    assert len(catalog._open) <= OPEN
