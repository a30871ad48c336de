"""The paper's rows, ours beside them.

The figures are those of its tables (`paper.csv`). Its text quotes 96.67 / 88.52 / 91.78 for the binary MLP, which is
the row of the high resolution, where its table 6 has 97.82 / 91.64 / 93.52: the tables count. Its cohort is
confidential, so nobody outside can reproduce the figures themselves, only the procedure.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Literal

import pyarrow as pa

from her2batch.store.schemas import run_schema
from her2batch.training.methods import Cell

Status = Literal["reproduced", "not run", "no data"]

FIGURES: Final = ("auc", "f1", "accuracy")


@dataclass(frozen=True)
class PaperRow:
    """A row of one of its tables. input: as printed there.  figures: mean and sd, percent; None where it gives none."""

    table: str
    task: str
    method: str
    input: str
    figures: Mapping[str, tuple[float | None, float | None]]

    def cell(self, encoder: str, thumbnail: str) -> Cell:
        """What is run for it: MIL reads this encoder's embeddings (the paper: UNI), networks these thumbnails.

        The paper names two sizes of thumbnails, 224 and 512 px, and not which its table 4 used.
        """
        given = {"uni": encoder, "thumbnail": thumbnail}.get(self.input, self.input)
        return self.task, self.method, given


def paper_rows() -> list[PaperRow]:
    """All 58 rows, in the paper's order."""
    text = files("her2batch.reports").joinpath("paper.csv").read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(text.splitlines()):
        figures = {name: (_number(row[name]), _number(row[f"{name}_sd"])) for name in FIGURES}
        found.append(PaperRow(row["table"], row["task"], row["method"], row["input"], figures))
    return found


def _number(text: str) -> float | None:
    return float(text) if text else None


def beside(rows: Sequence[tuple[PaperRow, Cell]], summary: pa.Table, missing: Mapping[Cell, str]) -> pa.Table:
    """The run's tables.parquet: each of the paper's rows with what this run found.

    rows: each with the cell that was run for it.  summary: of the run's metrics.  missing: cell → why it has no data.
    """
    found = {(one["task"], one["method"], one["input"]): one for one in summary.to_pylist()}
    out = []
    for row, cell in rows:
        own = found.get(cell, {})
        status: Status = "reproduced" if own else "no data" if cell in missing else "not run"
        why = None if own else missing.get(cell, "the run was stopped, or a unit failed: resume it")
        means = {f"{name}_{what}": own.get(f"{name}_{what}") for name in FIGURES for what in ("mean", "sd")}
        paper = {f"paper_{name}": row.figures[name][0] for name in FIGURES}
        named = dict(zip(("task", "method", "input"), cell, strict=True))
        out.append({"table": row.table, **named, **means, **paper, "status": status, "why": why})
    return pa.Table.from_pylist(out, run_schema("tables"))
