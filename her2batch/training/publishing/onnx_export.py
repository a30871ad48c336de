"""Export of a bundle's heads and networks to ONNX, each checked against the model that `score` runs.

An exported model computes what a bundle's model computes, its normalisation and temperature included: from pixels, (n,
3, edge, edge) float32 RGB 0–255, to `p`, (n, classes); or from a bag, (tiles, dim) float32, to `p`, (classes,), or the
predicted number, (1,), and `attention`, (K, tiles). Its metadata state task, classes, input and licence.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from her2batch.errors import InputError, install_extra
from her2batch.files.atomic import atomic_write
from her2batch.models.bundle import Bundle, ModelEntry, load_mil_head, load_network

TOLERANCE: Final = 1e-4
"""Largest difference of a probability, or of a part of a number, between an exported model and the bundle's own."""

BAG_SIZES: Final = (40, 1, 7, 300)
"""Tiles of the bag that is exported with, and of the bags that the result is checked on."""

BATCHES: Final = (2, 1, 3)
"""The same for images."""

OPSET: Final = 17


@dataclass(frozen=True)
class ExportedModel:
    """The result of one model. path: of its file; None where it cannot be exported, for the reason in `words`."""

    entry: ModelEntry
    path: Path | None
    words: str


class _Head(nn.Module):
    """A MIL head with its temperature, or with the scale of its number."""

    def __init__(self, head: nn.Module, entry: ModelEntry) -> None:
        super().__init__()
        self.head, self.entry = head, entry

    def forward(self, bag: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.head(bag)
        if self.entry.scale is not None:
            return self.entry.scale[0] + self.entry.scale[1] * out.logits, out.attention
        return torch.softmax(out.logits / self.entry.temperature, 0), out.attention


class _Classifier(nn.Module):
    """An image network with its normalisation and temperature."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], temperature: float) -> None:
        super().__init__()
        self.net, self.temperature = net, temperature
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.net((pixels - self.mean) / self.std) / self.temperature, 1)


def export_onnx(bundle: Bundle, out: Path) -> list[ExportedModel]:
    """Write an ONNX file of each model of a bundle into a folder. Models that cannot be exported are named.

    Raises InputError when the extra `onnx` is not installed, or when a head cannot be loaded.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError("the packages onnx and onnxruntime are not installed", None, install_extra("onnx")) from error
    out.mkdir(parents=True, exist_ok=True)
    return [_export(bundle, entry, out) for entry in bundle.info.models]


def _export(bundle: Bundle, entry: ModelEntry, out: Path) -> ExportedModel:
    if entry.kind == "fusion":
        return ExportedModel(
            entry, None, "a fusion is computed from the other models; bundle.toml has its coefficients"
        )
    if entry.kind == "counts":
        return ExportedModel(entry, None, "a classifier of counts is a scikit-learn model in a skops file")
    model, examples = _model_with_examples(bundle, entry)
    path = out / f"{Path(entry.file).stem}.onnx"
    name, outputs = ("bag", ["p", "attention"]) if entry.kind == "mil" else ("pixels", ["p"])
    axes = {name: {0: "n"}} | ({"attention": {1: "n"}} if entry.kind == "mil" else {"p": {0: "n"}})
    try:
        with atomic_write(path) as part:
            _write(model, examples[0], part, {"input_names": [name], "output_names": outputs, "dynamic_axes": axes})
            _add_metadata(bundle, entry, part)
            difference = _largest_difference(model, examples[1:], part, name)
            if difference > TOLERANCE:
                raise ValueError(f"the exported model differs by {difference:.2g}")
    except Exception as error:  # noqa: BLE001  (the exporter and the runtime fail in many ways)
        path.unlink(missing_ok=True)
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        return ExportedModel(entry, None, f"it computes something that ONNX cannot repeat: {reason}")
    return ExportedModel(entry, path, f"checked, largest difference {difference:.1g}")


def _model_with_examples(bundle: Bundle, entry: ModelEntry) -> tuple[nn.Module, list[torch.Tensor]]:
    """Return a model, and random inputs of several sizes."""
    draw = torch.Generator().manual_seed(0)
    if entry.kind == "mil":
        assert entry.dim is not None
        bags = [torch.randn(n, entry.dim, generator=draw) for n in BAG_SIZES]
        return _Head(load_mil_head(bundle, entry), entry).eval(), bags
    found = load_network(bundle, entry)
    assert found.normalization is not None
    net = _Classifier(found.net, found.normalization.mean, found.normalization.std, entry.temperature)
    shape = (3, entry.edge, entry.edge)
    return net.eval(), [torch.randint(0, 256, (n, *shape), generator=draw).float() for n in BATCHES]


def _write(model: nn.Module, example: torch.Tensor, path: Path, names: dict[str, Any]) -> None:
    """Export by tracing: the other exporter of torch fixes the number of tiles of an attention."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is called legacy, and notes constants in attention
        torch.onnx.export(model, (example,), str(path), dynamo=False, opset_version=OPSET, **names)


def _add_metadata(bundle: Bundle, entry: ModelEntry, path: Path) -> None:
    import onnx

    found = onnx.load(str(path))
    facts = {
        "task": entry.task, "method": entry.method, "input": entry.input, "classes": json.dumps(entry.classes),
        "bundle": bundle.id, "her2batch": bundle.info.her2batch, "licence": bundle.info.licence,
        "mpp": str(bundle.info.mpp if entry.kind == "mil" else entry.mpp),
    }  # fmt: skip
    for key, value in facts.items():
        found.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(found)
    onnx.save(found, str(path))


def _largest_difference(model: nn.Module, examples: list[torch.Tensor], path: Path, name: str) -> float:
    """Return the largest difference of an output between ONNX Runtime and torch, relative to values above 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure is an exception; its text need not be on the screen too
    session = onnxruntime.InferenceSession(str(path), options)
    largest = 0.0
    for example in examples:
        with torch.no_grad():
            wanted = model(example)
        pairs = zip(session.run(None, {name: example.numpy()}), _as_tuple(wanted), strict=True)
        largest = max(largest, *(_difference(found, np.asarray(own)) for found, own in pairs))
    return largest


def _as_tuple(values: Any) -> tuple[torch.Tensor, ...]:
    return values if isinstance(values, tuple) else (values,)


def _difference(found: NDArray[np.float32], own: NDArray[np.float32]) -> float:
    if found.shape != own.shape:
        raise ValueError(f"an output has the shape {found.shape}, not {own.shape}")
    return float((np.abs(found - own) / np.maximum(1, np.abs(own))).max(initial=0))
