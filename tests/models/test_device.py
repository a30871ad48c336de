"""Running a network: batches that fit into memory, and repeatable results."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from her2batch.errors import InputError
from her2batch.models import device
from her2batch.models.device import (
    SUB_BATCH,
    Normalization,
    check_precision,
    run_network,
    set_deterministic,
    settle_batch,
    to_channels_last,
)
from her2batch.models.execution.batch_size import RESERVE_BYTES, BatchSizes
from her2batch.models.execution.smaller_batches import collect_smaller_batches

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def tiles(n: int, edge: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, (n, edge, edge, 3), dtype=np.uint8)


class Mean(torch.nn.Module):
    """Mean colour; holds at most so many tiles, as a small GPU would."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("too many")
        self.seen.append(len(x))
        return x.mean((2, 3))


def same(out: torch.Tensor) -> torch.Tensor:
    return out


@given(st.integers(1, 40))
@settings(deadline=None, max_examples=20)
def test_rows_are_in_the_order_of_the_tiles(n: int) -> None:
    pixels = tiles(n)
    out = run_network(Mean(), pixels, PLAIN, "cpu", same)
    assert out.dtype == np.float32
    assert np.allclose(out, pixels.mean((1, 2)) / 255, atol=1e-5)


def test_pixels_are_normalised_as_the_network_requires() -> None:
    look = Normalization((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    out = run_network(Mean(), np.full((1, 4, 4, 3), 255, np.uint8), look, "cpu", same)
    assert np.allclose(out, [[5, 3, 0.7 / 0.3]])


def test_batch_boundaries_do_not_depend_on_the_number_of_tiles() -> None:
    net = Mean()
    run_network(net, tiles(2 * SUB_BATCH["cpu"] + 1), PLAIN, "cpu", same)
    assert net.seen == [SUB_BATCH["cpu"], SUB_BATCH["cpu"], 1]


def test_the_batch_is_halved_when_memory_runs_out() -> None:
    pixels = tiles(11)
    small = Mean(most=3)
    assert np.array_equal(
        run_network(small, pixels, PLAIN, "cpu", same), run_network(Mean(), pixels, PLAIN, "cpu", same)
    )
    assert small.seen == [2, 2, 2, 2, 2, 1]


def test_a_smaller_batch_than_recorded_is_noted() -> None:
    with collect_smaller_batches() as notes:
        run_network(Mean(most=3), tiles(5), PLAIN, "cpu", same, batch=4)
        run_network(Mean(), tiles(5), PLAIN, "cpu", same, batch=4)
    assert notes == ["a network got 2 tiles at once in place of 4: the memory of cpu ran out"]


def test_a_cohort_keeps_the_batch_that_was_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that is given the memory of a small GPU."""
    batches = BatchSizes(tmp_path, share=0.5)
    assert settle_batch("mean", Mean(), 16, PLAIN, "cpu", None, batches) is None
    assert list(tmp_path.iterdir()) == []

    class Memory:
        def peak(self, work: Callable[[], object]) -> int:
            return len(work()) * 10**6  # type: ignore[arg-type]

        def free(self) -> int:
            return RESERVE_BYTES + 50 * 10**6

        def release(self) -> None:
            pass

    monkeypatch.setattr(device, "memory_of", lambda *_: Memory())
    net = Mean(most=16)
    assert settle_batch("mean", net, 16, PLAIN, "cpu", None, batches) == 16
    assert net.seen == [8, 8, 16, 16]
    assert (tmp_path / "mean-float32.json").read_text() == '{"tiles": 16}'
    assert settle_batch("mean", Mean(most=0), 16, PLAIN, "cpu", None, batches) == 16


def test_too_little_memory_for_one_tile_raises_memory_error() -> None:
    with pytest.raises(MemoryError, match="one tile"):
        run_network(Mean(most=0), tiles(2), PLAIN, "cpu", same)


def test_two_runs_give_the_same_bytes() -> None:
    set_deterministic("cpu")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    first, second = (run_network(net, tiles(20), PLAIN, "cpu", same) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_raises_value_error() -> None:
    with pytest.raises(ValueError, match="no GPU"):
        set_deterministic("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees_with_the_cpu_within_bfloat16() -> None:
    import timm

    net = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    pixels = tiles(150, edge=160)
    ours = run_network(net, pixels, PLAIN, "cpu", same)
    set_deterministic("cuda")
    theirs = run_network(net.to("cuda").to(memory_format=torch.channels_last), pixels, PLAIN, "cuda", same)
    assert np.abs(ours - theirs).max() < 0.05
    assert np.array_equal(theirs, run_network(net, pixels, PLAIN, "cuda", same))


class Halves(torch.nn.Module):
    """A linear layer, whose product shows the precision that it is computed in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.nn.functional.linear(x.mean((2, 3)), torch.full((1, 3), 1 / 3))
        self.dtype = out.dtype
        return out


@pytest.mark.parametrize(
    ("precision", "dtype"), [(None, torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_products_run_in_the_given_precision(precision: device.Precision | None, dtype: torch.dtype) -> None:
    net = Halves()
    out = run_network(net, tiles(3), PLAIN, "cpu", same, precision)
    assert (net.dtype, out.dtype) == (dtype, np.float32)
    assert np.allclose(out[:, 0], tiles(3).mean((1, 2, 3)) / 255, atol=1e-6 if dtype == torch.float32 else 5e-3)


def test_a_processor_without_bfloat16_refuses_it_with_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "product_dtype", lambda _: torch.float32)
    check_precision(None, "cpu")
    check_precision("float32", "cpu")
    with pytest.raises(InputError, match="this processor has no instructions for bfloat16") as refused:
        check_precision("bfloat16", "cpu")
    assert "--precision float32" in refused.value.remedy


def test_a_network_is_moved_with_its_weights_in_channels_last() -> None:
    network = torch.nn.Conv2d(3, 4, 5)
    moved = to_channels_last(network, "cpu")
    assert moved.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.weight, network.weight)
