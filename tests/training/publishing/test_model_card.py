"""Model cards: what they state, and their lines of plain PyTorch, which are run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from her2batch.experiments.train import TrainingRequest, train
from her2batch.models.bundle import ModelEntry, load_mil_head, read_bundle
from her2batch.models.mil_registry import build_mil_network
from her2batch.models.nets import NETWORKS, ImageClassifier, build_network, network_spec
from her2batch.models.predictor import apply_temperature
from her2batch.settings import MilSettings, Training, TrainingResources
from her2batch.training.publishing.model_card import loading_lines
from tests.training import stores

CLASSES = ("0", "low", "high")


def run_lines(lines: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> np.ndarray:
    """The probabilities that the lines of a card compute in a folder."""
    assert lines is not None
    assert len([line for line in lines.splitlines() if line]) <= 10
    monkeypatch.chdir(folder)
    names: dict[str, Any] = dict(given)
    exec(lines, names)
    return np.asarray(names["p"].detach().numpy())


@pytest.mark.parametrize("method", ["clam-sb", "clam-mb"])
def test_a_head_is_loaded_in_ten_lines_of_plain_pytorch(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = build_mil_network(method, 16, 3, MilSettings())
    save_file(net.state_dict(), tmp_path / "head.safetensors")
    entry = ModelEntry(
        kind="mil", task="her2-3way", method=method, input="stain", classes=CLASSES, dim=16, file="head.safetensors",
        temperature=1.5,
    )  # fmt: skip
    bag = torch.randn(30, 16)
    with torch.inference_mode():
        expected = apply_temperature(torch.softmax(net(bag).logits, 0).numpy(), 1.5)
    found = run_lines(loading_lines(entry), tmp_path, monkeypatch, bag=bag)
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", NETWORKS)
def test_a_network_is_loaded_in_ten_lines_of_plain_pytorch(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = build_network(method, 3, 224, "tiny").eval()
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, tmp_path / "net.safetensors")
    entry = ModelEntry(
        kind="thumbnail", task="her2-3way", method=method, input="thumbnail-224", classes=CLASSES, size="tiny",
        file="net.safetensors", temperature=2.0,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    expected = apply_temperature(ImageClassifier(net, 3, "cpu", network_spec(method).normalization)(pixels), 2.0)
    as_floats = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    found = run_lines(loading_lines(entry), tmp_path, monkeypatch, pixels=as_floats)
    assert np.allclose(found, expected, atol=1e-4)


def test_full_networks_are_named_as_timm_does() -> None:
    values: dict[str, Any] = {"kind": "thumbnail", "task": "her2-3way", "classes": CLASSES, "file": "net.safetensors"}
    lines = loading_lines(ModelEntry(method="efficientnet-lite0", input="thumbnail-512", **values))
    assert lines is not None
    assert 'timm.create_model("tf_efficientnet_lite0.in1k", num_classes=3)' in lines
    assert "(0.5, 0.5, 0.5)" in lines
    vit = loading_lines(ModelEntry(method="vit-base", input="thumbnail-512", **values))
    assert vit is not None
    assert "img_size=512" in vit


def test_other_models_are_loaded_by_her2batch() -> None:
    values: dict[str, Any] = {"task": "her2-3way", "classes": CLASSES}
    dtfd = ModelEntry(kind="mil", method="dtfd-afs", input="stain", dim=16, file="a.safetensors", **values)
    assert loading_lines(dtfd) is None
    assert loading_lines(ModelEntry(kind="counts", method="svm", input="patches-low", file="b.skops", **values)) is None


def test_every_bundle_has_a_card_of_its_data_and_its_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bags, labels = stores.planted(12, strength=8)
    cohort = stores.cohort(tmp_path / "cohort", bags)
    scores = ("0", "1+", "3+")
    rows = [
        f"{slide_id},P{k},{scores[label]},her2" for k, (slide_id, label) in enumerate(zip(bags, labels, strict=True))
    ]
    sheet = tmp_path / "labels.csv"
    sheet.write_text("\n".join(["slide_id,patient_id,her2,stain", *rows]))
    settings = Training(folds=3, options=("epochs=2", "least_epochs=0"))
    request = TrainingRequest(cohort.root, tmp_path / "run", sheet)
    assert train(request, settings, TrainingResources(workers=0)).exit_code == 0
    bundle = read_bundle(tmp_path / "run" / "bundle")
    card = (bundle.path / "README.md").read_text("utf-8")
    assert "her2-3way: 12 slides of 12 patients, 3 folds; 0: 4, low: 4, high: 4." in card
    assert "| her2-3way | clam-sb | stain | " in card
    assert "none needed" in card  # the licence
    (entry,) = bundle.info.models
    lines = card.partition("```python\n")[2].partition("```")[0]
    assert lines == loading_lines(entry)
    bag = torch.from_numpy(bags["s003"].astype(np.float32))
    with torch.inference_mode():
        expected = apply_temperature(
            torch.softmax(load_mil_head(bundle, entry)(bag).logits, 0).numpy(), entry.temperature
        )
    assert np.allclose(run_lines(lines, bundle.path, monkeypatch, bag=bag), expected, atol=1e-5)
