"""Places of saliency maps lie where the network's input lies in the slide."""

from pathlib import Path

import numpy as np

from her2batch.pipeline.explanation.saliency import map_places, saliency_table
from her2batch.pipeline.predict import load_networks
from tests.pipeline.test_predict import a_bundle


def test_places_of_the_margins_are_left_out() -> None:
    frame = (np.array([1000.0, 2000.0]), np.array([700.0, 100.0]), 700.0)  # the tissue is a strip, seven places wide
    places, inside = map_places((7, 7), frame)
    assert places.tolist() == [[1000 + 100 * k, 2000, 100] for k in range(7)]
    assert inside[3].all()
    assert inside.sum() == 7


def test_each_network_has_a_map_over_the_tissue(tmp_path: Path) -> None:
    networks = load_networks(a_bundle(tmp_path / "bundle"), "cpu", "thumbnail")  # type: ignore[arg-type]
    thumbnail = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    tiles = np.array([[1000, 2000, 400], [2600, 2000, 1000]], np.int32)
    found = saliency_table("a", networks, thumbnail, tiles, 8000, 6000)
    assert set(found["method"].to_pylist()) == {"resnet50"}
    assert len(found) == 21  # three of the seven rows touch the tissue, 2600 x 1000 px
    x, size = found["x"].to_numpy(), found["size"].to_numpy()
    assert (x.min(), (x + size).max()) == (1000, 3600)
    assert found.equals(saliency_table("a", networks, thumbnail, tiles, 8000, 6000))
