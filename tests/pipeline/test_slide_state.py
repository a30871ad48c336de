"""The state of a slide: columns in tile order, whatever the order of reading, and joined from their parts."""

import pickle

import numpy as np
import pyarrow as pa

from her2batch.pipeline.slide_state import SlidePart, SlideState, TileColumns


def columns(tiles: list[int], **values: list[float]) -> TileColumns:
    return TileColumns(np.array(tiles), {name: np.array(each) for name, each in values.items()})


def test_columns_are_sorted_by_tile() -> None:
    read = columns([2, 0, 1], dab=[0.2, 0.0, 0.1])
    assert read.in_tile_order("dab", 3).tolist() == [0.0, 0.1, 0.2]


def test_slide_without_tiles_has_empty_columns_of_the_right_width() -> None:
    assert TileColumns().in_tile_order("dab", 0).shape == (0,)
    assert TileColumns().in_tile_order("uni", 0, 1024).shape == (0, 1024)


def test_parts_are_joined_in_their_order() -> None:
    state = SlideState("a", None, None, seconds={"look": 1.0})
    first = SlidePart({"measurements": columns([3, 2], dab=[0.3, 0.2])}, {"membrane": 1.0})
    second = SlidePart({"measurements": columns([0], dab=[0.0]), "spots": columns([0], n=[7])}, {"membrane": 2.0})
    state.add([first, second])
    assert state.measurements.tiles.tolist() == [3, 2, 0]
    assert state.measurements.column("dab").tolist() == [0.3, 0.2, 0.0]
    assert state.get("spots").column("n").tolist() == [7]
    assert state.seconds == {"look": 1.0, "membrane": 3.0}
    assert (first.n_tiles, SlidePart().n_tiles) == (2, 0)


def test_stages_can_write_to_one_table() -> None:
    state = SlideState("a", None, None)
    for words in (["x"], [], ["y", "z"]):
        state.add([SlidePart({"tables": {"patches/b": pa.table({"resolution": pa.array(words, pa.string())})}})])
    assert state.tables["patches/b"]["resolution"].to_pylist() == ["x", "y", "z"]


def test_incomplete_state_can_be_pickled() -> None:
    state = pickle.loads(pickle.dumps(SlideState("a", "p", None, ("mended",))))
    assert (state.slide_id, state.notes, hasattr(state, "overview")) == ("a", ("mended",), False)
