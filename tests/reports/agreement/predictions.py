"""Predictions with their truth, made by hand or at random."""

import numpy as np
import pyarrow as pa

from her2batch.store.tables.runs import run_schema
from her2batch.tasks import CLASSES


def predictions(task: str, truth: list[str], p: np.ndarray) -> pa.Table:
    classes = CLASSES[task]
    rows = [
        {"task": task, "method": "m", "input": "i", "fold": 0, "slide_id": f"s{k}", "truth": truth[k],
         "p": p[k].tolist(), "predicted": classes[int(p[k].argmax())]}
        for k in range(len(truth))
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, run_schema("predictions"))


def one_patient_per_slide(table: pa.Table) -> dict[str, str]:
    return {slide_id: slide_id for slide_id in table["slide_id"].to_pylist()}


def random_predictions(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truths and probabilities of three classes; the probabilities are correlated with the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    logits = rng.normal(0, 1, (n, 3)) + 1.5 * np.eye(3)[truth]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, p.round(2) / p.round(2).sum(axis=1, keepdims=True)
