"""Predictions of a slide from its cells: the HER2 guideline, ER and PR, and the Ki-67 index.

They follow from the slide's row and the tables of the store alone, so that an ingest, new labels and `score` give the
same predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from her2batch.assessment import IHC_TASK, prediction_review, quality_flags
from her2batch.models.guideline.cell_rule import MAX_NULL_SHARE, SHARE_SIGMA, CellRuleResult, score_cells
from her2batch.models.guideline.nuclear_rule import POSITIVE_SHARE, NuclearResult, is_low_share, score_nuclear
from her2batch.models.guideline.scorable import DOUBTFUL_NUCLEAR_SHARE, MIN_TUMOUR_CELLS, scorability, stained_shares
from her2batch.models.guideline.steps import probability_above
from her2batch.models.membrane_rule import MIN_PLAUSIBLE, rule_predictions
from her2batch.store import schemas
from her2batch.store.pieces.patient_tiles import patient_tiles
from her2batch.store.tables.cell_provenance import CellProvenance
from her2batch.tasks import CELL_RULE, CLASSES, DETAIL_TASK, MEMBRANE_RULE, her2_class, task_applies
from her2batch.vision.cells.compartment import TUMOUR_LIKELIHOOD

TABLE: Final = f"predictions/{CELL_RULE}"

AREA_TABLE: Final = f"predictions/{MEMBRANE_RULE}"
"""The predictions of the rule on area, whose sets hold what the cells say."""

NUCLEAR_STAINS: Final = frozenset({"er", "pr", "ki67"})
"""Stains whose DAB lies in nuclei. In all others it is looked for on membranes."""

MEASURED: Final = ("tumour", "moderate", "nuclear_dab", "membrane_dab", "cytoplasm_dab")
"""Columns of cells by which it is decided whether a slide can be scored."""

Values = dict[str, Any]


def counted_cells(read: Callable[[str], pa.Table]) -> pa.Table:
    """The cells of a slide that count towards its score: those of controls and excluded pieces do not.

    read: reads the slide's tables by name.  Raises what `read` raises.
    """
    cells, counts = read("cells"), patient_tiles(read)
    return cells if counts is None else cells.filter(pa.array(counts[cells["tile"].to_numpy()]))


def cell_predictions(row: Mapping[str, Any], cells: pa.Table) -> pa.Table:
    """Predictions of the method `cells` for one slide.

    row: slide_id, patient_id, stain and flags, as in the slides table.  cells: the cells that count.  A slide that
    cannot be scored has one row without a class, whose reasons say why; one without a task for its marker has no row.
    """
    columns = {name: cells[name].to_numpy() for name in (*MEASURED, "category")}
    stain = row["stain"]
    if task_applies(IHC_TASK, stain):
        found = _her2_predictions(row, columns, CellProvenance.of(cells))
    elif stain in NUCLEAR_STAINS:
        found = _nuclear_predictions(row, columns)
    else:
        found = []
    keys = {"slide_id": row["slide_id"], "patient_id": row["patient_id"], "method": CELL_RULE}
    return pa.Table.from_pylist([{**values, **keys} for values in found], schemas.table_schema(TABLE))


def is_presumed(by_area: pa.Table) -> bool:
    """Return whether the marker of a slide is presumed to be HER2, by its predictions of the membrane rule."""
    return any("marker-presumed" in reasons for reasons in by_area.column("reasons").to_pylist())


def both_rules(
    row: Mapping[str, Any], by_area: pa.Table | None, read: Callable[[str], pa.Table]
) -> dict[str, pa.Table]:
    """Return the tables of both rules for one slide, each with sets that hold the class of the other.

    row: as in the slides table.  by_area: the predictions of the membrane rule alone; None: its membranes were not
    measured.  read: reads the cells and the tiles of the slide.  Raises what `read` raises.
    """
    by_cells = cell_predictions(row, counted_cells(read))
    if by_area is None:
        return {TABLE: by_cells}
    return {AREA_TABLE: with_other_rule(by_area, by_cells), TABLE: with_other_rule(by_cells, by_area)}


def with_other_rule(predictions: pa.Table, other: pa.Table) -> pa.Table:
    """Return the HER2 predictions of one rule with sets that hold what the other rule says, without gaps.

    Where the area of the membranes and the cells differ, neither class can be ruled out. If the other rule says 2+
    without ISH, the classes of both ISH results are kept.  predictions, other: rows of one slide by `membrane` and
    `cells`, in any order; tasks without a class of both stay as they are.
    """
    said = {one["task"]: one for one in other.to_pylist() if one["predicted"] is not None and one["classes"]}
    rows = predictions.to_pylist()
    for one in rows:
        if one["predicted"] is not None and one["task"] in said:
            ranks = [one["classes"].index(name) for name in {*one["plausible"], *_kept_classes(said[one["task"]])}]
            one["plausible"] = one["classes"][min(ranks) : max(ranks) + 1]
    return pa.Table.from_pylist(rows, predictions.schema)


def _kept_classes(prediction: Values) -> set[str]:
    """The class of a prediction, and with 2+ without ISH those of both results."""
    both = "-+" if "needs-ish" in prediction["reasons"] else ""
    return {prediction["predicted"], *(str(her2_class(prediction["task"], "2+", ish)) for ish in both)}


def _her2_predictions(
    row: Mapping[str, Any], columns: Mapping[str, NDArray[Any]], provenance: CellProvenance
) -> list[Values]:
    presumed = row["stain"] in ("ihc", None)
    refused = scorability(columns, **provenance.picture)
    if refused is not None:
        return [_unscored(row, IHC_TASK, columns, refused.code, presumed)]
    result = score_cells(columns["category"], columns["tumour"])
    rows = rule_predictions(result, presumed, row["flags"], CELL_RULE)
    if presumed and _nuclei_are_stained(columns):
        for one in rows:
            one["reasons"] = [*one["reasons"], "marker-doubtful"]
            one["review"] = True
    rows.append({**rows[0], **_detailed(result)})
    return [{**values, **_shares(result.percent, result.n_cells, result.n_tumour)} for values in rows]


def _nuclei_are_stained(columns: Mapping[str, NDArray[Any]]) -> bool:
    """Whether so many tumour cells have DAB in the nucleus that the marker may be another than HER2."""
    tumour = columns["tumour"] >= TUMOUR_LIKELIHOOD
    return stained_shares({name: values[tumour] for name, values in columns.items()})[0] > DOUBTFUL_NUCLEAR_SHARE


def _detailed(result: CellRuleResult) -> Values:
    """The prediction of the task that divides 0 into null and ultralow."""
    stained = 1 - result.percent[0] / 100
    traces = probability_above(stained, MAX_NULL_SHARE, SHARE_SIGMA)
    zero, *others = result.p
    p = dict(zip(CLASSES[DETAIL_TASK], (min(zero, 1 - traces), zero - min(zero, 1 - traces), *others), strict=True))
    predicted = result.detail or result.category
    plausible = [name for name, value in p.items() if value >= MIN_PLAUSIBLE or name == predicted]
    names = {"classes": list(p), "p": list(p.values()), "predicted": predicted, "plausible": plausible}
    return {"task": DETAIL_TASK, **names}


def _nuclear_predictions(row: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]) -> list[Values]:
    marker = row["stain"]
    if int((columns["tumour"] >= TUMOUR_LIKELIHOOD).sum()) < MIN_TUMOUR_CELLS:
        return [_unscored(row, marker, columns, "few-tumour-cells", presumed=False)]
    result = score_nuclear(columns["category"], columns["tumour"], marker)
    reasons = [*quality_flags(row["flags"]), *result.reasons, "uncalibrated"]
    values = _index(result) if marker == "ki67" else _status(marker, result)
    review = prediction_review(marker, str(values["predicted"]), reasons)
    return [
        {
            "task": marker, "reasons": reasons, "review": review, **values,
            **_shares(result.percent, result.n_cells, result.n_tumour),
        }
    ]  # fmt: skip


def _index(result: NuclearResult) -> Values:
    """The Ki-67 index: percent of stained tumour nuclei, as a task of numbers has it."""
    percent = 100 * result.positive
    return {"classes": [], "p": [percent], "predicted": f"{percent:.1f}", "plausible": [], "score": percent}


def _status(marker: str, result: NuclearResult) -> Values:
    """ER or PR: negative or positive.  score: the Allred score, 0 or 2–8.

    Up to 10 % of stained nuclei, negative stays plausible: in another laboratory they may be its brown background.
    """
    classes = CLASSES[marker]
    positive = probability_above(result.positive, POSITIVE_SHARE, SHARE_SIGMA)
    p = dict(zip(classes, (1 - positive, positive), strict=True))
    predicted = classes[int(result.positive >= POSITIVE_SHARE)]
    low = is_low_share(result.positive)
    plausible = [name for name, value in p.items() if low or value >= MIN_PLAUSIBLE or name == predicted]
    return {
        "classes": list(classes), "p": list(p.values()), "predicted": predicted, "plausible": plausible,
        "score": float(result.allred),
    }  # fmt: skip


def _unscored(
    row: Mapping[str, Any], task: str, columns: Mapping[str, NDArray[Any]], code: str, presumed: bool
) -> Values:
    """The row of a slide that cannot be scored: it has no class, and the reason is among its reasons."""
    tumour = columns["tumour"] >= TUMOUR_LIKELIHOOD
    n = int(tumour.sum())
    counts = np.bincount(columns["category"][tumour], minlength=4)[:4]
    percent = (100 * counts / max(n, 1)).tolist()
    reasons = [*quality_flags(row["flags"]), code, *(["marker-presumed"] if presumed else [])]
    empty: Values = {"classes": [], "p": [], "plausible": [], "predicted": None, "score": None}
    return {"task": task, **empty, "review": True, "reasons": reasons, **_shares(percent, len(tumour), n)}


def _shares(percent: Any, n_cells: int, n_tumour: int) -> Values:
    h_score = sum(weight * share for weight, share in enumerate(percent))
    return {"percent": list(percent), "h_score": h_score, "n_cells": n_cells, "n_tumour": n_tumour}
