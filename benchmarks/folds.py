"""How long do ten folds of CLAM-SB or DTFD-MIL on 500 bags take, compared with the bare matrix products?

usage: folds.py SCRATCH [--method clam-sb] [--bags 500] [--dim 1024] [--epochs 3] [--whole]

Ours is `experiments.train.train` on a cohort of random embeddings with a weak signal: Ray's start, the cache, training,
validation, test, the model of the bundle. The lower bound is the time of the matrix products of the same steps, forward
and backward, in the same dtype, one thread each, on as many processes, measured in the same run. Products of a few
rows, such as those of DTFD-MIL's tier 2 once its features are distilled, are left out of it. Both are given as wall
time and as CPU time of all processes: on a machine that does other work, only the second can be compared.

CLAM-SB is also compared with a plain loop in ordinary torch.nn: one fold after another, one bag per step, float32,
torch's own threads, a standard DataLoader over one file per bag. One epoch of one fold is measured and multiplied; with
--whole the complete loop is run, for its AUC.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from memory import memory_by_kind
from torch import nn
from torch.utils.data import DataLoader, Dataset

from her2batch.experiments.train import TrainingRequest, train
from her2batch.models.attention import padded_size, product_dtype
from her2batch.models.clam import smooth_top1
from her2batch.pipeline.cost_model import available_cores
from her2batch.settings import Plan, Training, TrainingResources
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.schemas import embeddings_table, table_schema
from her2batch.store.training_run import FINAL_FOLD, TrainingRun
from her2batch.training.fit_loop import draw_class_balanced
from her2batch.training.metrics import metrics_summary, metrics_table
from her2batch.training.recipes.random_streams import random_stream

CLASSES = ("0", "1+", "3+")  # her2-3way: 0, low, high
ENCODER = "timm:resnet50.a1_in1k"  # only the length of its embeddings is used, not its weights
SHIFTED_SHARE, SHIFT = 0.02, 0.12

GATES = {"clam-sb": 512, "dtfd-afs": 256}
"""Method → rows of its gates, both factors of the attention."""

PSEUDO_BAGS, SPLITS = 4, 5
"""DTFD-MIL pools four pseudo-bags of a bag, and those of five splits in an evaluation."""


def make_cohort(folder: Path, bags: int, dim: int) -> tuple[Path, Path]:
    """Make a cohort of 1,500 to 2,500 embeddings per slide, 2 % of them shifted by the class; and its labels."""
    cohort, labels = Cohort(folder / "cohort"), folder / "labels.csv"
    if labels.exists() and len(labels.read_text().splitlines()) == bags + 1:
        return cohort.root, labels
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cohort.create(Plan(encoders=(ENCODER,)))
    rng = np.random.default_rng(0)
    shift = rng.standard_normal((3, dim)).astype(np.float32)
    lines = ["slide_id,patient_id,her2"]
    blank = {name: None for name in table_schema("slides").names}
    for k in range(bags):
        n, label, slide_id = int(rng.integers(1500, 2500)), k % 3, f"s{k:04}"
        values = rng.standard_normal((n, dim), np.float32)
        values[: int(SHIFTED_SHARE * n)] += SHIFT * shift[label]
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float16).reshape(-1)), dim)
        path = cohort.table(f"embeddings/{ENCODER.replace(':', '-')}", slide_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(embeddings_table(slide_id, pa.array(np.arange(n, dtype=np.int32)), flat), path)
        write_row(cohort, {**blank, "slide_id": slide_id, "status": "done", "n_tiles": n, "flags": [], "files": []})
        lines.append(f"{slide_id},p{k // 2:04},{CLASSES[label]}")
    labels.write_text("\n".join(lines) + "\n")
    return cohort.root, labels


@dataclass(frozen=True)
class Seconds:
    """Wall time, and CPU time of all processes."""

    wall: float
    cpu: float


class Watcher(threading.Thread):
    """Watches this process and those that it starts. peak: of their memory, GB.  cpu: their seconds so far."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0.0
        self._cpu: dict[tuple[int, float], float] = {}
        self._ended = threading.Event()

    @property
    def cpu(self) -> float:
        """Return the CPU seconds of all processes, also of those that have ended."""
        return sum(self._cpu.values())

    def run(self) -> None:
        """Read times twice a second until `end`, and memory at every tenth reading: it takes long."""
        me = psutil.Process()
        for reading in itertools.count():
            if self._ended.wait(0.5):
                break
            if reading % 10 == 0:
                self.peak = max(self.peak, sum(memory_by_kind(me).values()))
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.Error):  # a process that has just ended keeps its last reading
                    times = process.cpu_times()
                    self._cpu[process.pid, process.create_time()] = times.user + times.system

    def end(self) -> None:
        """Stop reading."""
        self._ended.set()
        self.join()


