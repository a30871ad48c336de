"""Schemas of the tables of a training run, one file per table in the folder of the run."""

from __future__ import annotations

import pyarrow as pa

from her2batch.store.tables.column import F32, F64, I32, TEXT, Column

FOLD_COLUMNS = (
    Column("task", TEXT, "her2-4way · her2-5way · her2-3way · her2-binary · er · pr, or a task of the user's own"),
    Column("fold", I32, "number from 0; −1: the model for the bundle, which tests no slide"),
    Column("slide_id", TEXT, "key"),
    Column("patient_id", TEXT, "all slides of a patient are in the same split"),
    Column("split", TEXT, "train · val · test"),
)

RUN_PREDICTION_COLUMNS = (
    Column("task", TEXT, "her2-4way · her2-5way · her2-3way · her2-binary · er · pr, or a task of the user's own"),
    Column("method", TEXT, "clam-sb, convnext-small, random-forest, …"),
    Column("input", TEXT, "an encoder, thumbnail-224, patches-low, …"),
    Column("fold", I32, "fold that tests the slide"),
    Column("slide_id", TEXT, "key; one row per patch where patches are classified"),
    Column("truth", TEXT, "class of the labels, or their number"),
    Column("p", pa.list_(F32), "probability of each class, in the task's order, or the one predicted number"),
    Column("predicted", TEXT, "most likely class, or the number as text"),
)

METRIC_COLUMNS = (
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "as in predictions"),
    Column("input", TEXT, "as in predictions"),
    Column("fold", I32, "as in predictions"),
    Column("auc", F64, "area under the ROC curve, one against the rest, mean over classes, 0–1; null: one class only"),
    Column("f1", F64, "F1, mean over classes, 0–1"),
    Column("accuracy", F64, "share of correct predictions, 0–1"),
    Column("kappa", F64, "kappa, quadratic weighted where the classes are ordered, −1–1; null: one class only"),
    Column("n", I32, "number of tested slides, or of patches where patches are classified"),
)

TEST_PREDICTION_COLUMNS = (
    Column("cohort", TEXT, "other cohort that the bundle was tested on"),
    *RUN_PREDICTION_COLUMNS,
)

TEST_METRIC_COLUMNS = (
    Column("cohort", TEXT, "as in test_predictions"),
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "as in predictions"),
    Column("input", TEXT, "as in predictions"),
    Column("metric", TEXT, "auc · f1 · accuracy · kappa · recall, or c_index · r2 · mae of a number"),
    Column("class", TEXT, "class of a recall; null for other metrics"),
    Column("value", F64, "of all tested slides; null where a class has too few of them"),
    Column("low", F64, "lower end of the 95 % interval, from resampled patients"),
    Column("high", F64, "upper end"),
    Column("n", I32, "number of tested slides"),
)

NUMBER_METRIC_COLUMNS = (
    Column("c_index", F64, "share of pairs in the right order, 0–1; only in runs with a task that predicts a number"),
    Column("r2", F64, "share of the variance that is explained, at most 1; only in such runs"),
    Column("mae", F64, "mean absolute error, in the unit of the number; only in such runs"),
)
"""Further columns of the metrics of a run with a task that predicts a number."""

EXCLUDED_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("patient_id", TEXT, "from the labels"),
    Column("task", TEXT, "task from which the slide is excluded"),
    Column("reason", TEXT, "reason, as a stable word"),
    Column("words", TEXT, "reason, as a sentence"),
)

APPLIED_REVIEW_COLUMNS = (
    Column("slide_id", TEXT, "key"),
    Column("column", TEXT, "column of the labels: her2 · er · pr"),
    Column("number", I32, "number of the newest review of the slide, which counts"),
    Column("was", TEXT, "value in the labels; null: none"),
    Column("now", TEXT, "value that the run used; null: none, the slide is excluded"),
    Column("words", TEXT, "differences from the labels and from other reviewers; null: none"),
)

PAPER_TABLE_COLUMNS = (
    Column("table", TEXT, "of the paper: table4 · table5 · table6 · tableS1 · tableS2 · tableS3 · figure5 · ours"),
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "as in predictions"),
    Column("input", TEXT, "input in this run"),
    *(Column(f"{metric}_{name}", F64, f"{statistic} over the folds, percent") for metric in ("auc", "f1", "accuracy")
      for name, statistic in (("mean", "mean"), ("sd", "sample standard deviation"))),
    Column("paper_auc", F64, "mean in the paper, percent"),
    Column("paper_f1", F64, "mean in the paper, percent"),
    Column("paper_accuracy", F64, "mean in the paper, percent; null: not given"),
    Column("status", TEXT, "reproduced · not run · no data"),
    Column("why", TEXT, "why it was not reproduced; null when it was"),
    Column("settings", TEXT, "of this run: size of the network, initial weights, epochs"),
)  # fmt: skip

