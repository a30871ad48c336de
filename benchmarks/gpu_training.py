"""Step of the GPU benchmark: training of ConvNeXt-S and of CLAM-SB, beside their bare steps.

usage: gpu_training.py SCRATCH OUT [--cpu]

Ours: epochs of `fit_image_network` and `fit_mil_network`, first epoch left out, validation on one example included.
Bare: forward, backward and optimiser of the same network on data that is on the device already, without augmentation.
Random weights and data. ConvNeXt-S on 224 px images, CLAM-SB on bags of 1,500 to 2,500 × 1024.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from folds import ENCODER, make_cohort
from gpu_record import Row, StepRecord, step_record, synchronize
from image_training import bare_step

from her2batch.models.attention import product_dtype
from her2batch.models.device import set_deterministic
from her2batch.models.mil_registry import build_mil_network
from her2batch.settings import ImageSettings, MilSettings
from her2batch.store.cohort import Cohort
from her2batch.training.bag_data import Bags, gather_bags
from her2batch.training.fit_image import fit_image_network
from her2batch.training.fit_loop import Fold, Progress
from her2batch.training.fit_mil import fit_mil_network
from her2batch.training.recipes.random_streams import random_stream

CLASSES = 3
EPOCHS = 3


def fold_of(count: int) -> Fold:
    """Return a fold that trains on all examples but the last, which validates."""
    rows = np.arange(count, dtype=np.int64)
    return Fold(rows % CLASSES, rows[:-1], rows[-1:], CLASSES, seed=0)


def epoch_seconds(fit: Callable[[Callable[[Progress], None]], object]) -> float:
    """Return the seconds of an epoch after the first, from a function that trains EPOCHS epochs and reports each."""
    ends: list[float] = []
    fit(lambda _: ends.append(time.perf_counter()))
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def bare_seconds(step: Callable[[], None], steps: int, device: str) -> float:
    """Return the seconds of so many steps, after one for warm-up."""
    step()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return time.perf_counter() - started


def measure_convnext(record: StepRecord, images: int, edge: int, size: str) -> None:
    """Add the row of ConvNeXt-S: images per second, and the ratio to its bare step."""
    device = record.device
    settings = ImageSettings.model_validate({"pretrained": "none", "size": size, "epochs": EPOCHS, "patience": EPOCHS})
    fold = fold_of(images + 1)
    pixels = np.random.default_rng(0).integers(0, 256, (images + 1, edge, edge, 3), np.uint8)
    ours = epoch_seconds(lambda report: fit_image_network("convnext-small", pixels, fold, settings, device,
                                                          report=report))  # fmt: skip
    batch = min(settings.batch, images)
    step = bare_step("convnext-small", edge, size, batch, device)
    bare = bare_seconds(step, max(1, images // batch), device) * images / (batch * max(1, images // batch))
    note = f"batch {batch}, {edge} px; bare {images / bare:,.4g} images/s"
    what = "training of ConvNeXt-S" + (" (dry run: a tiny one)" if size == "tiny" else "")
    record.add(Row("training.convnext-small", what, images / ours, "images/s", bare / ours, "the bare step", note))


def open_bags_of(scratch: Path, bags: int, dim: int) -> Bags:
    """Return random bags, made once."""
    root, _ = make_cohort(scratch / f"bags-{bags}-{dim}", bags, dim)
    names = sorted(path.stem for path in (root / "tables" / "slides").glob("*.parquet"))
    return gather_bags(Cohort(root), ENCODER, ENCODER.replace(":", "-"), names, scratch / f"bags-{bags}-{dim}.arrow")


def measure_clam(record: StepRecord, scratch: Path, count: int, dim: int) -> None:
    """Add the row of CLAM-SB: bags per second, and the ratio to its bare step."""
    device = record.device
    bags = open_bags_of(scratch, count + 1, dim)
    settings = MilSettings(epochs=EPOCHS, least_epochs=0, patience=EPOCHS)
    fold = fold_of(count + 1)
    ours = epoch_seconds(lambda report: fit_mil_network("clam-sb", bags, fold, settings, device, report=report))
    net = build_mil_network("clam-sb", bags.dim, CLASSES, settings).to(device).train()
    optimiser = torch.optim.Adam(net.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True)
    middle = int(np.argsort(bags.sizes)[len(bags.sizes) // 2])
    bag, n, rng = bags.of(middle).to(device).to(product_dtype(device)), bags.sizes[middle], random_stream(0, 1)

    def step() -> None:
        loss = net(bag, 1, rng, n).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    bare = bare_seconds(step, count, device)
    note = f"{count} bags of {min(bags.sizes)} to {max(bags.sizes)} × {dim}; bare {count / bare:,.4g} bags/s"
    what = "training of CLAM-SB"
    record.add(Row("training.clam-sb", what, count / ours, "bags/s", bare / ours, "the bare step", note))


def main() -> None:
    """Add the rows of both."""
    record, scratch = step_record(__doc__.splitlines()[0])
    set_deterministic(record.device)
    images, edge, size, bags, dim = (32, 64, "tiny", 4, 64) if record.cpu else (1024, 224, "full", 60, 1024)
    run = partial(measure_convnext, record, images, edge, size)
    record.attempt("training.convnext-small", "training of ConvNeXt-S", "images/s", run)
    run = partial(measure_clam, record, scratch, bags, dim)
    record.attempt("training.clam-sb", "training of CLAM-SB", "bags/s", run)


if __name__ == "__main__":
    main()
