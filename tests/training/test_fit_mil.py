"""MIL methods find a planted signal on new bags; training is repeatable and can be resumed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from her2batch.models.mil_registry import MIL_METHODS, build_mil_network
from her2batch.settings import MilSettings
from her2batch.training import fit_loop
from her2batch.training.bag_data import Bags, gather_bags, open_bags
from her2batch.training.fit_loop import Fold, Progress
from her2batch.training.fit_mil import clip_gradients, feed_bags, fit_mil_network, predict_bags
from tests.training.stores import cohort, planted

FEW = MilSettings(epochs=8, least_epochs=0, lr=1e-3)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bags, np.ndarray]:
    folder = tmp_path_factory.mktemp("mil")
    bags, labels = planted(60)
    return gather_bags(cohort(folder / "c", bags), "stain", "stain", list(bags), folder / "stain.arrow"), labels


def fold_of(labels: np.ndarray, seed: int = 0) -> Fold:
    return Fold(labels, np.arange(30), np.arange(30, 40), 3, seed)


@pytest.mark.slow
@pytest.mark.parametrize("method", MIL_METHODS)
def test_every_method_finds_the_planted_instances(method: str, found: tuple[Bags, np.ndarray]) -> None:
    bags, labels = found
    fitted = fit_mil_network(method, bags, fold_of(labels), FEW)
    net = build_mil_network(method, bags.dim, 3, FEW)
    net.load_state_dict(fitted.weights)
    test = np.arange(40, 60)
    p, attention = predict_bags(net.eval(), bags, test, 3)
    assert (p.argmax(1) == labels[test]).mean() >= 0.75
    assert np.allclose(p.sum(1), 1, atol=1e-5)
    for row, shares in zip(test, attention, strict=True):
        assert len(shares) == bags.sizes[row]
        assert shares.sum() == pytest.approx(1, abs=1e-3)
    if method.startswith("clam"):  # three of some thirty instances carry the class
        assert np.mean([shares[:3].sum() / shares.sum() for shares in attention]) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clam-mb", "dtfd-maxmins"])
def test_resumed_training_gives_the_same_bytes(
    method: str, found: tuple[Bags, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_loop, "SAVE_EVERY_S", 0.0)
    bags, labels = found
    whole = fit_mil_network(method, bags, fold_of(labels), FEW)

    def stop(at: Progress) -> None:
        if at.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_mil_network(method, bags, fold_of(labels), FEW, "cpu", tmp_path / "checkpoint", stop)
    again = fit_mil_network(method, bags, fold_of(labels), FEW, "cpu", tmp_path / "checkpoint")
    assert again.progress == whole.progress
    assert all(torch.equal(again.weights[key], one) for key, one in whole.weights.items())


@pytest.mark.long
def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    code = """
import sys, numpy as np
from pathlib import Path
from safetensors.torch import save_file
from her2batch.settings import MilSettings
from her2batch.training.bag_data import open_bags
from her2batch.training.fit_mil import fit_mil_network
from her2batch.training.fit_loop import Fold
labels = np.arange(60) % 3
fold = Fold(labels, np.arange(30), np.arange(30, 40), 3, 0)
settings = MilSettings(epochs=2, least_epochs=0, lr=1e-3)
save_file(fit_mil_network("clam-sb", open_bags(Path(sys.argv[1])), fold, settings).weights, sys.argv[2])
"""
    made, labels = planted(60)
    path = tmp_path / "stain.arrow"
    gather_bags(cohort(tmp_path / "c", made), "stain", "stain", list(made), path)
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "w")], check=True)
    own = fit_mil_network(
        "clam-sb", open_bags(path), fold_of(labels), MilSettings(epochs=2, least_epochs=0, lr=1e-3)
    ).weights
    other = load_file(tmp_path / "w")
    assert all(torch.equal(other[key], one) for key, one in own.items())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 5.0, 100.0])
def test_clipped_gradients_are_those_of_torch(scale: float) -> None:
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(shape)) for shape in ((7, 5), (5,), (3,))] for _ in range(2))
    for one, other in zip(ours[:2], theirs[:2], strict=True):  # the last has no gradient
        one.grad = scale * torch.randn(one.shape)
        other.grad = one.grad.clone()
    before = [one.grad.clone() for one in ours[:2]]
    clip_gradients(ours, 5.0)
    torch.nn.utils.clip_grad_norm_(theirs, 5.0)
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(ours[:2], theirs[:2], strict=True))
    assert torch.equal(ours[0].grad, before[0]) is (scale < 1)


@pytest.mark.slow
def test_bags_are_padded_with_zeros(found: tuple[Bags, np.ndarray]) -> None:
    bags, _ = found
    for row, (bag, n) in zip((0, 3), feed_bags(bags, np.array([0, 3]), "cpu"), strict=True):
        assert n == bags.sizes[row]
        assert torch.equal(bag, bags.of(row).to(bag.dtype))
        assert not bag[n:].any()


@pytest.mark.slow
@pytest.mark.parametrize("ordinal", ["corn", "cumulative-link"])
def test_ordinal_losses_learn_from_smoothed_labels(ordinal: str, found: tuple[Bags, np.ndarray]) -> None:
    bags, labels = found
    matrix = np.array([[0.9, 0.1, 0], [0.1, 0.8, 0.1], [0, 0.1, 0.9]], np.float32)
    settings = MilSettings(epochs=8, least_epochs=0, lr=1e-3, ordinal=ordinal)
    fold = Fold(labels, np.arange(30), np.arange(30, 40), 3, 0, targets=matrix[labels])
    net = build_mil_network("clam-sb", bags.dim, 3, settings)
    net.load_state_dict(fit_mil_network("clam-sb", bags, fold, settings).weights)
    p, _ = predict_bags(net.eval(), bags, np.arange(40, 60), 3)
    assert np.allclose(p.sum(1), 1, atol=1e-5)
    assert np.corrcoef(p @ np.arange(3), labels[40:])[0, 1] > 0.5
