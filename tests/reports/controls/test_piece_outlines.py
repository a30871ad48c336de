"""Outlines and table of the pieces on a slide's page."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.reports.controls.piece_outlines import piece_outlines, without_controls
from her2batch.store.cohort import Cohort
from her2batch.store.schemas import table_schema

CELLS = np.array([[0, 0], [1, 0], [4, 0]], np.int64)
TILES = pa.table({"piece": pa.array([0, 0, 1], pa.int16())})


def pieces(*rows: dict[str, object]) -> pa.Table:
    full = [{"piece": k, "x": 100 * k, "y": 0, "suspected": False, **row} for k, row in enumerate(rows)]
    return pa.Table.from_pylist(full, table_schema("pieces"))


def test_each_piece_has_an_outline_its_role_and_whether_it_failed() -> None:
    table = pieces({"role": "tissue"}, {"role": "control", "expected": "3+", "predicted": "2+"})
    tissue, control = piece_outlines(table, TILES, CELLS, 50.0)
    assert (tissue["words"], control["words"]) == ("patient's tissue", "control")
    assert (tissue["failed"], control["failed"]) == (False, True)
    assert tissue["path"].startswith("M0 0h2")
    assert control["label_at"] == (2.0, 0.0)


@pytest.mark.parametrize("suspected", [True, False])
def test_a_suspected_piece_is_named(suspected: bool) -> None:
    table = pieces({"role": "tissue"}, {"role": "tissue", "suspected": suspected})
    assert piece_outlines(table, TILES, CELLS, 50.0)[1]["words"] == (
        "may be a control" if suspected else "patient's tissue"
    )


def test_one_piece_and_earlier_cohorts_show_nothing() -> None:
    assert piece_outlines(pieces({"role": "tissue"}), TILES, CELLS, 50.0) == []
    assert piece_outlines(None, TILES, CELLS, 50.0) == []
    assert piece_outlines(pieces({"role": "control"}), pa.table({"tile": [0]}), CELLS, 50.0) == []
    assert len(piece_outlines(pieces({"role": "control"}), TILES, CELLS, 50.0)) == 1


def test_shares_are_those_of_the_patients_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"tiles": TILES, "pieces": pieces({"role": "tissue"}, {"role": "control"})}
    monkeypatch.setattr(Cohort, "read", lambda _self, name, _slide: tables[name])
    table = pa.table({"tile": [0, 1, 2]})
    found = without_controls(Cohort(Path("c")), {"slide_id": "S", "control_mm2": 0.1}, table)
    assert found is not None
    assert found["tile"].to_pylist() == [0, 1]
    assert without_controls(Cohort(Path("c")), {"slide_id": "S", "control_mm2": None}, table) is table
