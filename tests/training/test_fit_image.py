"""Fine-tuning of image networks: learning, losses, resumed training, and training in two processes."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing

from her2batch.errors import InputError
from her2batch.models.nets import NETWORKS, initial_network, network_spec
from her2batch.settings import ImageSettings
from her2batch.training import fit_loop
from her2batch.training.fit_image import (
    class_weights,
    even_batches,
    fit_image_network,
    focal_loss,
    learning_rate,
    predict_images,
    sample_losses,
    trained_network,
)
from her2batch.training.fit_loop import FitResult, Fold, Progress, Tensors
from her2batch.training.image_data import Pixels, open_stack, save_images

EDGE = 64
GLASS = np.array([240, 238, 235], np.uint8)
QUICK = ImageSettings(size="tiny", pretrained="none", lr=2e-3, epochs=4, warmup=1, batch=6)


def pictures(n: int, edge: int = EDGE) -> Pixels:
    """Tissue in the middle of glass, every other one brown, the others blue."""
    noise = np.random.default_rng(0).normal(0, 25, (n, edge // 2, edge // 2, 3))
    colours = np.array([[60, 80, 160], [120, 80, 40]])[np.arange(n) % 2]
    out = np.broadcast_to(GLASS, (n, edge, edge, 3)).copy()
    middle = slice(edge // 4, 3 * edge // 4)
    out[:, middle, middle] = np.clip(colours[:, None, None] + noise, 0, 255)
    return out


def fold(n: int, n_classes: int = 2) -> Fold:
    """All but the last eight train, the next four validate; the last four are nobody's."""
    return Fold(np.arange(n, dtype=np.int64) % 2, np.arange(n - 8), np.arange(n - 8, n - 4), n_classes, seed=1)


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("method", NETWORKS)
def test_every_network_learns_to_separate_brown_from_blue(method: str) -> None:
    pixels, settings = pictures(24), QUICK.model_copy(update={"epochs": 16})
    fitted = fit_image_network(method, pixels, fold(24), settings, fill=GLASS)
    net = trained_network(method, fitted.weights, 2, EDGE, "tiny")
    p = predict_images(net, pixels, np.arange(20, 24), 2, "cpu", network_spec(method).normalization)
    assert p.shape == (4, 2)
    assert p.dtype == np.float32
    assert p.argmax(1).tolist() == [0, 1, 0, 1]
    assert fitted.progress.best_loss < math.log(2)


@pytest.mark.parametrize("method", NETWORKS)
def test_resumed_training_gives_the_same_bytes(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_loop, "SAVE_EVERY_S", 0.0)
    pixels, checkpoint = pictures(20), tmp_path / "checkpoint.safetensors"
    settings = QUICK.model_copy(update={"loss": "focal", "jitter": 0.1})

    def stop(at: Progress) -> None:
        if at.epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit_image_network(method, pixels, fold(20), settings, "cpu", GLASS, checkpoint, stop)
    torch.manual_seed(99)  # whatever else the process drew
    seen: list[int] = []
    again = fit_image_network(
        method, pixels, fold(20), settings, "cpu", GLASS, checkpoint, lambda at: seen.append(at.epoch)
    )
    whole = fit_image_network(method, pixels, fold(20), settings, "cpu", GLASS)
    assert seen == [3, 4]
    assert again.progress == whole.progress
    assert equal(again.weights, whole.weights)


STAGED = QUICK.model_copy(
    update={"layer_decay": 0.7, "frozen_epochs": 1, "unfreeze_epochs": 2, "ema": 0.8, "stain_jitter": 0.1, "epochs": 4}
)


def test_frozen_layers_and_the_average_resume_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_loop, "SAVE_EVERY_S", 0.0)
    arguments = ("efficientnet-lite0", pictures(20), fold(20), STAGED, "cpu", GLASS)

    def stop(at: Progress) -> None:
        if at.epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit_image_network(*arguments, tmp_path / "checkpoint", stop)
    again, whole = fit_image_network(*arguments, tmp_path / "checkpoint"), fit_image_network(*arguments)
    assert again.progress == whole.progress
    assert equal(again.weights, whole.weights)