def time_training(cohort: Path, labels: Path, out: Path, method: str, epochs: int) -> tuple[Seconds, float, pa.Table]:
    """Train with her2batch. Returns its time, peak memory of all processes (GB), and the summary."""
    shutil.rmtree(out, ignore_errors=True)
    training = Training(methods=(method,), options=(f"epochs={epochs}",))
    watcher = Watcher()
    watcher.start()
    started, before = time.perf_counter(), time.process_time()
    found = train(TrainingRequest(cohort, out, labels), training, TrainingResources())
    took = time.perf_counter() - started
    watcher.end()
    assert found.exit_code == 0, found.failed
    return Seconds(took, watcher.cpu - before), watcher.peak, found.summary


def count_passes(run: TrainingRun, epochs: int) -> tuple[int, int]:
    """Count the training steps and the evaluations of bags in all units of the run."""
    rows = pq.read_table(run.table("folds")).to_pylist()
    count = {split: sum(row["split"] == split for row in rows) for split in ("train", "val", "test")}
    return epochs * count["train"], epochs * count["val"] + count["test"]


def run_products(method: str, bag: torch.Tensor, others: tuple[torch.Tensor, ...], forward_only: bool) -> None:
    """Run the products of one step, or of one evaluation. bag: (N, dim)."""
    w1, w2, h, g, gate, shares, pooled = others
    _ = bag @ w1.t(), h @ w2.t()  # instances and gates
    if not forward_only:
        _ = gate @ w2, gate.t() @ h, g.t() @ bag
    if method == "dtfd-afs":
        _ = shares @ h  # features of the pseudo-bags, which tier 2 reads as they are
        if not forward_only:
            _ = shares.t() @ pooled, pooled @ h.t()


def time_products(method: str, sizes: list[int], dim: int, dtype: torch.dtype, forward_only: bool) -> Seconds:
    """Return the time of one bag's matrix products on one thread: trimmed mean over bags.

    Bags have the padded sizes of a training, and each is multiplied once before it is timed: oneDNN compiles the
    products of every new shape, which takes longer than they do.
    """
    torch.set_num_threads(1)
    rows, pools = GATES[method], PSEUDO_BAGS * (SPLITS if forward_only else 1)
    w1, w2, pooled = (torch.randn(shape, dtype=dtype) for shape in ((512, dim), (rows, 512), (pools, 512)))
    wall, cpu = [], []
    for n in map(padded_size, sizes):
        bag, h, g, gate = (torch.randn(n, d, dtype=dtype) for d in (dim, 512, 512, rows))
        shares = torch.randn(pools, n, dtype=dtype)
        operands = w1, w2, h, g, gate, shares, pooled
        run_products(method, bag, operands, forward_only)
        started, before = time.perf_counter(), time.process_time()
        run_products(method, bag, operands, forward_only)
        cpu.append(time.process_time() - before)
        wall.append(time.perf_counter() - started)
    cut = len(sizes) // 10
    return Seconds(*(statistics.mean(sorted(values)[cut : -cut or None]) for values in (wall, cpu)))


