"""Step of the GPU benchmark: networks bare and through her2batch's tile feed, three at once, and tiles measured.

usage: gpu_networks.py SCRATCH OUT [--cpu]

Random weights. Feed: uint8 tiles in host memory, as the ingest's decoder leaves them, through
`models.device.run_network`: pinned, copied asynchronously, normalised on the device, bf16 autocast, vectors copied
back. Bare: the same network and batch on normalised data that is on the device already.
Three at once: a process for each network, as the ingest has an actor for each, against one after the other.
Measured: the features of tiles of synthetic tissue on the device, against the reference on one core.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from gpu_record import Row, StepRecord, step_record, synchronize
from rounds import median_seconds

from her2batch.models.device import SUB_BATCH, Normalization, run_network, set_deterministic, settle_batch
from her2batch.models.device_measurements.measure_tiles import measure_tiles_on_device
from her2batch.models.encoders import ENCODERS, TimmEncoder
from her2batch.models.execution.batch_size import BatchSizes, memory_of
from her2batch.slides.readers import open_slide
from her2batch.slides.slide import Box, resample
from her2batch.vision.membrane import measure_tiles
from her2batch.vision.stain import fit_stain_vectors

NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

NETWORKS = {
    "uni": ("ViT-L of UNI's size", "uni", 1.0),
    "uni2-h": ("ViT-H of UNI2's size", "uni2-h", 0.4),
    "convnext-small": ("ConvNeXt-S", "convnext_small", 2.0),
}
"""Key → name, encoder or timm name, share of the tiles: the rates differ, the seconds should not."""

SMALL = {"uni": "test_vit", "uni2-h": "test_vit2", "convnext-small": "test_convnext"}
"""Networks of the dry run."""


def build(key: str, device: str, small: bool) -> torch.nn.Module:
    """Return a network with random weights on its device, in evaluation mode."""
    spec = ENCODERS.get(NETWORKS[key][1])
    if small or not isinstance(spec, TimmEncoder):
        net = timm.create_model(SMALL[key] if small else NETWORKS[key][1], pretrained=False, num_classes=0)
    else:
        extra = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU} if spec.swiglu else {}
        net = timm.create_model(spec.arch, pretrained=False, **spec.kwargs, **extra)
    return net.eval().to(device).to(memory_format=torch.channels_last)


def random_tiles(net: torch.nn.Module, count: int) -> np.ndarray:
    """Return random tiles of the network's input size, (count, edge, edge, 3) uint8."""
    edge = net.default_cfg["input_size"][-1]  # type: ignore[index,union-attr]
    return np.random.default_rng(0).integers(0, 256, (count, edge, edge, 3), np.uint8)


def resident_batch(net: torch.nn.Module, size: int, device: str) -> torch.Tensor:
    """Return random normalised images on the device, channels last, of the network's input size."""
    edge = net.default_cfg["input_size"][-1]  # type: ignore[index,union-attr]
    return torch.rand(size, 3, edge, edge, device=device).contiguous(memory_format=torch.channels_last)


def name_of(record: StepRecord, key: str) -> str:
    """Return the name of a network in the rows."""
    return NETWORKS[key][0] + (f" (dry run: {SMALL[key]})" if record.cpu else "")


def time_feed(net: torch.nn.Module, tiles: np.ndarray, device: str) -> float:
    """Return the seconds of all tiles through our feed."""
    started = time.perf_counter()
    run_network(net, tiles, NORMALIZATION, device, lambda x: x)
    return time.perf_counter() - started


@torch.inference_mode()
def time_bare(net: torch.nn.Module, resident: torch.Tensor, count: int, device: str) -> float:
    """Return the seconds of the network alone for as many images."""
    half = device == "cuda" and torch.cuda.is_bf16_supported()
    started = time.perf_counter()
    for _ in range(0, count, len(resident)):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            net(resident)
    synchronize(device)
    return time.perf_counter() - started


def measure_network(record: StepRecord, key: str, tiles: int) -> None:
    """Add a network's rows: through the feed with its ratio to the bare network, bare, and peak memory."""
    device, size = record.device, SUB_BATCH[record.device]
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    net = build(key, device, record.cpu)
    count = max(size, round(tiles * NETWORKS[key][2] / size) * size)  # whole batches on both sides
    images = random_tiles(net, count)
    resident = resident_batch(net, size, device)
    sides = {"feed": partial(time_feed, net, images, device), "bare": partial(time_bare, net, resident, count, device)}
    feed, bare = (count / one for one in median_seconds(sides, 3).values())
    name = name_of(record, key)
    record.add(Row(f"network.{key}.bare", f"{name}, bare", bare, "tiles/s"))
    record.add(Row(f"network.{key}.feed", f"{name}, through our feed", feed, "tiles/s", feed / bare, "bare"))
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    note = "" if memory is not None else "no GPU"
    record.add(Row(f"network.{key}.memory", f"{name}, peak of torch's memory", memory, "GiB", note=note))


