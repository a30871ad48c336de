"""Cohorts of tables for tests, as an ingest of laboratories with their own staining would leave them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from her2batch.pipeline.predict import rule_table
from her2batch.settings import Plan
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.schemas import embeddings_table, table_schema
from her2batch.tasks import IHC_SCORES
from her2batch.vision.membrane import FEATURES, MEMBRANE_COLUMNS, feature_index

STRENGTH = 3.5
"""A laboratory that stains strongly: shares are 3.5 times those that the rule expects."""

SHARES = {"0": (0.02, 0.002, 0.0002), "1+": (0.4, 0.02, 0.0005), "2+": (0.7, 0.35, 0.006), "3+": (0.95, 0.8, 0.5)}
"""Typical shares of a class: faint, moderate and complete, intense and complete."""


def membrane_of(label: str, rng: np.random.Generator, strength: float, tiles: int = 3) -> dict[str, np.ndarray]:
    """The membrane table of a slide: its shares vary, and a laboratory that stains strongly shows more of them."""
    noise = np.exp(rng.normal(0, 0.35) + rng.normal(0, 0.15, 3))
    faint, complete, intense = np.minimum(np.array(SHARES[label]) * noise * strength, 0.99)
    complete, intense = min(complete, faint), min(intense, complete, faint)
    values = {
        "cells": 0.5, "faint": faint, "moderate": (faint + complete) / 2, "intense": intense,
        "faint_complete": (faint + complete) / 2, "moderate_complete": complete, "intense_complete": intense,
    }  # fmt: skip
    return {name: np.full(tiles, values[name], np.float32) for name in MEMBRANE_COLUMNS}


def add_slide(
    cohort: Cohort,
    slide_id: str,
    label: str,
    rng: np.random.Generator,
    strength: float = 1.0,
    counterstain: float = 0.25,
    **columns: object,
) -> None:
    """Add a finished HER2 slide with the tables that a calibration reads. columns: others of its row."""
    membrane = membrane_of(label, rng, strength)
    n = len(membrane["cells"])
    row = dict.fromkeys(table_schema("slides").names) | {
        "slide_id": slide_id, "patient_id": slide_id.rsplit("-", 1)[0], "stain": "her2", "status": "done", "mpp": 0.25,
        "n_tiles": n, "flags": [], "files": [], "format": "aperio", "plan_id": cohort.plan().id,
    }  # fmt: skip
    row |= columns
    write_row(cohort, row)
    tables = {
        **tile_tables(slide_id, membrane, rng, counterstain),
        "predictions/membrane": rule_table(row, membrane, presumed=False),
    }
    cohort.add_tables(row, tables)


def tile_tables(
    slide_id: str, membrane: Mapping[str, np.ndarray], rng: np.random.Generator, counterstain: float
) -> dict[str, pa.Table]:
    """The tables of a slide with a row for each tile, which a calibration reads."""
    n = len(membrane["cells"])
    keys = {"slide_id": pa.array([slide_id] * n), "tile": pa.array(np.arange(n, dtype=np.int32))}
    vectors = np.zeros((n, len(FEATURES)), np.float16)
    vectors[:, feature_index("haematoxylin_p90")] = counterstain * np.exp(rng.normal(0, 0.1))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    return {
        "membrane": pa.table({**keys, **membrane}, table_schema("membrane")),
        "embeddings/stain": embeddings_table(slide_id, keys["tile"], flat),
    }


def add_control(
    cohort: Cohort,
    slide_id: str,
    expected: str,
    rng: np.random.Generator,
    strength: float = 1.0,
    counterstain: float = 0.25,
) -> None:
    """Add a piece of control tissue to a finished slide, with as many tiles as the patient's piece."""
    patient = {name: cohort.read(name, slide_id) for name in ("membrane", "embeddings/stain")}
    n, membrane = patient["membrane"].num_rows, membrane_of(expected, rng, strength)
    control = tile_tables(slide_id, membrane, rng, counterstain)
    tiles = {name: 0 for name in ("x", "y", "size", "tissue", "dab", "blur")}
    joined = {name: pa.concat_tables([patient[name], control[name]]) for name in patient}
    joined = {
        name: table.set_column(1, table.schema.field(1), pa.array(np.arange(2 * n, dtype=np.int32)))
        for name, table in joined.items()
    }
    piece = {name: 0 for name in ("x", "y", "width", "height", "area_mm2")} | {"n_tiles": n, "suspected": False}
    score = rule_table(cohort.rows()[slide_id], membrane, presumed=False).to_pylist()[0]
    roles = [
        {"piece": 0, "role": "tissue", "expected": None, "predicted": None, "score": None},
        {"piece": 1, "role": "control", "expected": expected, "predicted": score["predicted"], "score": score["score"]},
    ]
    pieces = [{"slide_id": slide_id, **piece, **role} for role in roles]
    rows = [{"slide_id": slide_id, "tile": k, "piece": k // n, **tiles} for k in range(2 * n)]
    joined["pieces"] = pa.Table.from_pylist(pieces, table_schema("pieces"))
    joined["tiles"] = pa.Table.from_pylist(rows, table_schema("tiles"))
    cohort.add_tables(cohort.rows()[slide_id], joined)


def make_laboratory(
    root: Path, counts: Mapping[str, int], strength: float = 1.0, seed: int = 0, plan: Plan | None = None
) -> tuple[Cohort, dict[str, str]]:
    """Make a cohort with so many slides of each class, one a patient; returns it and the class of each slide."""
    cohort = Cohort(root)
    cohort.create(plan or Plan())
    rng, labels = np.random.default_rng(seed), {}
    for label in IHC_SCORES:
        for k in range(counts.get(label, 0)):
            slide_id = f"{label[0]}x{k:03}-1"
            add_slide(cohort, slide_id, label, rng, strength)
            labels[slide_id] = label
    return cohort, labels


def write_sheet(path: Path, labels: Mapping[str, str], sites: Mapping[str, str] | None = None) -> Path:
    """Write a label sheet."""
    lines = ["slide_id,patient_id,her2,site"]
    lines += [f"{one},{one.rsplit('-', 1)[0]},{label},{(sites or {}).get(one, '')}" for one, label in labels.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def predictions(cohort: Cohort, source: str) -> dict[str, dict[str, dict]]:
    """slide → task → its prediction."""
    return {
        slide: {row["task"]: row for row in cohort.read(f"predictions/{source}", slide).to_pylist()}
        for slide in cohort.rows()
    }