def products_bound(run: TrainingRun, method: str, dim: int, epochs: int) -> Seconds:
    """Return the time of all products of a run on all cores, measured with all processes running."""
    steps, evaluations = count_passes(run, epochs)
    sizes = np.random.default_rng(1).integers(1500, 2500, 60).tolist()
    workers, dtype = available_cores(), product_dtype("cpu")
    wall = cpu = 0.0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for forward_only, times in ((False, steps), (True, evaluations)):
            of = [pool.submit(time_products, method, sizes, dim, dtype, forward_only) for _ in range(workers)]
            wall += statistics.mean(one.result().wall for one in of) * times / workers
            cpu += statistics.mean(one.result().cpu for one in of) * times
    return Seconds(wall, cpu)


# -- the plain loop --------------------------------------------------------------------------------------------


class PlainClam(nn.Module):
    """CLAM-SB in ordinary torch.nn."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, 512), nn.ReLU(), nn.Dropout(0.25))
        self.v = nn.Sequential(nn.Linear(512, 256), nn.Tanh(), nn.Dropout(0.25))
        self.u = nn.Sequential(nn.Linear(512, 256), nn.Sigmoid(), nn.Dropout(0.25))
        self.w = nn.Linear(256, 1)
        self.head = nn.Linear(512, n_classes)
        self.instances = nn.ModuleList(nn.Linear(512, 2) for _ in range(n_classes))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, label: int | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits (1, C) and the loss of a bag (N, dim)."""
        h = self.embed(x)
        a = torch.softmax(self.w(self.v(h) * self.u(h)).t(), 1)
        logits = self.head(a @ h)
        if label is None:
            return logits, None
        total = torch.zeros(())
        for c, layer in enumerate(self.instances):
            top = h[a[0].topk(8).indices]
            if c == label:
                rows, target = torch.cat([top, h[a[0].topk(8, largest=False).indices]]), torch.tensor([1] * 8 + [0] * 8)
            else:
                rows, target = top, torch.zeros(8, dtype=torch.long)
            total = total + smooth_top1(layer(rows), target).mean()
        bag = nn.functional.cross_entropy(logits, torch.tensor([label]))
        return logits, 0.7 * bag + 0.3 * total / len(self.instances)


class Bags(Dataset):
    """A dataset with one file of features per bag, as in CLAM."""

    def __init__(self, folder: Path, slides: list[str], labels: list[int]) -> None:
        self.folder, self.slides, self.labels = folder, slides, labels

    def __len__(self) -> int:
        return len(self.slides)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return torch.load(self.folder / f"{self.slides[k]}.pt").float(), self.labels[k]


def write_feature_files(cohort: Path, folder: Path) -> Path:
    """Write features as .pt files, one per slide."""
    folder.mkdir(exist_ok=True)
    for path in sorted((cohort / "tables" / "embeddings" / ENCODER.replace(":", "-")).glob("*.parquet")):
        target = folder / f"{path.stem}.pt"
        if not target.exists():
            column = pq.read_table(path)["embedding"].combine_chunks()
            values = column.flatten().to_numpy().reshape(len(column), -1)
            torch.save(torch.from_numpy(values.copy()), target)
    return folder


