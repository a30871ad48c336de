"""From features to predictions: one path, whether the tables were just made or are read from a cohort."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from her2batch.models.bundle import BundleInfo, ModelEntry
from her2batch.models.nets import build_network
from her2batch.models.predictor import BundlePredictor
from her2batch.pipeline.predict import (
    embedding_matrix,
    load_networks,
    patch_probabilities,
    patch_table,
    predict_slide,
    read_features,
    thumbnail_tables,
)
from her2batch.store import schemas
from her2batch.tasks import CLASSES
from tests.models.bundles import bundle_of


def embeddings(n: int, dim: int = 3) -> pa.Table:
    values = pa.array(np.arange(n * dim).astype(np.float16))
    tiles = pa.array(np.arange(n, dtype=np.int32))
    return schemas.embeddings_table("a", tiles, pa.FixedSizeListArray.from_arrays(values, dim))


@pytest.mark.parametrize("n", [0, 1, 4])
def test_embeddings_are_a_matrix_for_any_number_of_tiles(n: int) -> None:
    expected = np.arange(n * 3).reshape(n, 3)
    assert embedding_matrix(embeddings(n)).tolist() == expected.tolist()
    halves = pa.concat_tables([embeddings(n).slice(0, n // 2), embeddings(n).slice(n // 2)])
    assert embedding_matrix(halves).tolist() == expected.tolist()
    assert embedding_matrix(embeddings(n).schema.empty_table()).shape == (0, 3)


def a_bundle(folder: Path) -> object:
    """A thumbnail network, and networks of patches at two resolutions with a vote on one of them."""
    entries, nets = [], {}
    for kind, name, task in (
        ("thumbnail", "thumbnail-224", "her2-3way"),
        ("patch", "patches-low", "her2-4way"),
        ("patch", "patches-high", "her2-4way"),
    ):
        file = f"{name}.safetensors"
        entries.append(
            ModelEntry(
                kind=kind, task=task, method="resnet50", input=name, classes=CLASSES[task], file=file, size="tiny"
            )
        )
        nets[file] = build_network("resnet50", len(CLASSES[task]), 224, "tiny")
    about = {"kind": "counts", "task": "her2-4way", "method": "majority-vote", "classes": CLASSES["her2-4way"]}
    entries.append(ModelEntry(input="patches-high", **about))
    info = BundleInfo(her2batch="0.1.0", tasks=("her2-3way", "her2-4way"), licence="none", models=tuple(entries))
    return bundle_of(folder, info, nets)


def test_patches_are_read_by_resolution(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path / "bundle")
    low, high = np.eye(4, dtype=np.float32)[[0]], np.eye(4, dtype=np.float32)[[3, 3, 1]]
    table = pa.concat_tables(
        [
            patch_table("a", "patches-low", np.zeros((1, 3), np.int32), low),
            patch_table("a", "patches-high", np.zeros((3, 3), np.int32), high),
        ]
    )
    no_thumbnails = schemas.table_schema("thumbnails").empty_table()
    tables = {f"patches/{bundle.id}": table, f"thumbnails/{bundle.id}": no_thumbnails}
    row = {"slide_id": "a", "patient_id": "p", "stain": "her2", "flags": ["pen"]}
    features = read_features(bundle, row, tables.__getitem__)
    assert features.patches["patches-low"].tolist() == low.tolist()
    assert features.patches["patches-high"].tolist() == high.tolist()
    assert (features.stain, features.flags, features.thumbnails) == ("her2", ("pen",), {})
    predictions = predict_slide(BundlePredictor(bundle), row, tables.__getitem__)
    assert set(predictions) == {f"predictions/{bundle.id}"}
    (found,) = predictions[f"predictions/{bundle.id}"].to_pylist()
    assert (found["slide_id"], found["patient_id"], found["method"], found["predicted"]) == (
        "a", "p", "majority-vote", "3+",
    )  # fmt: skip


def test_slide_without_tiles_is_predicted_from_its_thumbnail_only(tmp_path: Path) -> None:
    from her2batch.vision.thumbnail import encode_jpeg

    bundle = a_bundle(tmp_path / "bundle")
    networks = load_networks(bundle, "cpu", "thumbnail")
    assert [network.entry.input for network in networks] == ["thumbnail-224"]
    assert [network.entry.input for network in load_networks(bundle, "cpu", "patch", "patches-low")] == ["patches-low"]
    none = np.empty((0, 3), np.int32)
    jpeg = encode_jpeg(np.full((60, 80, 3), 240, np.uint8))
    tables = {
        **thumbnail_tables("a", bundle.id, networks, jpeg, none, 800, 600),
        f"patches/{bundle.id}": patch_table("a", "patches-high", none, np.empty((0, 4), np.float32)),
    }
    row = {"slide_id": "a", "patient_id": None, "stain": "ihc", "flags": ["no-tissue"]}
    rows = predict_slide(BundlePredictor(bundle), row, tables.__getitem__)[f"predictions/{bundle.id}"].to_pylist()
    assert [(found["task"], found["method"]) for found in rows] == [("her2-3way", "resnet50")]


def test_probabilities_of_patches_are_four_columns() -> None:
    p = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    assert (patch_probabilities(patch_table("a", "patches-low", np.zeros((5, 3), np.int32), p)) == p).all()
