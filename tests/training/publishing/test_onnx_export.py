"""Export of a bundle to ONNX: the same values as `score`, for any number of tiles and images."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from her2batch.cli.app import app
from her2batch.errors import InputError
from her2batch.models.bundle import Bundle, BundleInfo, ModelEntry
from her2batch.models.mil_registry import build_mil_network
from her2batch.models.nets import build_network
from her2batch.models.predictor import BundlePredictor, SlideFeatures, apply_temperature
from her2batch.pipeline.predict import load_networks
from her2batch.settings import MilSettings
from her2batch.tasks import CLASSES
from her2batch.training.publishing.onnx_export import export_onnx
from tests.models.bundles import bundle_of

DIM = 16
CLASSES_3 = CLASSES["her2-3way"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Heads of three kinds, two networks, and a classifier of votes."""
    torch.manual_seed(0)
    entries, nets = [], {}
    for method in ("clam-sb", "clam-mb", "dtfd-afs"):
        file = f"{method}.safetensors"
        entries.append(
            ModelEntry(
                kind="mil",
                task="her2-3way",
                method=method,
                input="stain",
                classes=CLASSES_3,
                dim=DIM,
                file=file,
                temperature=1.7,
            )
        )
        nets[file] = build_mil_network(method, DIM, 3, MilSettings())
    for method in ("efficientnet-lite0", "vit-base"):
        file = f"{method}.safetensors"
        entries.append(
            ModelEntry(
                kind="thumbnail",
                task="her2-3way",
                method=method,
                input="thumbnail-224",
                classes=CLASSES_3,
                file=file,
                size="tiny",
                temperature=0.8,
            )
        )
        nets[file] = build_network(method, 3, 224, "tiny")
        torch.nn.init.normal_(nets[file].get_parameter("classifier.weight" if "eff" in method else "head.weight"))
    info = BundleInfo(
        her2batch="0.1.0",
        tasks=("her2-3way",),
        encoder="stain",
        mpp=0.5,
        tile=224,
        licence="none",
        models=tuple(entries),
    )
    return bundle_of(tmp_path_factory.mktemp("onnx") / "bundle", info, nets)


@pytest.fixture(scope="module")
def exported(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    out = tmp_path_factory.mktemp("exported")
    return {model.entry.method: model.path for model in export_onnx(bundle, out)}


@pytest.mark.parametrize("method", ["clam-sb", "clam-mb"])
@pytest.mark.parametrize("tiles", [1, 9, 200])
def test_a_head_gives_the_scores_of_the_bundle(
    bundle: Bundle, exported: dict[str, Path | None], method: str, tiles: int
) -> None:
    bag = np.random.default_rng(tiles).normal(size=(tiles, DIM)).astype(np.float32)
    rows, attention = BundlePredictor(bundle)(SlideFeatures("her2", embeddings={"stain": bag}))
    expected = next(row["p"] for row in rows if row["method"] == method)
    p, weights = onnxruntime.InferenceSession(str(exported[method])).run(None, {"bag": bag})
    assert np.allclose(p, expected, atol=1e-4)
    own = attention["her2-3way", method, "stain"]
    assert np.allclose(weights[int(p.argmax()) if len(weights) > 1 else 0], own, atol=1e-5)


@pytest.mark.parametrize("method", ["efficientnet-lite0", "vit-base"])
def test_a_network_reads_raw_pixels(bundle: Bundle, exported: dict[str, Path | None], method: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    network = next(each for each in load_networks(bundle, "cpu") if each.entry.method == method)
    expected = apply_temperature(network.classify(pixels), 0.8)
    given = {"pixels": pixels.transpose(0, 3, 1, 2).astype(np.float32)}
    (p,) = onnxruntime.InferenceSession(str(exported[method])).run(None, given)
    assert np.allclose(p, expected, atol=1e-4)


def test_a_file_states_its_task_and_classes(exported: dict[str, Path | None]) -> None:
    facts = {item.key: item.value for item in onnx.load(str(exported["clam-sb"])).metadata_props}
    assert (facts["task"], json.loads(facts["classes"])) == ("her2-3way", list(CLASSES_3))
    assert facts["mpp"] == "0.5"


def test_a_head_with_random_splits_is_named_and_leaves_no_file(
    bundle: Bundle, exported: dict[str, Path | None]
) -> None:
    assert exported["dtfd-afs"] is None
    assert {path.stem for path in exported.values() if path} == {"clam-sb", "clam-mb", "efficientnet-lite0", "vit-base"}
    folder = next(path.parent for path in exported.values() if path)
    assert not list(folder.glob("dtfd*"))


def test_the_command_prints_each_model_and_its_check(bundle: Bundle, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export-bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 3, result.output  # one head was not exported
    rows = json.loads(result.stdout)["models"]
    assert {row["method"]: row["path"] is not None for row in rows}["dtfd-afs"] is False
    assert "checked" in next(row["words"] for row in rows if row["method"] == "clam-sb")


def test_without_the_extra_the_remedy_is_its_installation(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install '\.\[onnx\]'"):
        export_onnx(bundle, tmp_path / "out")
