"""How fast is a ViT-L of UNI's size with her2batch's tile feed on a GPU, compared with the bare network?

usage: gpu.py [--device cuda] [--model vit_large_patch16_224] [--tiles N] [--rounds N] [--slides SLIDES]

The weights are random. Ours: uint8 tiles in host memory, as the ingest's decoder leaves them, through
`models.device.run_network`: pinned, copied asynchronously, normalized on the device, bf16 autocast, embeddings copied
back to the host. Bare: the same network and batch on normalized data that is on the device already. Without a GPU the
benchmark prints a message; `--device cpu` tries it out.

With slides: a whole ingest with UNI's network and random weights is compared with the larger of its decode alone on all
cores and the bare network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tiles import time_decode as bare_decode  # before torch: it loads cuCIM, which hangs after torch
from tiles import tissue_tiles

# isort: split
import numpy as np
import timm
import torch
from ingest_rate import time_ray
from rounds import median_seconds, run_on_cores, warm_processes

from her2batch.models.device import SUB_BATCH, Normalization, run_network, set_deterministic
from her2batch.models.encoders import ENCODERS
from her2batch.pipeline.cost_model import available_cores
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources
from her2batch.slides.discover import discover_slides

NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--tiles", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slides", type=Path)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("unmeasured: torch sees no GPU here; --device cpu tries the benchmark out")
        return
    # before torch starts threads, which do not survive a fork
    pool = warm_processes(available_cores()) if args.slides else None
    set_deterministic(args.device)
    net = timm.create_model(args.model, pretrained=False, num_classes=0).eval().to(args.device)
    net = net.to(memory_format=torch.channels_last)
    edge = net.default_cfg["input_size"][-1]
    tiles = np.random.default_rng(0).integers(0, 256, (args.tiles, edge, edge, 3), np.uint8)
    half = args.device == "cuda" and torch.cuda.is_bf16_supported()
    size = SUB_BATCH[args.device]
    resident = torch.rand(size, 3, edge, edge, device=args.device).contiguous(memory_format=torch.channels_last)

    def ours() -> float:
        started = time.perf_counter()
        run_network(net, tiles, NORMALIZATION, args.device, lambda x: x)
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

    seconds = median_seconds({"ours": ours, "bare": bare}, args.rounds)
    a, b = (args.tiles / one for one in seconds.values())
    head = f"{args.model} on {args.device}, {args.tiles} tiles"
    print(f"{head}: ours {a:,.0f} images/s · bare {b:,.0f} · ratio {a / b:.2f}")
    if pool is not None:
        del net, resident
        torch.cuda.empty_cache()
        measure_ingest(args.slides, pool, b, args.rounds)
        pool.shutdown()


def measure_ingest(slides: Path, pool: ProcessPoolExecutor, bare: float, rounds: int) -> None:
    """Print the row of a whole ingest with UNI's network. bare: the network's images per second on resident data."""
    work = [(source.path, tissue_tiles(source.path)) for source in discover_slides(slides)[0]]
    total, workers = sum(len(tiles) for _, tiles in work), available_cores()
    parts = [(path, part) for path, tiles in work for part in np.array_split(tiles, workers)]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "pytorch_model.bin"
        spec = ENCODERS["uni"]
        torch.save(timm.create_model(spec.arch, pretrained=False, **spec.kwargs).state_dict(), weights)

        def ours() -> float:
            with tempfile.TemporaryDirectory() as out:
                started = time.perf_counter()
                request = IngestRequest(slides, Path(out) / "c", weights=weights)
                summary = ingest(request, Plan(encoders=("uni",)), Resources(workers=workers))
                assert summary.failed == 0, summary.failures
                return time.perf_counter() - started

        def decode() -> float:
            return sum(run_on_cores(pool, bare_decode, parts[k : k + workers]) for k in range(0, len(parts), workers))

        sides = {"ingest": ours, "Ray alone": lambda: time_ray(workers), "decode alone": decode}
        wall, ray, decoding = median_seconds(sides, rounds).values()
    without, larger = wall - ray, max(decoding, total / bare)
    print(
        f"{len(work)} slides, {total} tiles, {workers} workers: ingest with UNI's network {wall:.1f} s, "
        f"{total / wall:,.0f} tiles/s; without Ray's {ray:.1f} s {without:.1f} s, {total / without:,.0f} tiles/s · "
        f"decode alone {decoding:.1f} s · network alone {total / bare:.1f} s · {without / larger:.2f} × the larger"
    )


if __name__ == "__main__":
    main()
