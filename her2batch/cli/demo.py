"""The demo: everything once, on synthetic slides. A cohort made, ingested, trained on; then slides nobody has seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from her2batch.cli.console import plain_table, print_ingest_summary, print_note, progress
from her2batch.cli.console_training import print_training_summary, unit_progress
from her2batch.experiments.train import TrainingRequest, TrainingSummary, train
from her2batch.models.bundle import read_bundle
from her2batch.reports.cohort_page import write_report
from her2batch.runtime.ingest import IngestRequest, IngestSummary, ingest
from her2batch.settings import Plan, Resources, Spread, Training
from her2batch.store.cohort import Cohort
from her2batch.store.labels import label_slides, read_labels
from her2batch.synthetic.cohort import make_cohort

SIZE: Final = (2400, 2000)
"""Of a slide, level-0 px: small, for the demo is over in two minutes."""

SEED: Final = 1

TASK: Final = "her2-3way"

TRAINING: Final = Training(
    tasks=(TASK,),
    methods=("clam-sb", "random-forest", "svm", "mlp"),
    inputs=("stain", "patches-high"),
    folds=3,
    quick=True,
)


@dataclass
class Demo:
    """What the demo ends with. rows: held-out slides, each with its label and what the rule and the bundle say.

    report: of the held-out slides, with the evidence of each, and of the training.
    """

    trained: TrainingSummary | None
    held_out: IngestSummary
    rows: list[dict[str, Any]]
    report: Path | None = None

    @property
    def exit_code(self) -> int:
        """The worst of its parts."""
        return (self.trained.exit_code if self.trained is not None else 0) or self.held_out.exit_code


def demo(folder: Path, slides: int, held_out: int, quiet: bool, workers: int | None = None) -> Demo:
    """Make, ingest, train, and score what was held out, all under `folder`. The same command resumes.

    workers: None for one a core, 0 for the plain loop.
    """
    limits = Resources(workers=workers)
    print_note(f"making {slides} synthetic slides to train on and {held_out} to score, in {folder} …", quiet)
    known, new = folder / "known", folder / "new"
    for place, count, seed in ((known, slides, SEED), (new, held_out, SEED + 1)):
        if not (place / "labels.csv").exists():
            make_cohort(place, count, seed, SIZE)
    cohort = folder / "cohort"
    with progress(quiet) as report:
        order = IngestRequest(known / "slides", cohort, labels=known / "labels.csv")
        first = ingest(order, Plan(), limits, report)
    if first.exit_code:
        return Demo(None, first, [])
    print_note("training on them …", quiet)
    with unit_progress(quiet) as told:
        study = TrainingRequest(cohort, folder / "run", None, known / "annotations")
        trained = train(study, TRAINING, Spread(workers=workers), told)
    if trained.exit_code:
        return Demo(trained, first, [])
    print_note("reading and scoring the slides that were held out …", quiet)
    with progress(quiet) as report:
        order = IngestRequest(new / "slides", folder / "scored", bundle=trained.run.bundle, labels=new / "labels.csv")
        scored = ingest(order, Plan(), limits, report)
    held = Cohort(folder / "scored")
    rows = _rows(held, new / "labels.csv", read_bundle(trained.run.bundle).id)
    written = write_report(held, (folder / "report.html").absolute(), trained.run)
    return Demo(trained, scored, rows, written.path)


def _rows(cohort: Cohort, labels: Path, bundle: str) -> list[dict[str, Any]]:
    """Each labelled slide with its class, and what each method says of it."""
    slides = cohort.rows()
    good, _ = label_slides(read_labels(labels), TASK, slides)
    rows = []
    for one in good.to_pylist():
        row = {"slide_id": one["slide_id"], "truth": one["truth"]}
        for table in ("predictions/membrane", f"predictions/{bundle}"):
            for said in cohort.read(table, one["slide_id"]).to_pylist():
                if said["task"] == TASK:
                    row[said["method"]] = said["predicted"] + ("" if said["predicted"] == one["truth"] else " ✗")
        rows.append(row)
    return rows


def print_demo(found: Demo) -> None:
    """Figures of the training, and each held-out slide's label beside what was said of it."""
    if found.trained is not None:
        print_training_summary(found.trained)
    if found.rows:
        console = Console()
        methods = [name for name in found.rows[0] if name not in ("slide_id", "truth")]
        title = "held-out slides, HER2 3-way (synthetic: about the software, not about medicine)"
        table = plain_table(title, "slide", "label", *methods)
        for row in found.rows:
            table.add_row(row["slide_id"], row["truth"], *(row.get(name, "–") for name in methods))
        console.print(table)
    print_ingest_summary(found.held_out)
    if found.report is not None:
        print(f"report: {found.report}")
