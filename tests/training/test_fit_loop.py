"""The training loop: early stopping, best weights, and resumed training with the same bytes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from her2batch.training import fit_loop
from her2batch.training.fit_loop import (
    Progress,
    Stopping,
    draw_class_balanced,
    pack_optimiser,
    run_epochs,
    unpack_optimiser,
)
from her2batch.training.recipes.random_streams import random_stream


class Line:
    """Learns the slope of a line from noisy points, with Adam; validation losses may be given."""

    def __init__(self, losses: list[float] | None = None) -> None:
        torch.manual_seed(0)
        self.net = torch.nn.Linear(1, 1)
        self.optimiser = torch.optim.Adam(self.net.parameters(), 0.05)
        self.losses = losses
        self.number = 0

    def epoch(self, number: int) -> float:
        self.number = number
        x = torch.from_numpy(random_stream(7, number).normal(size=(8, 1)).astype(np.float32))
        loss = (self.net(x) - 3 * x).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def validate(self) -> float:
        return self.losses[self.number - 1] if self.losses else float((self.net.weight - 3).abs())

    def state(self) -> dict[str, torch.Tensor]:
        return {**{f"net/{k}": v for k, v in self.net.state_dict().items()}, **pack_optimiser(self.optimiser)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.net.load_state_dict({k.removeprefix("net/"): v for k, v in state.items() if k.startswith("net/")})
        unpack_optimiser(self.optimiser, {k: v for k, v in state.items() if not k.startswith("net/")})

    def weights(self) -> dict[str, torch.Tensor]:
        return {key: one.clone() for key, one in self.net.state_dict().items()}


@pytest.mark.parametrize(("losses", "stopping", "epochs", "best"), [
    ([3, 2, 1, 2, 2, 2, 2], Stopping(7, 3), 6, 3),  # three epochs without a smaller loss
    ([3, 2, 1, 2, 2, 2, 2], Stopping(7, 3, least=7), 7, 3),  # but not before the seventh
    ([3, 2, 1, 0.5, 0.4], Stopping(5, 1), 5, 5),
    ([1, 1, 1], Stopping(9, 2), 3, 1),  # as small is not smaller
])  # fmt: skip
def test_training_ends_by_early_stopping(losses: list[float], stopping: Stopping, epochs: int, best: int) -> None:
    found = run_epochs(Line(losses), stopping)
    assert (found.progress.epoch, found.progress.best_epoch, found.progress.best_loss) == (
        epochs,
        best,
        losses[best - 1],
    )


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    seen: list[dict[str, torch.Tensor]] = []
    learner = Line([3, 1, 2, 2])
    found = run_epochs(learner, Stopping(4, 4), report=lambda _: seen.append(learner.weights()))
    assert torch.equal(found.weights["weight"], seen[1]["weight"])


class Killed(Exception):
    """As if the power went."""


def test_resumed_training_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_loop, "SAVE_EVERY_S", 0.0)
    whole = run_epochs(Line(), Stopping(9, 9))

    def kill(at: Progress) -> None:
        if at.epoch == 4:
            raise Killed

    with pytest.raises(Killed):
        run_epochs(Line(), Stopping(9, 9), tmp_path / "checkpoint", kill)
    told: list[int] = []
    again = run_epochs(Line(), Stopping(9, 9), tmp_path / "checkpoint", lambda at: told.append(at.epoch))
    assert told == [5, 6, 7, 8, 9]
    assert again.progress == whole.progress
    assert again.history == whole.history
    assert len(whole.history) == 9
    assert all(torch.equal(again.weights[key], one) for key, one in whole.weights.items())


@pytest.mark.parametrize("spoiled", [b"", b"no safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_checkpoint_is_ignored(spoiled: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(spoiled)
    told: list[int] = []
    run_epochs(Line(), Stopping(3, 3), tmp_path / "checkpoint", lambda at: told.append(at.epoch))
    assert told == [1, 2, 3]


def test_a_loss_that_is_not_finite_ends_training() -> None:
    with pytest.raises(FloatingPointError, match="epoch 2"):
        run_epochs(Line([1.0, math.nan]), Stopping(5, 5))


@given(st.lists(st.integers(0, 2), min_size=30, max_size=60).filter(lambda one: len(set(one)) == 3), st.integers(0, 9))
def test_class_balanced_sampling_draws_all_classes_equally(labels: list[int], seed: int) -> None:
    array = np.array(labels)
    drawn = np.concatenate([array[draw_class_balanced(array, random_stream(seed, k))] for k in range(40)])
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    assert np.abs(shares - 1 / 3).max() < 0.08
    assert len(draw_class_balanced(array, random_stream(seed))) == len(labels)
