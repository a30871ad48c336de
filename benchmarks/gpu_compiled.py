"""Step of the GPU benchmark: does torch.compile make a network faster, and which batch does a GPU want?

usage: gpu_compiled.py SCRATCH OUT [--cpu]

Random weights, normalised data that is on the device already, bf16 autocast. Plain: the network as the engine runs it,
in batches of 32 to 512. Compiled: the same network as `--compile` compiles it, in the engine's batch, after its
compilation, whose seconds are in the note. Graphs: with CUDA graphs as well (`mode="reduce-overhead"`), which the
engine does not use.
"""

from __future__ import annotations

import time
from functools import partial

import torch
from gpu_networks import NETWORKS, build, name_of, resident_batch, time_bare
from gpu_record import Row, StepRecord, step_record
from rounds import median_seconds

from her2batch.models.device import SUB_BATCH, set_deterministic
from her2batch.models.execution.compiled import compile_network, compiling_alone

ROUNDS = 3


def measure_batches(record: StepRecord, key: str, images: int, sizes: tuple[int, ...]) -> None:
    """Add the row of the fastest batch; its ratio is to the engine's batch, and the note has all of them."""
    device, net = record.device, build(key, record.device, record.cpu)
    sides = {
        str(size): partial(time_bare, net, resident_batch(net, size, device), images, device)
        for size in sizes if images % size == 0
    }  # fmt: skip
    rates = {int(size): images / seconds for size, seconds in median_seconds(sides, ROUNDS).items()}
    best, own = max(rates, key=rates.__getitem__), SUB_BATCH[device]
    note = f"{best} images at once; " + ", ".join(f"{size}: {rate:,.4g}" for size, rate in rates.items())
    what = f"{name_of(record, key)}, fastest batch"
    record.add(
        Row(f"network.{key}.batch", what, rates[best], "tiles/s", rates[best] / rates[own], f"{own} at once", note)
    )


def measure_compiled(record: StepRecord, key: str, images: int) -> None:
    """Add the row of the compiled network; its ratio is to the same network uncompiled."""
    device, size = record.device, SUB_BATCH[record.device]
    net = build(key, device, record.cpu)
    resident = resident_batch(net, size, device)
    ways = {"compiled": ("torch.compile", partial(compile_network, net, size, device))}
    if device == "cuda":
        ways["graphs"] = ("torch.compile with CUDA graphs", partial(torch.compile, net, mode="reduce-overhead"))
    else:
        what = f"{name_of(record, key)}, torch.compile with CUDA graphs"
        record.add(Row(f"network.{key}.graphs", what, None, "tiles/s", note="no GPU"))
    for way, (name, make) in ways.items():
        started = time.perf_counter()
        with compiling_alone():
            compiled = make()
            time_bare(compiled, resident, size, device)
        took = time.perf_counter() - started
        sides = {"a": partial(time_bare, net, resident, images, device),
                 "b": partial(time_bare, compiled, resident, images, device)}  # fmt: skip
        plain, fast = median_seconds(sides, ROUNDS).values()
        what, note = f"{name_of(record, key)}, {name}", f"compiled or loaded in {took:.0f} s"
        record.add(Row(f"network.{key}.{way}", what, images / fast, "tiles/s", plain / fast, "uncompiled", note))


def main() -> None:
    """Add the rows of ViT-L, then those of ConvNeXt-S."""
    record, _ = step_record(__doc__.splitlines()[0])
    set_deterministic(record.device)
    images, sizes = (16, (8, 16)) if record.cpu else (1024, (32, 64, 128, 256, 512))
    for key in ("uni", "convnext-small"):
        run = partial(measure_batches, record, key, images, sizes)
        record.attempt(f"network.{key}.batch", f"{NETWORKS[key][0]}, fastest batch", "tiles/s", run)
        run = partial(measure_compiled, record, key, images)
        record.attempt(f"network.{key}.compiled", f"{NETWORKS[key][0]}, torch.compile", "tiles/s", run)


if __name__ == "__main__":
    main()
