"""Tiles that count towards a slide's score, from its tables."""

from pathlib import Path

import pyarrow as pa
import pytest

from her2batch.store.cohort import Cohort
from her2batch.store.pieces.patient_tiles import patient_tiles, patient_tiles_of, read_patient_tiles


def tables(*roles: str, tiles: tuple[int, ...] = (0, 1, 1, -1)) -> dict[str, pa.Table]:
    return {
        "pieces": pa.table({"role": pa.array(roles, pa.string())}),
        "tiles": pa.table({"piece": pa.array(tiles, pa.int16()), "tile": pa.array(range(len(tiles)), pa.int32())}),
    }


@pytest.mark.parametrize(
    ("roles", "counts"),
    [
        (("tissue", "tissue"), None),
        (("tissue", "control"), [True, False, False, True]),
        (("excluded", "tissue"), [False, True, True, True]),
        ((), None),
    ],
)
def test_tiles_of_controls_and_excluded_pieces_do_not_count(roles: tuple[str, ...], counts: list[bool] | None) -> None:
    found = patient_tiles(tables(*roles).__getitem__)
    assert found is None if counts is None else found is not None and found.tolist() == counts


def test_a_cohort_that_was_made_without_pieces_counts_all_tiles(tmp_path: Path) -> None:
    assert patient_tiles({}.__getitem__) is None
    assert patient_tiles_of(Cohort(tmp_path), "S1") is None


def test_a_table_is_read_without_the_tiles_that_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tables("tissue", "control")
    monkeypatch.setattr(Cohort, "read", lambda _self, name, _slide: made[name])
    assert read_patient_tiles(Cohort(Path("c")), "S1")["tile"].to_pylist() == [0, 3]
