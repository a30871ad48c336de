"""First layer of a network with random weights: it sees the colours of the images that it is trained on."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from her2batch.models.nets import build_network, network_spec
from her2batch.settings import ImageSettings
from her2batch.training.fine_tuning.first_layer import channel_statistics, standardise_first_layer
from her2batch.training.fit_image import fit_image_network
from her2batch.training.fit_loop import Fold

EDGE = 32


def nearly_white(n: int, edge: int = EDGE) -> np.ndarray:
    """Thumbnails of pale tissue in the middle of glass, every other one a little browner than bluer."""
    images = np.full((n, edge, edge, 3), 240.0)
    middle = slice(edge // 4, 3 * edge // 4)
    images[:, middle, middle] = np.array([[208, 198, 218], [214, 200, 200]])[np.arange(n) % 2, None, None]
    noise = np.random.default_rng(0).normal(0, 6, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def normalised(images: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((images / 255 - mean) / deviation).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("method", ["convnext-small", "vit-base", "timm:test_vit"])
def test_the_layer_sees_mean_0_and_deviation_1_without_another_normalisation(method: str) -> None:
    images, rows, given = nearly_white(12), np.arange(8), network_spec(method).normalization
    torch.manual_seed(0)
    network = build_network(method, 2, EDGE, "full" if method.startswith("timm:") else "tiny").eval()
    with torch.no_grad():
        expected = network(normalised(images, *channel_statistics(images.__getitem__, rows)))
        assert standardise_first_layer(network, given, images.__getitem__, rows)
        found = network(normalised(images, np.array(given.mean), np.array(given.std)))
    assert_allclose(found.numpy(), expected.numpy(), atol=2e-3)


@pytest.mark.parametrize("method", ["resnet50", "densenet201", "efficientnet-lite0"])
def test_a_layer_that_batch_normalisation_follows_stays_as_it_is(method: str) -> None:
    network = build_network(method, 2, EDGE, "tiny")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = nearly_white(4)
    assert not standardise_first_layer(network, network_spec(method).normalization, images.__getitem__, np.arange(4))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_statistics_are_those_of_the_given_rows_alone() -> None:
    images = np.concatenate([nearly_white(6), np.zeros((2, EDGE, EDGE, 3), np.uint8)])
    mean, deviation = channel_statistics(images.__getitem__, np.arange(6))
    assert_allclose(mean, images[:6].reshape(-1, 3).mean(0) / 255)
    assert_allclose(deviation, images[:6].reshape(-1, 3).std(0) / 255)


def test_images_of_one_colour_give_finite_weights() -> None:
    network, images = build_network("convnext-small", 2, EDGE, "tiny"), np.full((3, EDGE, EDGE, 3), 240, np.uint8)
    assert standardise_first_layer(
        network, network_spec("convnext-small").normalization, images.__getitem__, np.arange(3)
    )
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


@pytest.mark.parametrize("method", ["convnext-small", "vit-base"])
def test_a_network_with_random_weights_learns_faint_tints_near_white(method: str) -> None:
    images = nearly_white(48, 64)
    fold = Fold(np.arange(48, dtype=np.int64) % 2, np.arange(40), np.arange(40, 48), 2, seed=0)
    settings = ImageSettings(size="tiny", pretrained="none", lr=1e-4, epochs=10, warmup=1, batch=4)
    assert fit_image_network(method, images, fold, settings).progress.best_loss < math.log(2) / 2
