"""Compiled networks: the results of the network, the same in every process, and a clear error without a compiler."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from her2batch.errors import InputError
from her2batch.models.execution import compiled
from her2batch.models.execution.compiled import FixedBatch, cache_folder, check_compiler, compiling_alone


class Sizes(torch.nn.Module):
    """Mean colour; keeps the shapes that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        assert x.is_contiguous(memory_format=torch.channels_last)
        return x.mean((2, 3))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_every_call_has_the_same_number_of_tiles(count: int) -> None:
    net = Sizes()
    x = torch.rand(count, 4, 4, 3).permute(0, 3, 1, 2)
    assert torch.equal(FixedBatch(net, 8)(x), x.mean((2, 3)))
    assert net.seen == [(8, 3, 4, 4)]


def test_a_machine_without_a_compiler_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiler("cpu")  # there is one here

    def missing() -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(InputError, match="No working C") as refused:
        check_compiler("cpu")
    assert "omit --compile" in refused.value.remedy
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="Triton is not installed"):
        check_compiler("cuda")


def test_the_cache_is_a_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "her2batch" / "compiled"
    with compiling_alone():
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache_folder())
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "given"))
    assert cache_folder() == tmp_path / "given"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "folder"))
    with pytest.raises(InputError, match="cannot be cached") as refused, compiling_alone():
        pass
    assert "TORCHINDUCTOR_CACHE_DIR" in refused.value.remedy


PROGRAM = """
import sys
from pathlib import Path
import numpy as np, torch
from her2batch.models.device import Normalization, run_network, set_deterministic
from her2batch.models.execution.compiled import compile_once
set_deterministic("cpu")
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.GELU()).eval().to(memory_format=torch.channels_last)
def run(network, tiles):
    return run_network(network, tiles, Normalization((0.5,) * 3, (0.2,) * 3), "cpu", lambda out: out.mean((2, 3)))
pixels = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), np.uint8)
used = compile_once(net, 8, "cpu", 32, run) if sys.argv[2] == "compiled" else net
np.save(Path(sys.argv[1]) / f"{sys.argv[3]}.npy", run(used, pixels))
if used is net:
    print("torch._inductor.compile_fx" in sys.modules)
else:
    from torch._dynamo.utils import counters
    print(*(counters["inductor"][name] for name in ("fxgraph_cache_miss", "fxgraph_cache_hit")))
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_compiled_networks_give_the_same_bytes_and_the_second_process_loads_them(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}

    def run(how: str, name: str) -> str:
        words = [sys.executable, "-c", PROGRAM, str(tmp_path), how, name]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("plain", "plain") == "False"  # the compiler is loaded only where it is asked for
    misses, hits = map(int, run("compiled", "first").split())
    assert (misses, hits) == (1, 0)  # one shape, though the last batch has three tiles
    misses, hits = map(int, run("compiled", "second").split())
    assert (misses, hits) == (0, 1)
    plain, first, second = (np.load(tmp_path / f"{name}.npy") for name in ("plain", "first", "second"))
    assert first.tobytes() == second.tobytes()
    assert np.allclose(first, plain, atol=1e-5)
