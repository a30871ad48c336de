"""Does every method learn on 60 synthetic patients, and nothing from shuffled labels?

usage: chance.py SCRATCH [--seed 7]

Makes and ingests a synthetic cohort of 60 patients and trains every method for her2-3way on the same ten folds with the
quick profile: small networks, because full ones take days on a CPU, and no patches of low resolution, which are too
few. EfficientNet-Lite0 is trained from ImageNet weights with the profile small-cohort (extra `weights`). Then trains
again with the labels shuffled over the patients. Prints AUC and accuracy of both, and the accuracy of always predicting
the largest class. The slides are synthetic: the results describe the software, not medicine.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from her2batch.experiments.train import TrainingRequest, train
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources, Training, TrainingResources
from her2batch.synthetic.cohort import make_cohort, plan_cohort

PATIENTS = 60
MORE = ("epochs=100", "patience=100", "lr=0.001", "batch=8")

GROUPS = {
    "heads": (("clam-sb", "clam-mb", "dtfd-afs", "dtfd-maxs", "dtfd-maxmins"), ("stain",), ()),
    "counts": (("random-forest", "svm", "mlp"), ("patches-moderate", "patches-high"), ()),
    "batch-norm": (("resnet50", "densenet201"), ("thumbnail-224",), ()),
    # small networks with layer norm learn more slowly from random weights
    "layer-norm": (
        ("convnext-small", "vit-base"),
        ("thumbnail-224",),
        ("epochs=100", "patience=100", "lr=0.001", "batch=8"),
    ),
    "imagenet": (("efficientnet-lite0",), ("thumbnail-224",), ()),
}
"""Group → methods, inputs, options in addition to the quick profile."""

FROM_IMAGENET = "imagenet"
"""Group that is trained with the profile small-cohort in place of the quick one."""


def ingest_cohort(scratch: Path, seed: int) -> tuple[Path, Path]:
    """Make and ingest a cohort of 60 patients, once; return the cohort and its annotations."""
    source, store = scratch / f"patients-{seed}", scratch / f"cohort-{seed}"
    sizes = range(PATIENTS, 4 * PATIENTS)
    patients = {n: len({slide.patient_id for slide in plan_cohort(n, seed, (6000, 5000))}) for n in sizes}
    slides = next(n for n in sizes if patients[n] > PATIENTS) - 1
    if not (source / "labels.csv").exists():
        make_cohort(source, slides, seed)
    ingest(IngestRequest(source / "slides", store, labels=source / "labels.csv"), Plan(), Resources())
    return store, source / "annotations"


def main() -> None:
    """Train the methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    store, annotations = ingest_cohort(args.scratch, args.seed)
    results: dict[bool, dict[tuple[str, ...], dict]] = {False: {}, True: {}}
    for shuffled in (False, True):
        for name, (methods, inputs, options) in GROUPS.items():
            profile: dict = {"profile": "small-cohort"} if name == FROM_IMAGENET else {"quick": True}
            training = Training(tasks=("her2-3way",), methods=methods, inputs=inputs, options=options,
                                shuffle_labels=shuffled, **profile)  # fmt: skip
            run = args.scratch / f"chance-{args.seed}-{name}-{'shuffled' if shuffled else 'true'}"
            started = time.perf_counter()
            result = train(TrainingRequest(store, run, None, annotations), training, TrainingResources())
            print(f"{run.name}: {time.perf_counter() - started:.0f} s, exit {result.exit_code}", flush=True)
            rows = result.summary.to_pylist()
            results[shuffled] |= {(row["method"], row["input"], row["task"]): row for row in rows}
    labels = pq.read_table(run / "labels.parquet", filters=[("task", "=", "her2-3way")])
    truth = Counter(labels["truth"].to_pylist())
    print(f"largest class alone: accuracy {100 * max(truth.values()) / sum(truth.values()):.1f} of {dict(truth)}")
    print("| method | input | AUC | accuracy | shuffled: AUC | accuracy |\n| --- | --- | --- | --- | --- | --- |")
    for key, row in results[False].items():
        if key[2] == "her2-3way":
            other = results[True][key]
            pairs = [(one, name) for one in (row, other) for name in ("auc", "accuracy")]
            cells = [f"{one[name + '_mean']:.1f} ± {one[name + '_sd']:.1f}" for one, name in pairs]
            print(f"| {key[0]} | {key[1]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
