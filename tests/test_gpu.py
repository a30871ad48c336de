"""The commands on a machine with a GPU; skipped where there is none."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from her2batch.store.cohort import Cohort
from her2batch.store.training_run import TrainingRun
from her2batch.synthetic.cohort import make_cohort
from tests.experiments.test_train import tables
from tests.faults.fault_fixtures import assert_same_files
from tests.runtime.test_ingest import store_contents

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

NET = "timm:test_vit"


class Scanned(NamedTuple):
    """A synthetic cohort with annotations, and weights of a small network."""

    made: Path
    weights: Path


@pytest.fixture(scope="module")
def scanned(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    made = make_cohort(tmp_path_factory.mktemp("gpu") / "made", 16, seed=3, size=(2600, 2200), workers=4)
    return Scanned(made, small_weights)


def her2batch(*words: object) -> list[str]:
    return [sys.executable, "-m", "her2batch.cli", *map(str, words)]


def ingest(scanned: Scanned, out: Path, *more: object) -> list[str]:
    own = ("--labels", scanned.made / "labels.csv", "--weights", scanned.weights, "--encoder", "stain")
    return her2batch("ingest", scanned.made / "slides", "--out", out, *own, "--encoder", NET, "--json", *more)


def done(command: list[str], **env: str) -> dict:
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ, **env}, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def cohort(scanned: Scanned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "cohort"
    assert done(ingest(scanned, out, "--workers", 4))["done"] == 16
    return out


def vectors(cohort: Path) -> np.ndarray:
    every = Cohort(cohort)
    name = next(name for name in every.table_names() if name.startswith("embeddings/timm"))
    tables = (every.read(name, slide_id) for slide_id in sorted(every.rows()))
    return np.concatenate([np.stack(table["embedding"].to_pylist()) for table in tables]).astype(np.float64)


def test_number_of_workers_changes_no_byte_on_a_gpu(scanned: Scanned, cohort: Path, tmp_path: Path) -> None:
    """The serial loop (--workers 0) is not compared: it computes on the CPU."""
    done(ingest(scanned, tmp_path / "two", "--workers", 2))
    assert_same_files(tmp_path / "two", store_contents(cohort))


def test_gpu_embeddings_equal_those_of_the_cpu_within_bfloat16(scanned: Scanned, cohort: Path, tmp_path: Path) -> None:
    done(ingest(scanned, tmp_path / "cpu", "--workers", 4, "--gpus", 0), CUDA_VISIBLE_DEVICES="")
    ours, theirs = vectors(cohort), vectors(tmp_path / "cpu")
    assert not np.array_equal(ours, theirs)  # else no GPU was used
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize("victim", ["driver", "model"])
def test_resume_after_kill_on_a_gpu_gives_identical_tables(
    scanned: Scanned, cohort: Path, tmp_path: Path, victim: str
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(ingest(scanned, out, "--workers", 4), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        while not list(out.glob("tables/slides/*.parquet")):
            assert run.poll() is None
            time.sleep(0.01)
        on_gpu = [int(line) for line in subprocess.check_output(NVIDIA, text=True).split()]
        family = [child.pid for child in psutil.Process(run.pid).children(recursive=True)]
        models = [pid for pid in on_gpu if pid in family] or named(family)
        assert models
        os.kill(run.pid if victim == "driver" else models[0], signal.SIGKILL)
        run.communicate(timeout=300)
    assert run.returncode == (-9 if victim == "driver" else 0)
    if victim == "driver":
        done(ingest(scanned, out, "--workers", 4))
    assert_same_files(out, store_contents(cohort))


NVIDIA = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]


def named(pids: list[int]) -> list[int]:
    """Return the processes that hold the GPU's device file, where nvidia-smi lists none."""
    return [pid for pid in pids if any("/dev/nvidia0" in link for link in opened(pid))]


def opened(pid: int) -> list[str]:
    links = list(Path(f"/proc/{pid}/fd").iterdir())
    return [str(link.readlink()) for link in links if link.is_symlink()]


SMALL = """
import numpy as np, timm, torch
from her2batch.models.device import Normalization, run_network, set_deterministic
set_deterministic("cuda")
torch.manual_seed(0)
net = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0).eval().cuda()
net = net.to(memory_format=torch.channels_last)
tiles = np.random.default_rng(0).integers(0, 256, (300, 224, 224, 3), np.uint8)
seen = []
net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
look = Normalization((0.5,) * 3, (0.5,) * 3)
whole = run_network(net, tiles, look, "cuda", lambda x: x)
torch.cuda.synchronize()
total = torch.cuda.get_device_properties(0).total_memory
most, rest = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
torch.cuda.empty_cache()
torch.cuda.set_per_process_memory_fraction((rest + (most - rest) * 0.4) / total)
seen.clear()
halves = run_network(net, tiles, look, "cuda", lambda x: x)
print(*seen)
print(np.abs(whole - halves).max() / np.abs(whole).max())
torch.cuda.set_per_process_memory_fraction(rest / total)
torch.cuda.empty_cache()
try:
    run_network(net, tiles, look, "cuda", lambda x: x)
except MemoryError as error:
    print(error)
"""


def test_batch_is_halved_when_gpu_memory_runs_out() -> None:
    run = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    sizes, gap, words = run.stdout.splitlines()
    sizes = [int(size) for size in sizes.split()]
    assert sizes[0] == 128
    assert min(sizes[:-1]) < 128
    assert float(gap) < 0.02
    assert words == "cuda cannot hold one tile of this network"


MIL = ("clam-sb", "clam-mb", "dtfd-afs", "dtfd-maxs", "dtfd-maxmins")
NETS = ("convnext-small", "resnet50", "densenet201", "vit-base")
COUNTS = ("random-forest", "svm", "mlp", "majority-vote")


def train(scanned: Scanned, cohort: Path, out: Path, methods: tuple[str, ...], *more: object) -> list[str]:
    which = [word for method in methods for word in ("--method", method)]
    own = ("--annotations", scanned.made / "annotations", "--quick", "--folds", 3, "--json")
    return her2batch("train", cohort, "--out", out, *own, *which, *more)


@pytest.mark.parametrize("methods", [MIL, NETS, COUNTS], ids=["mil", "nets", "counts"])
def test_training_twice_on_a_gpu_gives_identical_tables(
    scanned: Scanned, cohort: Path, tmp_path: Path, methods: tuple[str, ...]
) -> None:
    """Four units run at once on one GPU, or one after the other."""
    for name, share in {"four": 0.25, "one": 1.0}.items():
        done(train(scanned, cohort, tmp_path / name, methods, "--workers", 4, "--unit-gpus", share))
    four, one = (tables(tmp_path / name) for name in ("four", "one"))
    assert [name for name in one if four[name] != one[name]] == []
    found = pq.read_table(TrainingRun(tmp_path / "one").table("predictions")).to_pylist()
    assert {row["method"] for row in found} == set(methods)
