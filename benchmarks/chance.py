"""Does every method learn, and nothing where there is nothing to learn? All of them on 60 synthetic patients, twice.

usage: chance.py SCRATCH [--seed 7]

Makes and ingests a synthetic cohort of 60 patients, trains every method for her2-3way on the same ten folds with the
quick profile (toy networks: full ones take days on a CPU; no patches of low resolution, of which there are too few to
learn from), and once more with the labels drawn at random over the
patients. Prints AUC and accuracy of both, and what always naming the largest class would give. On synthetic slides:
figures about the software, not about medicine.
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
    # toys that normalise layers learn more slowly from a random start
    "layer-norm": (
        ("convnext-small", "vit-base"),
        ("thumbnail-224",),
        ("epochs=100", "patience=100", "lr=0.001", "batch=8"),
    ),
}
"""Group → methods, inputs, options on top of the quick profile."""


def cohort(scratch: Path, seed: int) -> tuple[Path, Path]:
    """An ingested cohort of 60 patients, and its annotations; made once."""
    made, store = scratch / f"patients-{seed}", scratch / f"cohort-{seed}"
    slides = next(n for n in range(PATIENTS, 4 * PATIENTS)
                  if len({one.patient_id for one in plan_cohort(n, seed, (6000, 5000))}) > PATIENTS) - 1  # fmt: skip
    if not (made / "labels.csv").exists():
        make_cohort(made, slides, seed)
    ingest(IngestRequest(made / "slides", store, labels=made / "labels.csv"), Plan(), Resources())
    return store, made / "annotations"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    store, annotations = cohort(given.scratch, given.seed)
    found: dict[bool, dict[tuple[str, ...], dict]] = {False: {}, True: {}}
    for shuffled in (False, True):
        for name, (methods, inputs, options) in GROUPS.items():
            training = Training(tasks=("her2-3way",), methods=methods, inputs=inputs, options=options, quick=True,
                                shuffle_labels=shuffled)  # fmt: skip
            run = given.scratch / f"chance-{given.seed}-{name}-{'shuffled' if shuffled else 'true'}"
            started = time.perf_counter()
            result = train(TrainingRequest(store, run, None, annotations), training, TrainingResources())
            print(f"{run.name}: {time.perf_counter() - started:.0f} s, exit {result.exit_code}", flush=True)
            rows = result.summary.to_pylist()
            found[shuffled] |= {(row["method"], row["input"], row["task"]): row for row in rows}
    labels = pq.read_table(run / "labels.parquet", filters=[("task", "=", "her2-3way")])
    truth = Counter(labels["truth"].to_pylist())
    print(f"largest class alone: accuracy {100 * max(truth.values()) / sum(truth.values()):.1f} of {dict(truth)}")
    print("| method | input | AUC | accuracy | shuffled: AUC | accuracy |\n| --- | --- | --- | --- | --- | --- |")
    for key, row in found[False].items():
        if key[2] == "her2-3way":
            other = found[True][key]
            pairs = [(one, name) for one in (row, other) for name in ("auc", "accuracy")]
            cells = [f"{one[name + '_mean']:.1f} ± {one[name + '_sd']:.1f}" for one, name in pairs]
            print(f"| {key[0]} | {key[1]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
