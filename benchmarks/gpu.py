"""How near does our feed of a GPU come to the bare network: a UNI-size ViT-L, random weights?

usage: gpu.py [--device cuda] [--model vit_large_patch16_224] [--tiles N] [--rounds N]

Ours: uint8 tiles in host memory, as the ingest's decoder leaves them, through `models.device.forward`: pinned, copied
without waiting, normalised on the device, bf16 autocast, vectors back on the host. Bare: the same network and batch on
normalised data that lies on the device, nothing copied. Without a GPU it says so; `--device cpu` tries it out.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import timm
import torch
from rounds import medians

from her2batch.models.device import SUB_BATCH, Look, forward, prepare

LOOK = Look((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--tiles", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("unmeasured: torch sees no GPU here; --device cpu tries the benchmark out")
        return
    prepare(args.device)
    net = timm.create_model(args.model, pretrained=False, num_classes=0).eval().to(args.device)
    net = net.to(memory_format=torch.channels_last)
    edge = net.default_cfg["input_size"][-1]
    tiles = np.random.default_rng(0).integers(0, 256, (args.tiles, edge, edge, 3), np.uint8)
    half = args.device == "cuda" and torch.cuda.is_bf16_supported()
    size = SUB_BATCH[args.device]
    resident = torch.rand(size, 3, edge, edge, device=args.device).contiguous(memory_format=torch.channels_last)

    def ours() -> float:
        started = time.perf_counter()
        forward(net, tiles, LOOK, args.device, lambda x: x)
        return time.perf_counter() - started

    @torch.inference_mode()
    def bare() -> float:
        started = time.perf_counter()
        for _ in range(0, args.tiles, size):
            with torch.autocast(args.device, torch.bfloat16, enabled=half):
                net(resident)
        if args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds = medians({"ours": ours, "bare": bare}, args.rounds)
    a, b = (args.tiles / one for one in seconds.values())
    head = f"{args.model} on {args.device}, {args.tiles} tiles"
    print(f"{head}: ours {a:,.0f} images/s · bare {b:,.0f} · ratio {a / b:.2f}")


if __name__ == "__main__":
    main()
