"""The table of cells: small, and within its documented units of what was measured."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store import schemas
from her2batch.store.tables.cells import CELL_COLUMNS, cells_table

COUNT = 50_000


def random_cells(count: int = COUNT, seed: int = 0) -> dict[str, np.ndarray]:
    """Cells of a slide in 100 columns of tiles, sorted as an ingest sorts them."""
    rng = np.random.default_rng(seed)
    tile = np.sort(rng.integers(0, max(1, count // 50), count))
    x, y = tile % 100 * 448 + rng.random(count) * 448, tile // 100 * 448 + rng.random(count) * 448
    order = np.lexsort((x, y, tile))
    columns = {column.name: rng.random(count) for column in CELL_COLUMNS[1:]}
    columns |= {"x": x[order], "y": y[order], "tile": tile[order], "cell": np.arange(count), "piece": np.zeros(count)}
    columns |= {name: rng.integers(0, 17, count) / 16 for name in ("faint", "moderate", "intense")}
    columns |= {"area": rng.lognormal(3.7, 0.4, count), "category": rng.integers(0, 4, count)}
    return columns


def test_values_are_rounded_to_the_documented_steps() -> None:
    given = random_cells(1000)
    table = cells_table("S1", given)
    assert table.schema.equals(schemas.table_schema("cells"))
    for column in CELL_COLUMNS[1:]:
        values = table[column.name].to_numpy()
        if column.step is None:
            assert (values == given[column.name].astype(values.dtype)).all()
        else:
            assert (np.abs(values - given[column.name]) <= column.step / 2 + 1e-3 * column.step).all(), column.name
            assert (values / column.step == np.round(values / column.step)).all()
            assert "steps" in column.description or column.step == 1 / 256


def test_a_million_cells_take_less_than_20_mb(tmp_path: Path) -> None:
    table, path = cells_table("S1", random_cells()), tmp_path / "S1.parquet"
    write_parquet(table, path, schemas.layout_of("cells"))
    assert path.stat().st_size < 20 * COUNT
    assert read_parquet(path) == table
    assert pq.ParquetFile(path).metadata.num_row_groups == -(-COUNT // schemas.CELLS_PER_GROUP)
