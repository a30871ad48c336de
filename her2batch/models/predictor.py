"""Predict with a bundle: from a slide's features to rows of the predictions table, in `ingest` and `score` alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from her2batch.assessment import prediction_review, quality_flags
from her2batch.models.bundle import Bundle, ModelEntry, load_mil_head
from her2batch.models.fusion.stack import fuse
from her2batch.tasks import Task, task_applies

Floats = NDArray[np.float32]

MIN_PROBABILITY: Final = 1e-12
"""Smallest probability whose logarithm is computed."""


@dataclass(frozen=True)
class SlideFeatures:
    """The features of a slide that heads read.

    embeddings: encoder → (N, D).  patches: input → (n, 4) probabilities.  thumbnails: (task, method, input) → (C,).
    rules: (task, method) of the guideline rules → (C,), where a stack reads them.  stain: of the slides table.
    flags: quality flags.
    """

    stain: str | None
    flags: tuple[str, ...] = ()
    embeddings: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    patches: Mapping[str, Floats] = field(default_factory=dict)
    thumbnails: Mapping[tuple[str, str, str], Floats] = field(default_factory=dict)
    rules: Mapping[tuple[str, str], Floats] = field(default_factory=dict)


class BundlePredictor:
    """The loaded heads of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Load the heads. Raises InputError when one cannot be loaded."""
        from her2batch.models.device import set_deterministic

        set_deterministic("cpu")
        self.bundle = bundle
        self._heads = {entry.file: self._load(entry) for entry in bundle.info.models if entry.file}

    def _load(self, entry: ModelEntry) -> Any:
        if entry.kind == "mil":
            return load_mil_head(self.bundle, entry)
        if entry.kind == "counts":
            from her2batch.models.heads import load_head

            return load_head(self.bundle.path / entry.file, len(entry.classes))
        return None  # image networks run over pixels, see pipeline.predict

    def __call__(self, features: SlideFeatures) -> tuple[list[dict[str, Any]], dict[tuple[str, str, str], Floats]]:
        """Return rows of the predictions table without slide and patient, and the attention of each MIL head, (N,)."""
        rows, attention = [], {}
        found: dict[tuple[str, str, str], Floats] = {}
        for entry in sorted(self.bundle.info.models, key=lambda entry: entry.kind == "fusion"):  # last
            task = self.bundle.info.task(entry.task)
            if not task_applies(task, features.stain):
                continue
            if entry.stack is not None:
                bases = {key[1:]: values for key, values in found.items() if key[0] == entry.task}
                bases |= {(rule, rule): values for (name, rule), values in features.rules.items() if name == entry.task}
                p, tile_attention = fuse(entry.stack, bases), None
            else:
                p, tile_attention = self._probabilities(entry, features)
            if p is None:
                continue
            found[entry.task, entry.method, entry.input] = p
            if tile_attention is not None:
                attention[entry.task, entry.method, entry.input] = tile_attention
            if task.is_number:
                rows.append(_number_row(entry, task, float(p[0]), features))
            else:
                rows.append(_row(entry, task, apply_temperature(p, entry.temperature), features))
        return rows, attention

    def _probabilities(self, entry: ModelEntry, features: SlideFeatures) -> tuple[Floats | None, Floats | None]:
        """Return p, (C,), and the attention of a MIL head's most likely class. None where the slide lacks the input."""
        if entry.kind == "thumbnail":
            return features.thumbnails.get((entry.task, entry.method, entry.input)), None
        if entry.kind == "mil":
            bag = features.embeddings.get(entry.input)
            return self._run_mil(entry, bag) if bag is not None and len(bag) else (None, None)
        patches = features.patches.get(entry.input)
        if entry.kind != "counts" or patches is None or not len(patches):
            return None, None
        from her2batch.models.heads import count_features, head_probabilities, majority_vote

        counts = count_features(patches)[None]
        if entry.needs_no_file:
            return majority_vote(counts)[0], None
        return head_probabilities(self._heads[entry.file], counts, len(entry.classes))[0], None

    def _run_mil(self, entry: ModelEntry, bag: NDArray[Any]) -> tuple[Floats, Floats]:
        """Run a MIL head in float32 throughout, as scores must not depend on the type of processor.

        Returns probabilities, (C,), or the number, (1,); and the attention, (N,).
        """
        import torch

        with torch.inference_mode():
            out = self._heads[entry.file](torch.from_numpy(np.asarray(bag, np.float32)))
            if entry.scale is not None:
                p = (entry.scale[0] + entry.scale[1] * out.logits.float()).numpy()
            else:
                p = torch.softmax(out.logits, 0).numpy()
        branch = int(p.argmax()) if len(out.attention) > 1 else 0
        return p, out.attention[branch].numpy()


def apply_temperature(p: Floats, temperature: float) -> Floats:
    """Return probabilities (…, C) at another temperature; 1 changes nothing."""
    logits = np.log(np.maximum(p.astype(np.float64), MIN_PROBABILITY)) / temperature
    logits -= logits.max(axis=-1, keepdims=True)
    out = np.exp(logits)
    return np.asarray(out / out.sum(axis=-1, keepdims=True), np.float32)


def plausible_classes(p: Floats, threshold: float | None) -> list[int]:
    """Return the classes that cannot be ruled out, in order: always the most likely one, all without a threshold."""
    if threshold is None:
        return list(range(len(p)))
    return [k for k in range(len(p)) if p[k] >= threshold or k == int(p.argmax())]


def _number_row(entry: ModelEntry, task: Task, value: float, features: SlideFeatures) -> dict[str, Any]:
    """Return the row of a predicted number: `score` is the number, `plausible` the ends of its interval as text."""
    low, high = task.limits or (-np.inf, np.inf)
    value = float(np.clip(value, low, high))
    reasons, plausible = quality_flags(features.flags), []
    if entry.interval is None:
        reasons.append("uncalibrated")
    else:
        ends = np.clip([value - entry.interval, value + entry.interval], low, high)
        plausible = [f"{end:.4g}" for end in ends]
    if task.presumes_marker(features.stain):
        reasons.append("marker-presumed")
    text = f"{value:.4g}"
    return {
        "task": entry.task, "method": entry.method, "classes": [], "p": [], "predicted": text, "plausible": plausible,
        "review": entry.interval is None or prediction_review(entry.task, text, reasons), "reasons": reasons,
        "score": value,
    }  # fmt: skip


def _row(entry: ModelEntry, task: Task, p: Floats, features: SlideFeatures) -> dict[str, Any]:
    plausible, predicted = plausible_classes(p, entry.threshold), entry.classes[int(p.argmax())]
    reasons = quality_flags(features.flags)
    if len(plausible) != 1:
        reasons.append("undecided")
    if entry.threshold is None:
        reasons.append("uncalibrated")
    if task.presumes_marker(features.stain):
        reasons.append("marker-presumed")
    return {
        "task": entry.task,
        "method": entry.method,
        "classes": list(entry.classes),
        "p": [float(value) for value in p],
        "predicted": predicted,
        "plausible": [entry.classes[k] for k in plausible],
        "review": prediction_review(entry.task, predicted, reasons),
        "reasons": reasons,
        "score": None,
    }
