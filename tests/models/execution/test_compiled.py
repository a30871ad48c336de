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
import sys, time
import numpy as np, timm, torch
from pathlib import Path
from safetensors.torch import save_file
from her2batch.models.encoders import load_encoder
from her2batch.settings import Plan
from her2batch.vision.membrane import TileBatch
from her2batch.vision.stain import Stains
folder = Path(sys.argv[1])
plan = Plan(encoders=("timm:test_vit",), tile=160, compile=sys.argv[2] == "compiled")
torch.manual_seed(0)
if not (folder / "test_vit.safetensors").exists():
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "test_vit.safetensors")
encoder = load_encoder("timm:test_vit", "cpu", folder, plan)
pixels = np.random.default_rng(0).integers(0, 256, (11, 160, 160, 3), np.uint8)
np.save(folder / f"{sys.argv[3]}.npy", encoder(TileBatch(pixels, 0.5, Stains())))
if plan.compile:
    from torch._dynamo.utils import counters
    print(*(counters["inductor"][name] for name in ("fxgraph_cache_miss", "fxgraph_cache_hit")))
else:
    print("torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.slow
def test_compiled_networks_give_the_same_bytes_and_the_second_process_loads_them(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}

    def run(how: str, name: str) -> str:
        words = [sys.executable, "-c", PROGRAM, str(tmp_path), how, name]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("plain", "plain") == "False"  # the compiler is loaded only where it is asked for
    misses, hits = map(int, run("compiled", "first").split())
    assert misses >= 1
    assert hits == 0
    misses, hits = map(int, run("compiled", "second").split())
    assert misses == 0
    assert hits >= 1
    plain, first, second = (np.load(tmp_path / f"{name}.npy") for name in ("plain", "first", "second"))
    assert first.tobytes() == second.tobytes()
    assert np.allclose(first, plain, atol=5e-3)