def time_plain_loop(folder: Path, run: TrainingRun, dim: int, epochs: int, folds: int) -> tuple[float, pa.Table]:
    """Run the plain loop over some folds. Returns its seconds and its predictions of their test slides."""
    torch.set_num_threads(available_cores())
    labels = {row["slide_id"]: row for row in pq.read_table(run.table("labels")).to_pylist()}
    rows = [row for row in pq.read_table(run.table("folds")).to_pylist() if row["fold"] != FINAL_FOLD]
    out, took = [], 0.0
    for fold in range(folds):
        part = {
            split: [r["slide_id"] for r in rows if r["fold"] == fold and r["split"] == split]
            for split in ("train", "val", "test")
        }
        torch.manual_seed(fold)
        net = PlainClam(dim, 3)
        adam = torch.optim.Adam(net.parameters(), 1e-4, weight_decay=1e-5)
        best, least = None, float("inf")
        started = time.perf_counter()
        truth = np.array([labels[one]["label"] for one in part["train"]])
        for epoch in range(epochs):
            order = draw_class_balanced(truth, random_stream(fold, epoch))
            chosen = [part["train"][k] for k in order]
            net.train()
            for x, y in DataLoader(Bags(folder, chosen, [labels[one]["label"] for one in chosen]), batch_size=1):
                loss = net(x[0], int(y))[1]
                adam.zero_grad()
                loss.backward()
                adam.step()
            net.eval()
            with torch.no_grad():
                own = DataLoader(Bags(folder, part["val"], [labels[one]["label"] for one in part["val"]]), batch_size=1)
                val = sum(float(nn.functional.cross_entropy(net(x[0])[0], y)) for x, y in own)
            if val < least:
                best, least = {key: one.clone() for key, one in net.state_dict().items()}, val
        net.load_state_dict(best)
        with torch.no_grad():
            for x, slide_id in zip(
                DataLoader(Bags(folder, part["test"], [0] * len(part["test"])), batch_size=1), part["test"], strict=True
            ):
                p = torch.softmax(net(x[0][0])[0], 1)[0]
                out.append(
                    {
                        "task": "her2-3way",
                        "method": "clam-sb",
                        "input": "plain",
                        "fold": fold,
                        "slide_id": slide_id,
                        "truth": labels[slide_id]["truth"],
                        "p": p.tolist(),
                        "predicted": ("0", "low", "high")[int(p.argmax())],
                    }
                )
        took += time.perf_counter() - started
    from her2batch.store.tables.runs import run_schema

    return took, pa.Table.from_pylist(out, run_schema("predictions"))


def compare_plain_loop(args: argparse.Namespace, cohort: Path, run: TrainingRun, took: float) -> list[dict]:
    """Print how long the plain loop takes; return its metrics if it was run as a whole."""
    files = write_feature_files(cohort, args.scratch / f"files-{args.bags}-{args.dim}")
    if not args.whole:
        loop = 11 * args.epochs * time_plain_loop(files, run, args.dim, 1, 1)[0]
        print(f"plain loop {loop:.1f} s (from one epoch of one fold): {loop / took:.2f} × (at least 2.5)")
        return []
    loop, predictions = time_plain_loop(files, run, args.dim, args.epochs, 10)
    loop *= 11 / 10  # her2batch also trains the bundle's model
    print(f"plain loop {loop:.1f} s: {loop / took:.2f} × (at least 2.5)")
    return metrics_summary(metrics_table(predictions)).to_pylist()


def main() -> None:
    """Print the metrics and the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--method", choices=sorted(GATES), default="clam-sb")
    parser.add_argument("--bags", type=int, default=500)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    cohort, labels = make_cohort(args.scratch / f"bags-{args.bags}-{args.dim}", args.bags, args.dim)
    run = TrainingRun(args.scratch / "run")
    took, peak, summary = time_training(cohort, labels, run.root, args.method, args.epochs)
    needed = [products_bound(run, args.method, args.dim, args.epochs) for _ in range(2)]
    wall, cpu = (statistics.mean(values) for values in zip(*((one.wall, one.cpu) for one in needed), strict=True))
    print(f"ours {took.wall:.1f} s, peak {peak:.2f} GB; products {wall:.1f} s: {took.wall / wall:.2f} × (at most 1.6)")
    load = psutil.getloadavg()[0]
    print(f"CPU seconds: ours {took.cpu:.1f}, products {cpu:.1f}: {took.cpu / cpu:.2f} ×; load {load:.1f}")
    plain = compare_plain_loop(args, cohort, run, took.wall) if args.method == "clam-sb" else []
    for row in (*summary.to_pylist(), *plain):
        print(f"{row['input']}: AUC {row['auc_mean']:.2f} ± {row['auc_sd']:.2f}")


if __name__ == "__main__":
    main()
