"""Is fusion better than the best single method, and an ordinal loss better than cross-entropy under noisy labels?

usage: noisy_labels.py SCRATCH [--slides 103] [--seed 7] [--folds 5] [--epochs 15]

Paints a synthetic HER2 cohort of about 60 patients (small slides), ingests it with the stain encoder, and trains on
her2-4way: first clam-sb, clam-mb, dtfd-afs and their fusion with the true labels; then clam-sb with cross-entropy, the
two ordinal losses and smoothed labels, where a quarter of the labels 0 and 1+ were exchanged at random. All metrics are
against the true labels. Prints means over the folds, and a paired Wilcoxon test over the folds. The slides are
synthetic: the results describe the software, not medicine.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from her2batch.experiments.train import TrainingRequest, train
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources, Training, TrainingResources
from her2batch.store.cohort import Row
from her2batch.store.training_run import TrainingRun
from her2batch.synthetic.cohort import make_cohort
from her2batch.training.metrics import metrics_table

NOISE = 0.25
"""Share of the labels 0 and 1+ that are exchanged."""

TASK = "her2-4way"
VARIANTS = {"cross-entropy": (), "corn": ("ordinal=corn",), "cumulative-link": ("ordinal=cumulative-link",)}
SMOOTHING = "reference,0,1+,2+,3+\n0,75,25,0,0\n1+,25,75,0,0\n2+,0,0,1,0\n3+,0,0,0,1\n"
FIGURES = ("auc", "accuracy", "kappa")


def prepare(scratch: Path, slides: int, seed: int) -> None:
    """Paint and ingest the cohort, and write its noisy labels, unless SCRATCH has them."""
    if (scratch / "noisy.csv").is_file():
        return
    made = scratch / "made"
    if not (made / "labels.csv").is_file():
        make_cohort(made, slides, seed=seed, size=(1700, 1400), workers=1)
    request = IngestRequest(made / "slides", scratch / "cohort", labels=made / "labels.csv")
    assert ingest(request, Plan(cells="off"), Resources(workers=0)).exit_code == 0
    with (made / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    draw = np.random.default_rng(seed)
    for row in rows:
        if row["her2"] in ("0", "1+") and draw.random() < NOISE:
            row["her2"] = {"0": "1+", "1+": "0"}[row["her2"]]
    with (scratch / "noisy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (scratch / "readers.csv").write_text(SMOOTHING)


def run(scratch: Path, name: str, training: Training, labels: Path) -> list[Row]:
    """Train a run, unless it is there, and return its metrics by method and fold against the true labels."""
    request = TrainingRequest(scratch / "cohort", scratch / name, labels)
    assert train(request, training, TrainingResources(workers=0)).exit_code == 0
    with (scratch / "made" / "labels.csv").open(newline="") as file:
        truth = {Path(row["slide_id"]).stem: row["her2"] for row in csv.DictReader(file)}
    predictions = TrainingRun(scratch / name).read("predictions")
    rows = [row | {"truth": truth[Path(row["slide_id"]).stem]} for row in predictions.to_pylist()]
    return metrics_table(type(predictions).from_pylist(rows, predictions.schema)).to_pylist()


def by_fold(rows: list[Row], method: str, figure: str) -> NDArray[np.float64]:
    """Return a figure of a method in every fold."""
    return np.array([row[figure] for row in sorted(rows, key=lambda row: row["fold"]) if row["method"] == method])


def print_rows(found: dict[str, list[NDArray[np.float64]]], reference: str) -> None:
    """Print a table: means of the figures, and the paired test of each figure's difference from the reference."""
    print("| method | AUC | accuracy | kappa | p (AUC, accuracy, kappa) |\n| --- | --- | --- | --- | --- |")
    for name, values in found.items():
        tests = "–"
        if name != reference:
            pairs = zip(values, found[reference], strict=True)
            tests = ", ".join(f"{wilcoxon(a, b).pvalue:.2f}" if (a != b).any() else "1.00" for a, b in pairs)
        print(f"| {name} | {' | '.join(f'{value.mean():.3f}' for value in values)} | {tests} |")


def main() -> None:
    """Run both comparisons and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    for name, default in (("slides", 103), ("seed", 7), ("folds", 5), ("epochs", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    prepare(args.scratch, args.slides, args.seed)
    options = (f"epochs={args.epochs}", "least_epochs=0", "lr=0.0005")
    common = {"tasks": (TASK,), "inputs": ("stain",), "folds": args.folds, "seed": args.seed}
    bases = ("clam-sb", "clam-mb", "dtfd-afs")
    true_labels = args.scratch / "made" / "labels.csv"
    rows = run(args.scratch, "fusion", Training(methods=(*bases, "fusion"), options=options, **common), true_labels)
    found = {method: [by_fold(rows, method, figure) for figure in FIGURES] for method in (*bases, "fusion")}
    best = max(bases, key=lambda method: found[method][0].mean())
    patients = len(set(TrainingRun(args.scratch / "fusion").read("labels")["patient_id"].to_pylist()))
    print(f"{patients} patients, {args.folds} folds; p against {best}, the best single method by AUC")
    print_rows(found, best)
    compared = {}
    for name, extra in VARIANTS.items():
        training = Training(methods=("clam-sb",), options=(*options, *extra), **common)
        rows = run(args.scratch, f"noisy-{name}", training, args.scratch / "noisy.csv")
        compared[name] = [by_fold(rows, "clam-sb", figure) for figure in FIGURES]
    smoothed = str(args.scratch / "readers.csv")
    training = Training(methods=("clam-sb",), options=options, disagreement=smoothed, **common)
    rows = run(args.scratch, "noisy-smoothed", training, args.scratch / "noisy.csv")
    compared["smoothed labels"] = [by_fold(rows, "clam-sb", figure) for figure in FIGURES]
    print("noisy labels; p against cross-entropy")
    print_rows(compared, "cross-entropy")


if __name__ == "__main__":
    main()
