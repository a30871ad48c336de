"""What does a reproduction of the paper's tables on a synthetic cohort give? Writes docs/reproduction.md from its run.

    python benchmarks/reproduction_page.py RUN --shuffled CONTROL > docs/reproduction.md

RUN: of `her2batch reproduce`.  CONTROL: of `her2batch train --shuffle-labels` with one end-to-end method.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from her2batch.store.training_run import TrainingRun
from her2batch.training.metrics import metrics_summary
from her2batch.training.statistics import compare_methods

Row = Mapping[str, Any]

TITLES = {
    "table4": "Table 4: end to end, on thumbnails",
    "table5": "Table 5: classes of patches",
    "table6": "Table 6: counts of patches of the low resolution",
    "tableS1": "Table S1: multiple-instance learning",
    "tableS2": "Table S2: counts of patches of the moderate resolution",
    "tableS3": "Table S3: counts of patches of the high resolution",
    "figure5": "Figure 5: ER and PR",
    "ours": "Rows of ours",
}

METRICS = ("auc", "f1", "accuracy")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    names = list(head)
    for cells in (names, ["---"] * len(names), *rows):
        yield "| " + " | ".join(cells) + " |"
    yield ""


def own(row: Row, name: str) -> str:
    """Return mean and standard deviation over the folds, percent."""
    mean, sd = row[f"{name}_mean"], row[f"{name}_sd"]
    return "–" if mean is None else f"{mean:.1f} ± {sd:.1f}"


def paper(row: Row, name: str) -> str:
    """Return the paper's mean, percent."""
    value = row[f"paper_{name}"]
    return "–" if value is None else f"{value:.1f}"


def paper_lines(tables: pa.Table) -> Iterator[str]:
    """Yield the tables of the run, each row beside that of the paper."""
    rows = tables.to_pylist()
    for name in dict.fromkeys(row["table"] for row in rows):
        every = [row for row in rows if row["table"] == name]
        of_table = [row for row in every if row["status"] == "reproduced"]
        yield f"## {TITLES.get(name, name)}"
        yield ""
        if len(of_table) < len(every):
            missing = dict.fromkeys(f"`{row['method']}`" for row in every if row["status"] != "reproduced")
            counts = f"{len(every) - len(of_table)} of {len(every)} rows"
            yield f"Without a result in this run: {counts} ({', '.join(missing)})."
            yield ""
        if not of_table:
            continue
        head = ["task", "method", "input", *(part for one in ("AUC", "F1", "accuracy") for part in (one, "paper"))]
        yield from table(
            head,
            (
                [row["task"], row["method"], row["input"]]
                + [text for metric in METRICS for text in (own(row, metric), paper(row, metric))]
                for row in of_table
            ),
        )
        for method, settings in dict.fromkeys((row["method"], row["settings"]) for row in of_table):
            if settings:
                yield f"- `{method}`: {settings}"
        yield ""


def control_lines(run: TrainingRun, control: TrainingRun) -> Iterator[str]:
    """Yield the end-to-end methods of the control run beside the same methods with true labels."""
    keys = ("task", "method", "input")
    shuffled = {tuple(row[key] for key in keys): row for row in metrics_summary(control.read("metrics")).to_pylist()}
    true = {tuple(row[key] for key in keys): row for row in metrics_summary(run.read("metrics")).to_pylist()}
    yield "## Shuffled labels"
    yield ""
    yield "The same method and settings, with the labels of each patient given to another patient."
    yield ""
    yield from table(
        ["task", "method", "input", "AUC", "AUC, shuffled", "accuracy", "accuracy, shuffled"],
        ([*cell, own(true[cell], "auc"), own(row, "auc"), own(true[cell], "accuracy"), own(row, "accuracy")]
         for cell, row in shuffled.items() if cell in true),
    )  # fmt: skip


def paired_lines(run: TrainingRun) -> Iterator[str]:
    """Yield each MIL method on the run's encoders, compared on the same slides."""
    predictions = run.read("predictions")
    patients = {row["slide_id"]: row["patient_id"] for row in run.read("folds").to_pylist()}
    of_mil = predictions.filter(pc.is_in(predictions["method"], pa.array(["clam-sb", "clam-mb", "dtfd-afs"])))
    compared = compare_methods(of_mil, patients).to_pylist()
    rows = [row for row in compared if row["method"] == row["other_method"] and row["input"] != row["other_input"]]
    yield "## Encoders compared"
    yield ""
    yield (
        "Each method on both encoders, on the same slides: difference of the pooled metrics, 95 % interval of 2,000 "
        "resamples of the patients, and p (two-sided, not corrected for the number of comparisons)."
    )
    yield ""
    yield from table(
        ["task", "method", "first less second", "metric", "difference", "interval", "p"],
        ([row["task"], row["method"], f"{row['input']} − {row['other_input']}", row["metric"],
          f"{100 * row['difference']:+.1f}", f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}", f"{row['p']:.3f}"]
         for row in rows if row["metric"] in METRICS),
    )  # fmt: skip


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--shuffled", type=Path)
    parser.add_argument("--introduction", type=Path, help="text that stands before the tables")
    args = parser.parse_args()
    run = TrainingRun(args.run)
    if args.introduction:
        print(args.introduction.read_text())
    lines = [*paper_lines(run.read("tables"))]
    if args.shuffled:
        lines += control_lines(run, TrainingRun(args.shuffled))
    lines += paired_lines(run)
    print("\n".join(lines).rstrip())


if __name__ == "__main__":
    main()
