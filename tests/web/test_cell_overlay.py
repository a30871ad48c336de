"""Cells for the viewer: those in view, thinned where there are too many, from few row groups."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from her2batch.files import parquet
from her2batch.files.parquet import write_parquet
from her2batch.store import schemas
from her2batch.store.tables.cells import cells_table
from her2batch.web.cell_overlay import cells_in_view, one_cell, thinned
from tests.store.tables.test_cells import random_cells

COUNT = 120_000


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("view") / "S1.parquet"
    write_parquet(cells_table("S1", random_cells(COUNT)), path, schemas.layout_of("cells"))
    return path


@pytest.mark.parametrize("box", [(0, 0, 1000, 900), (20_000.5, 4000, 3000, 2000), (44_000, 10_000, 900, 900)])
def test_cells_in_view_are_those_of_the_table(table: Path, box: tuple[float, float, float, float]) -> None:
    all_cells = pq.read_table(table).to_pandas()
    x, y, width, height = box
    own = all_cells[all_cells.x.between(x, x + width, "left") & all_cells.y.between(y, y + height, "left")]
    found = cells_in_view(table, box)
    assert (found["cells"], found["one_of"], found["cell"]) == (len(own), 1, own.cell.tolist())
    assert found["category"] == own.category.tolist()


def test_far_views_are_thinned_and_stay_the_same_while_they_move(table: Path) -> None:
    whole = cells_in_view(table, (0, 0, 50_000, 60_000), 5000)
    assert whole["cells"] == COUNT
    assert whole["one_of"] == 32
    assert COUNT / 32 * 0.8 < len(whole["cell"]) <= 5000
    assert set(np.flatnonzero(thinned(np.arange(COUNT, dtype=np.int32), 64))) <= set(whole["cell"])


def test_a_near_view_reads_few_row_groups(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        parquet.pq.ParquetFile,
        "read_row_groups",
        lambda self, groups, **more: (read.extend(groups), plain(self, groups, **more))[1],
    )
    cells_in_view(table, (20_000, 4000, 1000, 900))
    assert 0 < len(read) <= 2 < pq.ParquetFile(table).metadata.num_row_groups


def test_figures_of_one_cell(table: Path) -> None:
    row = pq.read_table(table).slice(70_000, 1).to_pylist()[0]
    del row["slide_id"]
    assert one_cell(table, 70_000) == row
    assert one_cell(table, COUNT) is None
    assert one_cell(table, -1) is None


def test_an_empty_table_has_no_cells(tmp_path: Path) -> None:
    empty = cells_table("S1", random_cells(100)).slice(0, 0)
    write_parquet(pa.table(empty), tmp_path / "e.parquet", schemas.layout_of("cells"))
    assert cells_in_view(tmp_path / "e.parquet", (0, 0, 10, 10))["cells"] == 0