def measure_found(record: StepRecord, key: str) -> None:
    """Add the row of the tiles that a network gets at once in a new cohort, with their memory."""
    device, name = record.device, name_of(record, key)
    net = build(key, device, record.cpu)
    edge = net.default_cfg["input_size"][-1]  # type: ignore[index,union-attr]
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        size = settle_batch(key, net, edge, NORMALIZATION, device, None, BatchSizes(Path(folder)))
    took, memory = time.perf_counter() - started, memory_of(device, 1.0)
    if size is None or memory is None:
        what, note = f"{name}, tiles at once", "fixed on a CPU"
        record.add(Row(f"network.{key}.found", what, SUB_BATCH[device], "tiles", note=note))
        return
    tiles = random_tiles(net, size)
    peak = memory.peak(lambda: run_network(net, tiles, NORMALIZATION, device, lambda x: x, batch=size)) / 2**30
    note = f"found in {took:.1f} s; {peak:.1f} GiB at most, {memory.free() / 2**30:.0f} GiB free"
    record.add(Row(f"network.{key}.found", f"{name}, tiles at once", size, "tiles", note=note))


def run_one(key: str, count: int, cpu: bool, barrier: Barrier | None) -> float:
    """Return the seconds of one network in a process of its own, after a warm-up; all start at the barrier."""
    device = "cpu" if cpu else "cuda"
    set_deterministic(device)
    net = build(key, device, cpu)
    tiles = random_tiles(net, count)
    time_feed(net, tiles[: SUB_BATCH[device]], device)
    if barrier is not None:
        barrier.wait(timeout=120)
    return time_feed(net, tiles, device)


def measure_three(record: StepRecord, tiles: int) -> None:
    """Add the row of three networks at once; its ratio to one after the other is above 1 where this gains."""
    context = get_context("spawn")
    counts = {key: max(8, round(tiles * share)) for key, (_, _, share) in NETWORKS.items()}
    with context.Manager() as manager, context.Pool(len(NETWORKS)) as pool:
        barrier = manager.Barrier(len(NETWORKS))
        alone = sum(pool.apply(run_one, (key, counts[key], record.cpu, None)) for key in NETWORKS)
        work = [pool.apply_async(run_one, (key, counts[key], record.cpu, barrier)) for key in NETWORKS]
        together = max(one.get(timeout=200) for one in work)
    note = f"{', '.join(f'{counts[key]} of {key}' for key in NETWORKS)}; one after the other {alone:.1f} s"
    what = "three networks at once, a process each"
    record.add(Row("networks.three", what, together, "s", alone / together, "as fast as one after the other", note))


def measure_features(record: StepRecord, scratch: Path, count: int) -> None:
    """Add the row of the tiles' features on the device; its ratio is to the reference on one core."""
    with open_slide(sorted((scratch / "large").glob("*.tiff"))[0]) as slide:
        middle = Box(slide.info.width // 2 - 448, slide.info.height // 2 - 448, 896, 896)
        image = resample(slide.read(middle), 448, 448)
    four = np.stack([image[y : y + 224, x : x + 224] for y in (0, 224) for x in (0, 224)])
    stains = fit_stain_vectors(four, (245.0, 245.0, 245.0), 0.5)
    tiles = np.tile(four, (count // 4, 1, 1, 1))
    sides = {
        "device": lambda: measure_tiles_on_device(torch.from_numpy(tiles).to(record.device), 0.5, stains).cpu(),
        "core": lambda: measure_tiles(tiles[:16], 0.5, stains),
    }
    seconds = {name: elapsed(side) for name, side in sides.items()}
    rate, core = len(tiles) / seconds["device"], 16 / seconds["core"]
    record.add(Row("measure.tiles", "tiles measured on the device", rate, "tiles/s", rate / core, "one CPU core"))


def elapsed(work: Callable[[], object]) -> float:
    """Return the seconds of a second call; the first warms up."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Add the rows of each network, of three at once and of the tiles' features."""
    record, scratch = step_record(__doc__.splitlines()[0])
    set_deterministic(record.device)
    tiles = 16 if record.cpu else 4096
    for key, (name, _, _) in NETWORKS.items():
        record.attempt(f"network.{key}.bare", name, "tiles/s", partial(measure_network, record, key, tiles))
        record.attempt(f"network.{key}.found", f"{name}, tiles at once", "tiles", partial(measure_found, record, key))
    what = "tiles measured on the device"
    record.attempt("measure.tiles", what, "tiles/s", partial(measure_features, record, scratch, tiles))
    record.attempt("networks.three", "three networks at once", "s", partial(measure_three, record, tiles // 2))


if __name__ == "__main__":
    main()
