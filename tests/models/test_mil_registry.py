"""MIL methods by name: built-in rows and rows that a program registers."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from her2batch.errors import InputError
from her2batch.experiments.train import TrainingRequest, train
from her2batch.models import mil_registry
from her2batch.models.attention import MilOutput
from her2batch.models.mil_registry import (
    MIL_METHODS,
    MilMethod,
    build_mil_network,
    is_mil_method,
    mil_method,
    mil_method_names,
    mil_package,
    register_mil,
)
from her2batch.runtime.score import score
from her2batch.settings import MilSettings, Resources, Training, TrainingResources
from tests.training.stores import cohort, planted


@pytest.fixture(autouse=True)
def _forget_registrations() -> Iterator[None]:
    yield
    mil_registry._registry.unregister("toy")


class Toy(nn.Module):
    def __init__(self, dim: int, n_classes: int, settings: MilSettings) -> None:
        super().__init__()
        self.scores = nn.Linear(dim, n_classes)

    def forward(self, bag, label=None, rng=None, size=None) -> MilOutput:
        n = len(bag) if size is None else size
        logits = self.scores(bag[:n].float().mean(0))
        loss = None if label is None else F.cross_entropy(logits[None], torch.tensor([label]))
        return MilOutput(logits, torch.full((1, n), 1 / n), loss)


@pytest.mark.parametrize("method", MIL_METHODS)
def test_a_network_takes_bags_of_any_size(method: str) -> None:
    net = build_mil_network(method, 12, 4, MilSettings()).eval()
    for n in (1, 7, 40):
        out = net(torch.randn(n, 12))
        assert out.logits.shape == (4,)
        assert out.attention.shape == (4 if method == "clam-mb" else 1, n)


@pytest.mark.parametrize("method", MIL_METHODS)
def test_a_row_names_settings_that_exist(method: str) -> None:
    row = MIL_METHODS[method]
    fields = row.settings.model_fields.keys()
    assert row.defaults.keys() | row.space.keys() | set(row.shape) <= fields
    assert row.settings.model_validate(dict(row.defaults))


def test_settings_reach_the_network() -> None:
    assert build_mil_network("clam-sb", 12, 3, MilSettings(dropout=0.5, k=3, bag_weight=0.9)).shape.k == 3
    assert build_mil_network("dtfd-maxs", 12, 3, MilSettings(pseudo_bags=2, splits_at_test=1)).shape.splits == 1


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="clam-sb"):
        build_mil_network("abmil", 12, 3, MilSettings())
    assert not is_mil_method("abmil")
    assert mil_package("abmil") is None


def test_a_registered_method_is_used_by_name() -> None:
    register_mil("toy", MilMethod(Toy))
    assert is_mil_method("toy")
    assert mil_method_names() == (*MIL_METHODS, "toy")
    assert mil_package("toy") is None
    assert build_mil_network("toy", 5, 2, MilSettings())(torch.ones(3, 5)).logits.shape == (2,)


@pytest.mark.parametrize("name", ["clam-sb", "svm", "convnext-small", "membrane"])
def test_a_name_of_a_built_in_method_cannot_be_registered(name: str) -> None:
    with pytest.raises(InputError, match="her2batch itself uses this name"):
        register_mil(name, MilMethod(Toy))
    assert MIL_METHODS.get(name) is mil_registry._registry.find(name)


def test_only_a_mil_method_can_be_registered() -> None:
    with pytest.raises(InputError, match="it is a type, not a MilMethod"):
        register_mil("toy", dict)  # type: ignore[arg-type]


def test_a_network_that_cannot_be_imported_is_named() -> None:
    register_mil("toy", MilMethod("no_such_package:build"))
    with pytest.raises(InputError, match="network of MIL method 'toy' cannot be imported"):
        build_mil_network("toy", 5, 2, MilSettings())
    assert mil_method("toy").build == "no_such_package:build"


def test_a_method_is_trained_and_scores_as_soon_as_it_has_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MIL_METHODS, "toy", MilMethod(Toy, defaults={"lr": 0.01, "epochs": 5}, sampling="shuffled"))
    bags, classes = planted(18)
    store = cohort(tmp_path / "cohort", bags)
    labels = tmp_path / "labels.csv"
    rows = [f"{name},P{name},{('0', '1+', '3+')[k]}" for name, k in zip(bags, classes, strict=True)]
    labels.write_text("\n".join(["slide_id,patient_id,her2", *rows]))

    training = Training(methods=("toy",), folds=3)
    request = TrainingRequest(store.root, tmp_path / "run", labels)
    summary = train(request, training, TrainingResources(workers=0))
    assert summary.exit_code == 0, summary.failed
    tested = pq.read_table(tmp_path / "run" / "predictions.parquet")
    assert sorted(tested["slide_id"].to_pylist()) == sorted(bags)
    assert set(tested["method"].to_pylist()) == {"toy"}

    scored = score(store.root, tmp_path / "run" / "bundle", Resources(workers=0))
    assert (scored.scored, scored.failures) == (18, {})
    entry = scored.bundle.info.models[0]
    assert (entry.method, entry.dim, entry.settings) == ("toy", 16, None)
    assert scored.bundle.info.packages is None
