"""The rows of the paper's tables, and a comparison of a run with them.

The figures are those of the paper's tables (`paper.csv`). For the binary MLP its text quotes 96.67 / 88.52 / 91.78,
which is the row of the high resolution; its table 6 has 97.82 / 91.64 / 93.52, and the tables are used here. The
paper's cohort is confidential: only its procedure can be reproduced, not its figures.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Final, Literal

import pyarrow as pa

from her2batch.store.tables.runs import run_schema
from her2batch.tasks import FURTHER_NETWORKS, FUSION, FUSION_INPUT
from her2batch.training.methods import Cell

RowStatus = Literal["reproduced", "not run", "no data"]

METRIC_NAMES: Final = ("auc", "f1", "accuracy")


@dataclass(frozen=True)
class PaperRow:
    """A row of one of the paper's tables.

    input: as printed there.  figures: metric → mean and standard deviation, percent; None where the paper has none.
    """

    table: str
    task: str
    method: str
    input: str
    figures: Mapping[str, tuple[float | None, float | None]]

    def cell(self, encoder: str, thumbnail: str) -> Cell:
        """Return the task, method and input that reproduce this row.

        encoder: embeddings that MIL methods read (UNI in the paper).  thumbnail: input of the networks; the paper
        names two sizes, 224 and 512 px, but not which of them its table 4 used.
        """
        own_input = {"uni": encoder, "thumbnail": thumbnail}.get(self.input, self.input)
        return self.task, self.method, own_input


def paper_rows() -> list[PaperRow]:
    """Return all 58 rows, in the paper's order."""
    text = files("her2batch.reports").joinpath("paper.csv").read_text(encoding="utf-8")
    rows = []
    for row in csv.DictReader(text.splitlines()):
        figures = {name: (_optional_float(row[name]), _optional_float(row[f"{name}_sd"])) for name in METRIC_NAMES}
        rows.append(PaperRow(row["table"], row["task"], row["method"], row["input"], figures))
    return rows


OWN_TABLE: Final = "ours"
"""Name of the table of rows that are ours and not the paper's."""


def further_rows(encoders: Sequence[str] = ()) -> list[PaperRow]:
    """Return rows that the paper does not have, without figures of the paper.

    They are networks beside its table 4, and the methods of its table S1 on further encoders.
    """
    nothing = dict.fromkeys(METRIC_NAMES, (None, None))
    tasks = dict.fromkeys(row.task for row in paper_rows() if row.table == "table4")
    heads = [(row.task, row.method) for row in paper_rows() if row.table == "tableS1"]
    rows = [PaperRow(OWN_TABLE, task, method, "thumbnail", nothing) for task in tasks for method in FURTHER_NETWORKS]
    return [*rows, *(PaperRow(OWN_TABLE, *head, encoder, nothing) for encoder in encoders for head in heads)]


def fusion_rows(tasks: Iterable[str]) -> list[PaperRow]:
    """Return a row of the method `fusion` for each of these tasks, which the paper does not have."""
    return [
        PaperRow(OWN_TABLE, task, FUSION, FUSION_INPUT, dict.fromkeys(METRIC_NAMES, (None, None))) for task in tasks
    ]


def _optional_float(text: str) -> float | None:
    return float(text) if text else None


def compare_with_paper(
    rows: Sequence[tuple[PaperRow, Cell]],
    summary: pa.Table,
    missing: Mapping[Cell, str],
    settings: Mapping[Cell, str] = MappingProxyType({}),
    folds: int | None = None,
) -> pa.Table:
    """Return the table `tables` of a run: each row of the paper with the result of this run.

    rows: each with the cell (task, method, input) that was run for it.  summary: summary of the run's metrics.
    missing: cell → why it has no data.  settings: cell → its settings in this run, as text.
    folds: of a result; one with fewer, of a run that was stopped, is none. None: every one is a result.
    """
    whole = [row for row in summary.to_pylist() if folds is None or row["folds"] == folds]
    results = {(row["task"], row["method"], row["input"]): row for row in whole}
    compared = []
    for row, cell in rows:
        own = results.get(cell, {})
        status: RowStatus = "reproduced" if own else "no data" if cell in missing else "not run"
        why = None if own else missing.get(cell, "the run was stopped, or a unit failed: resume it")
        means = {f"{name}_{part}": own.get(f"{name}_{part}") for name in METRIC_NAMES for part in ("mean", "sd")}
        paper = {f"paper_{name}": row.figures[name][0] for name in METRIC_NAMES}
        keys = dict(zip(("task", "method", "input"), cell, strict=True))
        words = {"status": status, "why": why, "settings": settings.get(cell)}
        compared.append({"table": row.table, **keys, **means, **paper, **words})
    return pa.Table.from_pylist(compared, run_schema("tables"))
