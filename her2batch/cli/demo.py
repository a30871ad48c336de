"""The demo on synthetic slides: make a cohort, ingest it, train on it, then score slides that were held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from her2batch.cli.console import (
    ingest_progress,
    print_ingest_summary,
    print_line,
    print_note,
    print_table,
    stdout_console,
)
from her2batch.cli.console_training import print_training_summary, unit_progress
from her2batch.cli.tables import Column
from her2batch.experiments.train import TrainingRequest, TrainingSummary, train
from her2batch.models.bundle import read_bundle
from her2batch.models.weights import EFFICIENTNET_LITE0, has_packaged_weights
from her2batch.pipeline.growth.ingest_summary import IngestSummary
from her2batch.reports.cohort_page import write_report
from her2batch.reports.prediction_counts import summarise_predictions
from her2batch.runtime.ingest import IngestRequest, ingest
from her2batch.settings import Plan, Resources, Training, TrainingResources
from her2batch.store.cohort import Cohort
from her2batch.store.labels import label_slides, read_labels
from her2batch.synthetic.cohort import make_cohort

SIZE: Final = (2400, 2000)
"""Width and height of a slide, level-0 px: small, so that the demo takes some three minutes."""

SEED: Final = 1

TASK: Final = "her2-3way"

DEEP: Final = "efficientnet-lite0"
"""Encoder that the demo adds, and trains on, where its weights are installed."""

TRAINING: Final = Training(
    tasks=(TASK,),
    methods=("clam-sb", "random-forest", "svm", "mlp"),
    inputs=("patches-high",),
    folds=3,
    quick=True,
)


@dataclass
class DemoSummary:
    """Result of the demo.

    rows: held-out slides, each with its label and the predictions of the rule and of the bundle.
    report: HTML report of the held-out slides and of the training.
    """

    trained: TrainingSummary | None
    held_out: IngestSummary
    rows: list[dict[str, Any]]
    report: Path | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of the first part that did not succeed, or 0."""
        return (self.trained.exit_code if self.trained is not None else 0) or self.held_out.exit_code


def demo(folder: Path, slides: int, held_out: int, quiet: bool, workers: int | None = None) -> DemoSummary:
    """Make, ingest, train, and score held-out slides, all under `folder`. A second call resumes.

    workers: None for one per core, 0 for a serial loop without Ray.
    """
    resources = Resources(workers=workers)
    print_note(f"making {slides} synthetic slides to train on and {held_out} to score, in {folder} …", quiet)
    known, new = folder / "known", folder / "new"
    for target, count, seed in ((known, slides, SEED), (new, held_out, SEED + 1)):
        if not (target / "labels.csv").exists():
            make_cohort(target, count, seed, SIZE)
    cohort, encoders = folder / "cohort", demo_encoders()
    with ingest_progress(quiet) as report:
        request = IngestRequest(known / "slides", cohort, labels=known / "labels.csv")
        first = ingest(request, Plan(encoders=encoders), resources, report)
    if first.exit_code:
        return DemoSummary(None, first, [])
    print_note("training on these slides …", quiet)
    with unit_progress(quiet) as unit_report:
        training = TrainingRequest(cohort, folder / "run", None, known / "annotations")
        settings = TRAINING.model_copy(update={"inputs": (encoders[-1], *TRAINING.inputs)})
        trained = train(training, settings, TrainingResources(workers=workers), unit_report)
    if trained.exit_code:
        return DemoSummary(trained, first, [])
    print_note("scoring the held-out slides …", quiet)
    with ingest_progress(quiet) as report:
        request = IngestRequest(new / "slides", folder / "scored", bundle=trained.run.bundle, labels=new / "labels.csv")
        scored = ingest(request, Plan(encoders=encoders), resources, report)
    scored_cohort = Cohort(folder / "scored")
    rows = _rows(scored_cohort, new / "labels.csv", read_bundle(trained.run.bundle).id)
    written = write_report(scored_cohort, (folder / "report.html").absolute(), trained.run)
    return DemoSummary(trained, scored, rows, written.path)


def demo_encoders() -> tuple[str, ...]:
    """Return the encoders of the demo: stain, and the deep one whose weights need no hub where they are installed."""
    return ("stain", DEEP) if has_packaged_weights(EFFICIENTNET_LITE0) else ("stain",)


def _rows(cohort: Cohort, labels: Path, bundle: str) -> list[dict[str, Any]]:
    """Each labelled slide with its class and the prediction of each method."""
    slides = cohort.rows()
    labelled, _ = label_slides(read_labels(labels), TASK, slides)
    rows = []
    for label in labelled.to_pylist():
        row = {"slide_id": label["slide_id"], "truth": label["truth"]}
        for table in ("predictions/membrane", f"predictions/{bundle}"):
            for call in cohort.read(table, label["slide_id"]).to_pylist():
                if call["task"] == TASK:
                    row[call["method"]] = call["predicted"] + ("" if call["predicted"] == label["truth"] else " ✗")
        rows.append(row)
    return rows


def print_demo(summary: DemoSummary) -> None:
    """Print the training metrics, and each held-out slide's label beside the predictions."""
    if summary.trained is not None:
        print_training_summary(summary.trained)
    if summary.rows:
        console = stdout_console()
        methods = [name for name in summary.rows[0] if name not in ("slide_id", "truth")]
        columns = (Column("slide", shorten=True), Column("label"), *map(Column, methods))
        cells = [[row["slide_id"], row["truth"], *(row.get(name, "–") for name in methods)] for row in summary.rows]
        title = "held-out slides, HER2 in three classes (synthetic slides: this shows the software, not medicine)"
        print_table(console, title, columns, cells)
    held_out = summary.held_out
    print_ingest_summary(held_out, *summarise_predictions(Cohort(held_out.cohort), held_out.fresh))
    if summary.report is not None:
        print_line(stdout_console(), f"report: {summary.report}")
