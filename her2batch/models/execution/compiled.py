"""Networks that torch.compile turns into code for this machine, once, for one number of tiles.

The code is cached in a folder of the user, which all workers of a machine share: one of them compiles while the others
wait. The last bits of the results are other ones than without, so that `compile` is a setting of the plan.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from her2batch.errors import InputError, one_line

REMEDY: Final = "omit --compile, or install what is missing on every machine that runs networks"

CACHE_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"


class FixedBatch(torch.nn.Module):
    """Gives a network the same number of tiles in every call, because it is compiled for this number alone.

    Fewer tiles are filled up with zeros, whose results are left out.
    """

    def __init__(self, network: Any, size: int) -> None:
        """network: called with (size, 3, h, w), channels last."""
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: torch.Tensor) -> Any:
        """Return the results of (n, 3, h, w), n ≤ size."""
        n = len(x)
        if n < self.size:
            x = torch.cat([x, x.new_zeros((self.size - n, *x.shape[1:]))])
        return self.network(x.contiguous(memory_format=torch.channels_last))[:n]


def check_compiler(device: str) -> None:
    """Refuse to compile where torch finds no compiler: before any work, not once a slide. Raises InputError."""
    if torch.device(device).type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise InputError("networks cannot be compiled: Triton is not installed", None, REMEDY)
        if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
            raise InputError("networks cannot be compiled: Triton finds no C compiler", None, REMEDY)
        return
    try:
        importlib.import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    except RuntimeError as error:
        raise InputError(f"networks cannot be compiled: {one_line(error)}", None, REMEDY) from error


def compile_network(network: torch.nn.Module, size: int, device: str) -> FixedBatch:
    """Return a network that is compiled when it is first called, for `size` tiles. Raises InputError.

    The configuration of torch's compiler that is set here is that of the process.
    """
    check_compiler(device)
    config: Any = importlib.import_module("torch._inductor.config")
    config.deterministic = True  # the kernels are chosen by rules, not by timing them on this device
    config.fx_graph_cache = True
    config.compile_threads = 1  # no pool of processes beside each worker
    compiled = torch.compile(network, dynamic=False)
    return FixedBatch(compiled, size)


def compile_once(
    network: torch.nn.Module, size: int, device: str, tile: int, run: Callable[..., object]
) -> torch.nn.Module:
    """Return a network compiled for `size` tiles, or loaded from this machine's cache. Raises InputError.

    run: runs a network on tiles, (n, tile, tile, 3) uint8, as it will be run.
    """
    with compiling_alone():
        compiled = compile_network(network, size, device)
        run(compiled, np.zeros((size, tile, tile, 3), np.uint8))
    return compiled


@contextmanager
def compiling_alone() -> Iterator[None]:
    """Hold the lock of this machine's cache, so that a network is compiled once and then loaded.

    Call it before anything is compiled: it also sets the folder of the cache.  Raises InputError.
    """
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder / ".her2batch-lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        what = f"compiled networks cannot be cached ({error.strerror})"
        remedy = f"set {CACHE_VARIABLE} to a folder that can be written to, or omit --compile"
        raise InputError(what, folder, remedy) from error
    os.environ[CACHE_VARIABLE] = str(folder)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Return the folder of compiled code: as the environment names it for torch, else in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "her2batch" / "compiled"
