"""How cells were found is kept with their table."""

from pathlib import Path

from her2batch.files.parquet import read_parquet, read_where, write_parquet
from her2batch.store import schemas
from her2batch.store.tables.cell_provenance import CellProvenance
from her2batch.store.tables.cells import cells_table
from her2batch.vision.cells.detection import CellReference
from her2batch.vision.stain import Stains
from tests.store.tables.test_cells import random_cells

REFERENCE = CellReference(*(0.1 * k for k in range(len(CellReference._fields))))


def test_it_is_read_back_from_the_file(tmp_path: Path) -> None:
    given = CellProvenance(marker="nuclear", stain="he", stains=Stains((250.0, 248.5, 247.0)), reference=REFERENCE)
    table = given.attach(cells_table("S1", random_cells(100)))
    write_parquet(table, tmp_path / "a.parquet", schemas.layout_of("cells"))
    assert CellProvenance.of(read_parquet(tmp_path / "a.parquet")) == given
    assert CellProvenance.of(read_where(tmp_path / "a.parquet", ["x"], {})) == given
    assert given.picture == {
        "stain": "he", "tumour_marked": False, "hue_spread": REFERENCE.hue_spread, "foreign": REFERENCE.foreign
    }  # fmt: skip


def test_a_table_without_it_is_one_of_an_ingest() -> None:
    assert CellProvenance.of(cells_table("S1", random_cells(10))) == CellProvenance()


def test_imported_cells_say_where_they_come_from() -> None:
    table = CellProvenance(source="QuPath").attach(cells_table("S1", random_cells(10)))
    assert CellProvenance.of(table).source == "QuPath"
    assert CellProvenance.of(table).picture == {"stain": "ihc", "tumour_marked": False}