def test_in_frozen_epochs_only_the_classifier_changes() -> None:
    once = STAGED.model_copy(update={"epochs": 1, "ema": 0.0})
    begun = initial_network("efficientnet-lite0", 2, EDGE, "tiny", "none", seed=1)
    fitted = fit_image_network("efficientnet-lite0", pictures(20), fold(20), once, "cpu", GLASS)
    changed = {name for name, value in begun.named_parameters() if not torch.equal(value, fitted.weights[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_the_weights_that_are_kept_are_those_that_were_validated() -> None:
    losses: list[float] = []
    fitted = fit_image_network(
        "efficientnet-lite0", pictures(20), fold(20), STAGED, "cpu", GLASS, report=lambda at: losses.append(at.val_loss)
    )
    net = trained_network("efficientnet-lite0", fitted.weights, 2, EDGE, "tiny")
    p = predict_images(net, pictures(20), fold(20).val, 2, "cpu", network_spec("efficientnet-lite0").normalization)
    loss = -np.log(p[np.arange(4), fold(20).labels[fold(20).val]]).mean()
    assert loss == pytest.approx(min(losses), abs=1e-4)


def test_training_does_not_change_the_global_random_state() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fit_image_network("vit-base", pictures(12), fold(12), QUICK.model_copy(update={"epochs": 1}))
    assert torch.equal(torch.get_rng_state(), before)


def test_images_may_be_in_several_files(tmp_path: Path) -> None:
    pixels = pictures(20)
    for k, part in enumerate((pixels[:7], pixels[7:])):
        save_images(part, tmp_path / f"{k}.npy")
    files = open_stack([tmp_path / "0.npy", tmp_path / "1.npy"])
    once = QUICK.model_copy(update={"epochs": 1})
    one, other = (
        fit_image_network("resnet50", pixels, fold(20), once),
        fit_image_network("resnet50", files, fold(20), once),
    )
    assert equal(one.weights, other.weights)
    net, rows = trained_network("resnet50", one.weights, 2, EDGE, "tiny"), np.array([19, 3, 3, 8])
    assert np.array_equal(predict_images(net, files, rows, 2), predict_images(net, pixels, rows, 2))
    assert np.allclose(predict_images(net, files, rows, 2)[1], predict_images(net, files, rows[1:2], 2)[0], atol=1e-6)
    assert predict_images(net, files, rows[:0], 2).shape == (0, 2)


def test_a_class_without_images_is_allowed() -> None:
    for loss in ("weighted", "focal"):
        once = QUICK.model_copy(update={"loss": loss, "epochs": 1})
        assert math.isfinite(fit_image_network("resnet50", pictures(12), fold(12, 4), once).progress.train_loss)
    assert class_weights(np.array([0, 0, 0, 2]), 4).tolist() == pytest.approx([2 / 3, 0, 2, 0])


def test_a_fold_without_images_is_refused() -> None:
    for train, val in ((0, 4), (4, 0)):
        empty = Fold(np.zeros(8, np.int64), np.arange(train), np.arange(4, 4 + val), 2, 0)
        with pytest.raises(InputError, match="no image"):
            fit_image_network("resnet50", pictures(8), empty, QUICK)


def test_losses_equal_the_formulas() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    labels, weights = torch.tensor([0, 1]), torch.tensor([2.0, 0.5, 1.0])
    of = partial(sample_losses, p.log(), labels, weights=weights)
    assert of(kind="cross-entropy").tolist() == pytest.approx([-math.log(0.5), -math.log(0.8)])
    assert of(kind="weighted").tolist() == pytest.approx([-2 * math.log(0.5), -0.5 * math.log(0.8)])
    assert of(kind="focal").tolist() == pytest.approx([-0.25 * math.log(0.5), -0.04 * math.log(0.8)])


@given(st.lists(st.floats(1e-6, 30), min_size=1, max_size=8))
def test_focal_loss_with_gamma_0_is_cross_entropy(values: list[float]) -> None:
    cross = torch.tensor(values)
    assert torch.equal(focal_loss(cross, 0), cross)
    assert torch.allclose(focal_loss(cross, 1e-6), cross, rtol=1e-4)
    assert (focal_loss(cross, 2) <= cross).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_class_weights_have_mean_1_over_the_images(labels: list[int]) -> None:
    weights = class_weights(np.array(labels), 6)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
    totals = np.bincount(labels, weights[labels], 6)
    assert totals[totals > 0] == pytest.approx(len(labels) / len(set(labels)), rel=1e-5)  # every class weighs the same


@given(st.integers(2, 500), st.integers(2, 32))
def test_batches_are_even_and_have_no_single_image(n: int, size: int) -> None:
    parts = even_batches(np.arange(n), size)
    lengths = [len(one) for one in parts]
    assert np.array_equal(np.concatenate(parts), np.arange(n))
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 2 or size == 2


def test_the_learning_rate_rises_then_falls_to_0() -> None:
    settings = ImageSettings(lr=0.8, epochs=6, warmup=2)
    sizes = [learning_rate(step, 2, settings) for step in range(12)]
    assert sizes[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert sizes[8] == pytest.approx(0.4)  # halfway down the cosine
    assert sizes == sorted(sizes[:4]) + sorted(sizes[4:], reverse=True)
    assert 0 < sizes[-1] < 0.04


@pytest.mark.long
@pytest.mark.parametrize("method", NETWORKS)
def test_full_networks_take_steps(method: str) -> None:
    """Four steps of eight images of 224 px; minutes on one core."""
    pretrained = "imagenet" if NETWORKS[method].package is not None else "none"
    settings = ImageSettings(pretrained=pretrained, epochs=2, warmup=0, batch=8)
    losses: list[float] = []
    pixels, parts = pictures(20, 224), Fold(np.arange(20) % 2, np.arange(16), np.arange(16, 20), 2, 0)
    fitted = fit_image_network(
        method, pixels, parts, settings, fill=GLASS, report=lambda at: losses.append(at.val_loss)
    )
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    p = predict_images(
        trained_network(method, fitted.weights, 2, 224, "full"), pixels, np.arange(2), 2, "cpu",
        network_spec(method).normalization,
    )  # fmt: skip
    assert np.allclose(p.sum(1), 1, atol=1e-5)


TOGETHER = ("vit-base", "resnet50")


def together(rank: int, folder: Path, size: int) -> None:
    """What each process of a group does."""
    store = distributed.FileStore(str(folder / "store"), size)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    for method in TOGETHER:
        fitted = in_two_goes(method, folder / f"{method}.checkpoint")
        torch.save({**fitted.weights, "epoch": torch.tensor(fitted.progress.epoch)}, folder / f"{method}.{rank}")
    lone = Fold(np.zeros(8, np.int64), np.arange(1), np.arange(4), 2, 0)
    with pytest.raises(InputError, match="2 processes cannot share"):
        fit_image_network("resnet50", pictures(8), lone, QUICK)
    distributed.destroy_process_group()


def in_two_goes(method: str, checkpoint: Path) -> FitResult:
    """A fit that ends after epoch 2, then goes on."""
    fit_loop.SAVE_EVERY_S = 0.0

    def stop(at: Progress) -> None:
        if at.epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit_image_network(method, pictures(18), fold(18), QUICK, "cpu", GLASS, checkpoint, stop)
    return fit_image_network(method, pictures(18), fold(18), QUICK, "cpu", GLASS, checkpoint)


@pytest.mark.long
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    multiprocessing.spawn(together, (tmp_path, 2), nprocs=2)
    for method in TOGETHER:
        first, second = (torch.load(tmp_path / f"{method}.{rank}", weights_only=True) for rank in range(2))
        assert equal(first, second)
        assert int(first["epoch"]) == QUICK.epochs
    shared = torch.load(tmp_path / "vit-base.0", weights_only=True)  # no BatchNorm: its means are of each one's share
    alone = fit_image_network("vit-base", pictures(18), fold(18), QUICK, "cpu", GLASS).weights
    begun = initial_network("vit-base", 2, EDGE, "tiny", "none", seed=1).state_dict()
    assert apart(shared, alone) < 0.1 * apart(begun, alone)  # 0.03; all of it Adam's, where a gradient is near 0


def apart(one: Tensors, other: Tensors) -> float:
    """Euclidean distance of all weights."""
    return math.hypot(*(float((one[key] - other[key]).norm()) for key in other))


def test_losses_of_certain_distributions_are_those_of_the_labels() -> None:
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    weights, certain = torch.tensor([0.5, 1.0, 1.5]), torch.eye(3)[labels]
    for kind in ("cross-entropy", "weighted", "focal"):
        plain, soft = (sample_losses(logits, labels, kind, weights, targets) for targets in (None, certain))
        assert torch.allclose(plain, soft, atol=1e-6)
