"""How many tiles a network gets at once: within the free memory, and the same for all slides of a cohort."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from her2batch.errors import StoreError
from her2batch.models.execution.batch_size import (
    MAX_BATCH,
    RESERVE_BYTES,
    BatchSizes,
    find_batch,
    largest_batch,
    memory_of,
)
from her2batch.pipeline.tile_reader import TILES_PER_BATCH

GB = 10**9


class Gpu:
    """A device with so much memory. A network takes some for itself and so much for every tile, once `jump` tiles more.

    tries: numbers of tiles of the forward passes.
    """

    def __init__(self, total: int, network: int, tile: int, jump: int = 10**9) -> None:
        self.total, self.network, self.tile, self.jump = total, network, tile, jump
        self.tries: list[int] = []
        self.highest = 0

    def run(self, count: int) -> None:
        self.tries.append(count)
        self.highest = self.network + count * self.tile * (2 if count > self.jump else 1)
        if self.highest > self.total:
            raise torch.OutOfMemoryError("out of memory")

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self.highest

    def free(self) -> int:
        return self.total - self.network

    def release(self) -> None:
        pass


def test_a_network_gets_as_many_tiles_as_are_decoded_at_once() -> None:
    assert MAX_BATCH == TILES_PER_BATCH


@given(st.floats(1, 1e10), st.integers(0, 10**12), st.integers(1, 512))
def test_the_batch_is_the_largest_power_of_two_that_fits(tile: float, free: int, most: int) -> None:
    size = largest_batch(tile, free, most)
    assert size & (size - 1) == 0
    assert size <= most
    assert size == 1 or size * tile <= free - RESERVE_BYTES
    assert 2 * size > most or 2 * size * tile > free - RESERVE_BYTES


@pytest.mark.parametrize(("gpu", "expected"), [
    (Gpu(140 * GB, GB, GB // 10), 256),
    (Gpu(24 * GB, GB, GB // 10), 128),  # 200 would fit
    (Gpu(8 * GB, GB, GB // 10), 32),
    (Gpu(140 * GB, GB, 0), 256),
    (Gpu(3 * GB, GB, GB // 10), 1),  # no room beside the reserve
    (Gpu(16 * GB, GB, GB // 10, jump=64), 64),  # 128 take more than the two small batches promise
    (Gpu(2 * GB, GB, GB // 4), 4),  # not even the small batches fit
])  # fmt: skip
def test_the_batch_fits_into_free_memory(gpu: Gpu, expected: int) -> None:
    assert find_batch(gpu.run, gpu) == expected
    assert gpu.tries[-1] == expected or expected == 1


def test_another_error_of_the_network_is_not_taken_for_a_lack_of_memory() -> None:
    def fail(_: int) -> None:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        find_batch(fail, Gpu(GB, 0, 0))


def test_the_first_number_of_a_network_is_kept(tmp_path: Path) -> None:
    sizes = BatchSizes(tmp_path / "batch_sizes")
    assert sizes.settle("timm:a/b-bfloat16", lambda: 64) == 64
    again = BatchSizes(tmp_path / "batch_sizes", share=0.5)
    assert again.settle("timm:a/b-bfloat16", lambda: pytest.fail("it is recorded")) == 64
    assert again.settle("uni-bfloat16", lambda: 8) == 8
    assert sorted(path.name for path in sizes.folder.iterdir()) == ["timm-a-b-bfloat16.json", "uni-bfloat16.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"tiles": "many"}', '{"tiles": 0}'])
def test_a_damaged_record_is_an_error_with_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "uni.json").write_text(text)
    with pytest.raises(StoreError, match=r"tiles.*at once") as error:
        BatchSizes(tmp_path).settle("uni", lambda: 8)
    assert error.value.path == tmp_path / "uni.json"


def test_the_memory_of_a_processor_decides_nothing() -> None:
    assert memory_of("cpu", 1.0) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu_is_measured() -> None:
    memory = memory_of("cuda", 0.5)
    assert memory is not None
    before = memory.free()
    kept: list[torch.Tensor] = []
    peak = memory.peak(lambda: kept.append(torch.zeros(2**28, device="cuda")))
    assert peak >= 2**30
    assert before - memory.free() >= 2**30 - 2**22
    kept.clear()
    memory.release()
