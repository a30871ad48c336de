"""Step of the GPU benchmark: the whole ingest with UNI's network, beside the larger of decode and network.

usage: gpu_ingest.py SCRATCH OUT [--cpu]

Random weights. The time of decode is computed from the rate of the CPU cores that gpu_decode.py measured, and that of
the network from gpu_networks.py. Both its wall time and the time without Ray's start are reported.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import timm
import torch
from gpu_record import GpuSamples, Row, StepRecord, earlier_value, sample_gpu, step_record
from ray_start import time_ray

from her2batch.models.encoders import ENCODERS, TimmEncoder
from her2batch.pipeline.cost_model import available_cores
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources

SLIDE_PX_PER_TILE = (224 * 2) ** 2
"""Level-0 px under a tile of 224 px at 0.5 µm/px of a slide at 0.25 µm/px."""


def uni_weights(scratch: Path, small: bool) -> tuple[str, Path]:
    """Return the encoder and the file of its random weights, written once."""
    name, folder = ("timm:test_vit" if small else "uni"), scratch / "weights"
    spec, path = ENCODERS["uni"], folder / ("test_vit.bin" if small else "pytorch_model.bin")
    assert isinstance(spec, TimmEncoder)
    if not path.exists():
        folder.mkdir(exist_ok=True)
        arch, kwargs = ("test_vit", {"num_classes": 0}) if small else (spec.arch, spec.kwargs)
        torch.save(timm.create_model(arch, pretrained=False, **kwargs).state_dict(), path)
    return name, path


def measure_ingest(record: StepRecord, scratch: Path) -> None:
    """Add the rows of one whole ingest into a new cohort."""
    workers = available_cores()
    encoder, weights = uni_weights(scratch, record.cpu)
    out = scratch / "cohort"
    shutil.rmtree(out, ignore_errors=True)
    with sample_gpu(record.cpu) as samples:
        started = time.perf_counter()
        request = IngestRequest(scratch / "large", out, weights=weights)
        summary = ingest(request, Plan(encoders=(encoder,)), Resources(workers=workers))
        wall = time.perf_counter() - started
    if summary.failed:
        raise RuntimeError(f"{summary.failed} slides failed: {summary.failures[0]}")
    tiles = int(np.sum([pq.read_metadata(path).num_rows for path in out.glob("tables/tiles/*.parquet")]))
    record.add(Row("ingest.tiles", "ingest with UNI's network", tiles / wall, "tiles/s", note=f"{tiles} tiles"))
    add_gpu_rows(record, samples)
    compare(record, tiles, wall, wall - time_ray(workers))


def add_gpu_rows(record: StepRecord, samples: GpuSamples) -> None:
    """Add the GPU's busy share and its memory."""
    none = "no GPU" if record.cpu else "nvidia-smi gave no sample"
    busy, what = samples.busy_share, "GPU busy once warm, from its first work to its last"
    note = f"{len(samples.utilization)} samples" if busy is not None else none
    record.add(Row("ingest.busy", what, None if busy is None else 100 * busy, "%", note=note))
    most = max(samples.memory, default=None)
    gib = None if most is None else most / 1024
    record.add(Row("ingest.memory", "GPU memory in use, peak of an ingest", gib, "GiB", note="" if gib else none))


def compare(record: StepRecord, tiles: int, wall: float, without_ray: float) -> None:
    """Add the row of the ingest's time against the larger of decode alone and network alone."""
    decode = earlier_value(record, "gpu_decode", "decode.jpeg.cores")
    network = earlier_value(record, "gpu_networks", "network.uni.bare")
    what = "ingest without Ray's start and stop"
    if decode is None or network is None:
        missing = "decode" if decode is None else "network"
        record.add(Row("ingest.time", what, without_ray, "s", note=f"no ratio: {missing} alone was not measured"))
        return
    alone = {"decode": tiles * SLIDE_PX_PER_TILE / decode, "network": tiles / network}
    larger = max(alone, key=alone.__getitem__)
    parts = " · ".join(f"{name} alone {seconds:.1f} s" for name, seconds in alone.items())
    note = f"whole {wall:.1f} s · {parts}"
    record.add(Row("ingest.time", what, without_ray, "s", without_ray / alone[larger], f"the {larger} alone", note))


def main() -> None:
    """Add the rows of the ingest."""
    record, scratch = step_record(__doc__.splitlines()[0])
    what = "ingest with UNI's network"
    record.attempt("ingest.tiles", what, "tiles/s", partial(measure_ingest, record, scratch))


if __name__ == "__main__":
    main()
