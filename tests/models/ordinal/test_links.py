"""Ordinal links give probabilities of ordered classes; every network trains, saves and loads with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from her2batch.errors import InputError
from her2batch.models import mil_registry
from her2batch.models.bundle import BundleInfo, ModelEntry, load_mil_head, load_network
from her2batch.models.mil_registry import MIL_METHODS, MilMethod, build_mil_network
from her2batch.models.nets import build_network
from her2batch.models.ordinal.links import CornLink, CumulativeLink, target_loss
from her2batch.models.predictor import apply_temperature
from her2batch.settings import MilSettings
from her2batch.tasks import CLASSES
from her2batch.training.publishing.model_card import loading_lines
from tests.models.bundles import bundle_of

DIM = 16
RAW = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


@pytest.mark.parametrize("link", [CornLink(), CumulativeLink(4)])
def test_probabilities_sum_to_1_and_are_finite_far_from_the_thresholds(link: torch.nn.Module) -> None:
    log_p = link(torch.cat([RAW, RAW * 100]))
    assert torch.isfinite(log_p).all()
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(100, dtype=torch.float64), atol=1e-6)


def test_corn_is_the_product_of_its_conditional_probabilities() -> None:
    f = torch.sigmoid(RAW.diff(dim=-1))
    expected = torch.stack([1 - f[:, 0], f[:, 0] * (1 - f[:, 1]), f[:, 0] * f[:, 1] * (1 - f[:, 2]), f.prod(1)], 1)
    assert torch.allclose(CornLink()(RAW).exp(), expected)


def test_corn_of_two_classes_is_the_softmax() -> None:
    assert torch.allclose(CornLink()(RAW[:, :2]), torch.log_softmax(RAW[:, :2], 1))


def test_cumulative_link_has_proportional_odds_and_starts_at_equal_shares() -> None:
    link = CumulativeLink(4)
    assert torch.allclose(link(torch.zeros(4)).exp(), torch.full((4,), 0.25), atol=1e-6)
    odds = torch.logit(link(RAW).exp().cumsum(1)[:, :3])
    assert torch.allclose(odds - odds[:1], (odds - odds[:1])[:, :1].expand(-1, 3), atol=1e-4)
    assert (link.ordered_thresholds().diff() > 0).all()


def test_the_loss_of_a_certain_distribution_is_that_of_its_class() -> None:
    logits = RAW[:1].float()
    assert torch.equal(target_loss(logits, 2), F.cross_entropy(logits, torch.tensor([2])))
    assert target_loss(logits, 0, torch.tensor([0.0, 0, 1, 0])) == pytest.approx(target_loss(logits, 2))


@pytest.mark.parametrize("ordinal", ["corn", "cumulative-link"])
@pytest.mark.parametrize("method", MIL_METHODS)
def test_every_mil_head_gives_probabilities_and_gradients(method: str, ordinal: str) -> None:
    torch.manual_seed(0)
    net = build_mil_network(method, DIM, 4, MilSettings(ordinal=ordinal))
    bag, target = torch.randn(20, DIM), torch.tensor([0.7, 0.3, 0.0, 0.0])
    net(bag, 0, np.random.default_rng(0), 20, target).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for name, p in net.named_parameters()
               if "thresholds" in name)  # fmt: skip
    assert net.eval()(bag).logits.exp().sum().item() == pytest.approx(1, abs=1e-5)


class Mean(torch.nn.Module):
    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(dim, n_classes)

    def forward(self, bag: torch.Tensor) -> torch.Tensor:
        return self.layer(bag.mean(0))


class OwnLoss(Mean):
    def forward(self, bag, label=None, rng=None, size=None):  # type: ignore[no-untyped-def, override]
        raise NotImplementedError


def test_models_of_other_packages_have_the_losses_too_unless_they_compute_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {"mean-ordinal": MilMethod(Mean), "own-loss-ordinal": MilMethod(OwnLoss)}
    monkeypatch.setattr(mil_registry, "mil_method", found.__getitem__)
    net = build_mil_network("mean-ordinal", DIM, 4, MilSettings(ordinal="cumulative-link"))
    assert net(torch.randn(5, DIM)).logits.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert "ordinal_link.thresholds" in net.state_dict()
    with pytest.raises(InputError, match="computes its own loss"):
        build_mil_network("own-loss-ordinal", DIM, 4, MilSettings(ordinal="corn"))


@pytest.mark.parametrize("ordinal", ["corn", "cumulative-link"])
def test_a_bundle_records_the_loss_and_its_plain_lines_compute_the_same(
    ordinal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = CLASSES["her2-4way"]
    values = {"task": "her2-4way", "classes": classes, "ordinal": ordinal, "temperature": 1.5}
    head = ModelEntry(kind="mil", method="clam-mb", input="stain", dim=DIM, file="head.safetensors", **values)
    image = ModelEntry(kind="thumbnail", method="resnet50", input="thumbnail-224", size="tiny", file="net.safetensors",
                       **values)  # fmt: skip
    info = {"her2batch": "0.1.0", "tasks": ("her2-4way",), "encoder": "stain", "mpp": 0.5, "tile": 224, "licence": "no"}
    torch.manual_seed(0)
    nets = {"head.safetensors": build_mil_network("clam-mb", DIM, 4, MilSettings(ordinal=ordinal)),
            "net.safetensors": build_network("resnet50", 4, 224, "tiny", ordinal).eval()}  # fmt: skip
    with pytest.raises(ValueError, match="ordinal losses, fusions and overlapping patches need format 3"):
        BundleInfo(format=2, models=(head, image), **info)
    bundle = bundle_of(tmp_path / "bundle", BundleInfo(format=3, models=(head, image), **info), nets)
    bag, pixels = torch.randn(30, DIM), torch.randint(0, 256, (2, 3, 224, 224)).float()
    with torch.inference_mode():
        expected = torch.softmax(load_mil_head(bundle, head)(bag).logits / 1.5, 0).numpy()
    p = load_network(bundle, image)(pixels.permute(0, 2, 3, 1).numpy().astype(np.uint8))
    monkeypatch.chdir(bundle.path)
    cases = ((head, {"bag": bag}, expected), (image, {"pixels": pixels}, apply_temperature(p, 1.5)))
    for entry, given, wanted in cases:
        names: dict[str, object] = dict(given)
        exec(str(loading_lines(entry)), names)
        assert np.allclose(names["p"].detach().numpy(), wanted, atol=1e-4)  # type: ignore[attr-defined]
