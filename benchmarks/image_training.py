"""How fast are image networks trained on one core, compared with their bare forward and backward pass?

usage: image_training.py [--images 16] [--rounds 3] [--method METHOD]…

Ours is an epoch of `fit_image_network` on squares of 224 px: reading, augmentation, forward, backward, optimiser, and
the validation of two images. Bare is forward, backward and optimiser of the same network on one batch that never
changes. Both take turns in one process, on one thread, in the same precision, and are measured in CPU time, so that
other programs do not count. Random weights: the rate does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from her2batch.models.attention import product_dtype
from her2batch.models.device import set_deterministic, to_channels_last
from her2batch.models.nets import NETWORKS, initial_network
from her2batch.settings import ImageSettings
from her2batch.training.fit_image import fit_image_network
from her2batch.training.fit_loop import Fold, Progress

EDGE, CLASSES, BATCH = 224, 3, 8


def seconds_of_epoch(method: str, images: int) -> float:
    """Return the CPU seconds of the second of two epochs, of which the first sets everything up."""
    rows = np.arange(images + 2, dtype=np.int64)
    fold = Fold(rows % CLASSES, rows[:-2], rows[-2:], CLASSES, seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (len(rows), EDGE, EDGE, 3), np.uint8)
    settings = ImageSettings(pretrained="none", epochs=2, patience=2, warmup=1, batch=BATCH)
    ends: list[float] = []

    def report(_: Progress) -> None:
        ends.append(time.process_time())

    fit_image_network(method, pixels, fold, settings, report=report)
    return ends[1] - ends[0]


def bare_step(
    method: str, edge: int = EDGE, size: str = "full", batch: int = BATCH, device: str = "cpu"
) -> Callable[[], None]:
    """Return a step on one batch that stays on the device: forward, backward and optimiser."""
    net = to_channels_last(initial_network(method, CLASSES, edge, size, "none", 0), device).train()
    kind = torch.optim.AdamW if NETWORKS[method].decoupled else torch.optim.Adam
    optimiser, dtype = kind(net.parameters(), 1e-4, fused=True), product_dtype(device)
    x = torch.rand(batch, 3, edge, edge, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % CLASSES

    def step() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits = net(x)
        optimiser.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimiser.step()

    return step


def seconds_of_steps(step: Callable[[], None], steps: int) -> float:
    """Return the CPU seconds of so many steps, after one for warm-up."""
    step()
    started = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - started


def main() -> None:
    """Print one row a network: images a CPU second, ours and bare, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2 * BATCH, help="images of an epoch, a multiple of 8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", action="append", choices=list(NETWORKS))
    asked = parser.parse_args()
    set_deterministic("cpu")
    print("| network | images a second | bare | ratio |\n| --- | --- | --- | --- |", flush=True)
    for method in asked.method or NETWORKS:
        step, ours, bare = bare_step(method), [], []
        for _ in range(asked.rounds):
            ours.append(seconds_of_epoch(method, asked.images))
            bare.append(seconds_of_steps(step, asked.images // BATCH))
        mine, other = asked.images / statistics.median(ours), asked.images / statistics.median(bare)
        print(f"| {method} | {mine:.2f} | {other:.2f} | {mine / other:.2f} |", flush=True)


if __name__ == "__main__":
    main()