TRIAL_COLUMNS = (
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "as in predictions"),
    Column("input", TEXT, "as in predictions"),
    Column("fold", I32, "outer fold; its test slides were not used"),
    Column("trial", TEXT, "name of the trial in Ray Tune"),
    Column("settings", TEXT, "settings of the trial, as JSON"),
    Column("val_loss", F64, "smallest loss on the validation slides of the fold"),
    Column("best_epoch", I32, "epoch of the smallest loss"),
    Column("epochs", I32, "number of trained epochs; ASHA or early stopping may end a trial"),
    Column("status", TEXT, "done · failed"),
)

RUN_LABEL_COLUMNS = (
    Column("task", TEXT, "as in folds"),
    Column("slide_id", TEXT, "as in folds"),
    Column("patient_id", TEXT, "as in folds"),
    Column("label", I32, "position of the class in the order of the task; 0 for a number"),
    Column("truth", TEXT, "class of the labels, or their number; shuffled in a control run (--shuffle-labels)"),
)

READING_COLUMNS = (
    Column("task", TEXT, "as in folds"),
    Column("slide_id", TEXT, "as in folds"),
    Column("reader", TEXT, "reader, as in the labels"),
    Column("truth", TEXT, "class that the labels of this reader give; no row where they give none"),
)

RULE_COLUMNS = (
    Column("task", TEXT, "as in predictions"),
    Column("method", TEXT, "membrane · cells"),
    Column("slide_id", TEXT, "as in folds"),
    Column("p", pa.list_(F32), "probability of each class, as in the cohort; no row where the rule gives none"),
)

RUN_PATCH_COLUMNS = (
    Column("slide_id", TEXT, "as in the cohort"),
    Column("resolution", TEXT, "low · moderate · high: 3.24 · 1.17 · 0.23 µm/px"),
    Column("x", I32, "left, level-0 px"),
    Column("y", I32, "top, level-0 px"),
    Column("size", I32, "edge, level-0 px"),
    Column("truth", TEXT, "class of the annotation that covers most of the patch"),
    Column("share", F32, "share of the patch that the annotation covers; at least 0.05"),
)

UNIT_ATTENTION_COLUMNS = (
    Column("slide_id", TEXT, "test slide of the unit"),
    Column("tile", I32, "as in tiles"),
    Column("attention", F32, "share of the tile in the attention for the most likely class; the sum over tiles is 1"),
)

UNIT_COUNTS_COLUMNS = (
    Column("slide_id", TEXT, "slide of the fold"),
    Column(
        "features",
        pa.list_(F64),
        "shares of the patches that are classified as 0, 1+, 2+, 3+; logarithm of 1 + their number",
    ),
)

UNIT_HISTORY_COLUMNS = (
    Column("epoch", I32, "number from 1; training may end before the last epoch of the settings"),
    Column("train_loss", F64, "mean loss over the training part"),
    Column("val_loss", F64, "mean loss over the validation part; the weights of the smallest are kept"),
)

RUN_TABLES: dict[str, tuple[Column, ...]] = {
    "labels": RUN_LABEL_COLUMNS,
    "readings": READING_COLUMNS,
    "folds": FOLD_COLUMNS,
    "predictions": RUN_PREDICTION_COLUMNS,
    "rules": RULE_COLUMNS,
    "metrics": METRIC_COLUMNS,
    "excluded": EXCLUDED_COLUMNS,
    "reviews": APPLIED_REVIEW_COLUMNS,
    "patches": RUN_PATCH_COLUMNS,
    "tables": PAPER_TABLE_COLUMNS,
    "trials": TRIAL_COLUMNS,
    "untuned_metrics": METRIC_COLUMNS,
    "test_predictions": TEST_PREDICTION_COLUMNS,
    "test_metrics": TEST_METRIC_COLUMNS,
    "units/UNIT/attention": UNIT_ATTENTION_COLUMNS,
    "units/UNIT/counts": UNIT_COUNTS_COLUMNS,
    "units/UNIT/history": UNIT_HISTORY_COLUMNS,
}
"""Tables of a training run, one file per table."""


def run_schema(name: str, numbers: bool = False) -> pa.Schema:
    """The Arrow schema of a table of a training run.  numbers: with the metrics of tasks that predict a number."""
    columns = RUN_TABLES.get(name) or RUN_TABLES[f"units/UNIT/{name}"]
    columns = (*columns, *NUMBER_METRIC_COLUMNS) if numbers else columns
    return pa.schema([pa.field(column.name, column.type) for column in columns])
