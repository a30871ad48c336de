"""From what the stages gave to tables: in tile order, whatever order the blocks came in."""

import numpy as np

from her2batch.pipeline.results import _order, _rows, encoder_folder


def test_rows_come_back_in_the_order_of_their_tiles() -> None:
    state = {"tiles_order": np.array([2, 0, 1]), "tiles_dab": np.array([0.2, 0.0, 0.1])}
    order = _order(state, "tiles")
    assert _rows(state, "tiles_dab", order, 3).tolist() == [0.0, 0.1, 0.2]


def test_a_slide_without_tiles_has_empty_columns_of_the_right_width() -> None:
    assert _rows({}, "tiles_dab", _order({}, "tiles"), 0).shape == (0,)
    assert _rows({}, "embeddings/uni", _order({}, "tiles"), 0, 1024).shape == (0, 1024)


def test_an_encoders_folder_is_a_plain_name() -> None:
    assert encoder_folder("timm:resnet18.a1_in1k") == "timm-resnet18.a1_in1k"
    assert encoder_folder("uni2-h") == "uni2-h"
