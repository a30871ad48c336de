"""The model card of a bundle: README.md, in Markdown, with the sections of Mitchell et al., FAT* 2019.

A card states what the models read and predict, what they were trained and tested on, their licence, and lines of plain
PyTorch that load each of them without her2batch. All of it follows from the bundle and the tables of its run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import pyarrow as pa

from her2batch.models.bundle import BundleInfo, ModelEntry
from her2batch.models.nets import network_spec
from her2batch.models.ordinal.links import LINK_MODULE
from her2batch.store.training_run import FINAL_FOLD, TrainingRun

CARD: Final = "README.md"
"""File of the card: the name that repositories of models show."""

FIGURES: Final = {"auc": "AUC", "f1": "F1", "accuracy": "accuracy", "kappa": "kappa", "c_index": "C-index", "r2": "R²"}
"""Metric → its words, in the order of the table."""

NETWORK_LINES: Final = """\
import timm, torch
from safetensors.torch import load_file

net = timm.create_model({arguments})
net.load_state_dict(load_file("{file}"))
net.eval()
mean, std = (torch.tensor(values).view(3, 1, 1) for values in ({mean}, {std}))
with torch.inference_mode():  # pixels: (n, 3, {edge}, {edge}) float32, RGB, 0 to 255
    p = torch.softmax(net((pixels / 255 - mean) / std) / {temperature}, dim=1)  # {classes}
"""

CLAM_LINES: Final = """\
import torch
from safetensors.torch import load_file

w = load_file("{file}")  # bag: (tiles, {dim}) float32, the embeddings of {input}
h = torch.relu(bag @ w["embed.weight"].T + w["embed.bias"])
v, u = (h @ w["attention.gate.weight"].T + w["attention.gate.bias"]).chunk(2, dim=1)
scores = (torch.tanh(v) * torch.sigmoid(u)) @ w["attention.score.weight"].T + w["attention.score.bias"]
attention = torch.softmax(scores, dim=0)
logits = {pooled} + w["classify.bias"]
p = torch.softmax(logits / {temperature}, dim=0)  # {classes}
"""

POOLED: Final = {
    "clam-sb": '(attention.T @ h)[0] @ w["classify.weight"].T',
    "clam-mb": '((attention.T @ h) * w["classify.weight"]).sum(dim=1)',
}
"""Method → what its classifier reads: one vector of the bag, or one for each class."""


CORN_LINES: Final = """
def ordered(r):  # CORN: log P(y >= k) + log P(y = k | y >= k)
    f, o, s = r.diff(dim=-1), torch.zeros_like(r[..., :1]), torch.nn.functional.logsigmoid
    return torch.cat([o, s(f).cumsum(-1)], -1) + torch.cat([s(-f), o], -1)
"""

CUMULATIVE_LINES: Final = """
t, c = load_file("{file}")["{name}.thresholds"], torch.arange({n}) - ({n} - 1) / 2
theta = torch.cat([t[:1], torch.nn.functional.softplus(t[1:])]).cumsum(0)

def ordered(r):  # cumulative link: log of the differences of P(y <= k)
    below = torch.sigmoid(theta - (r * c).sum(-1, keepdim=True) / (c**2).sum())
    return torch.nn.functional.pad(below, (0, 1), value=1).diff(dim=-1, prepend=torch.zeros_like(below[..., :1])).log()
"""


def model_card(info: BundleInfo, run: TrainingRun) -> str:
    """Return the card of a bundle in Markdown. info: its content.  run: the training run that it belongs to."""
    parts = [
        _header(info),
        _overview(info),
        *_data(info, run.read("labels"), run.read("folds")),
        *_evaluation(info),
        *_loading(info),
    ]
    return "\n\n".join(parts) + "\n"


def _header(info: BundleInfo) -> str:
    """Return the fields that repositories of models read, as YAML, and the title."""
    tags = ["her2batch", "histopathology", *info.tasks]
    lines = ["---", "library_name: her2batch", "tags:", *(f"- {tag}" for tag in tags), "---", "", "# Models for "]
    return "\n".join(lines) + ", ".join(info.tasks)


def _overview(info: BundleInfo) -> str:
    rows = ["| task | method | input | classes | file |", "| --- | --- | --- | --- | --- |"]
    for entry in info.models:
        cells = (entry.task, entry.method, _input(info, entry), ", ".join(entry.classes) or "a number", entry.file)
        rows.append(f"| {' | '.join(cell or '–' for cell in cells)} |")
    text = (
        f"Written by her2batch {info.her2batch}. For research: not validated on patients, and no medical device. "
        "`her2batch score COHORT --bundle .` predicts with all of them, calibrated, with the classes that cannot be "
        "ruled out."
    )
    return "\n".join(
        [text, "", f"Licence of the encoders' weights, which binds these models: {info.licence}.", "", *rows]
    )


def _input(info: BundleInfo, entry: ModelEntry) -> str:
    if entry.kind == "mil":
        return f"embeddings of {entry.input}, tiles of {info.tile} px at {info.mpp} µm/px"
    if entry.kind == "fusion":
        return "predictions of the other models"
    if entry.kind == "thumbnail":
        return f"thumbnail cropped to the tissue, {entry.edge} px"
    return f"patches of {entry.edge} px, {entry.input.removeprefix('patches-')} resolution"


def _data(info: BundleInfo, labels: pa.Table, folds: pa.Table) -> Iterator[str]:
    yield "## Training data"
    rows, parts = labels.to_pylist(), Counter((row["task"], row["fold"]) for row in folds.to_pylist())
    for task in info.tasks:
        own = [row for row in rows if row["task"] == task]
        patients = len({row["patient_id"] for row in own})
        tested = sum(1 for name, fold in parts if name == task and fold != FINAL_FOLD)
        words = f"{task}: {len(own)} slides of {patients} patients, {tested} folds"
        if not info.task(task).is_number:
            counts = Counter(row["truth"] for row in own)
            words += "; " + ", ".join(f"{name}: {counts[name]}" for name in info.task(task).classes)
        yield f"- {words}."


def _evaluation(info: BundleInfo) -> Iterator[str]:
    yield "## Evaluation"
    yield (
        "Cross-validation on these slides, grouped by patient: mean ± standard deviation over the folds. The models of "
        "this bundle were trained on all of them, so other slides are needed to test them."
    )
    names = [name for name in FIGURES if any(f"{name}_mean" in entry.figures for entry in info.models)]
    lines = [f"| task | method | input | {' | '.join(FIGURES[name] for name in names)} |"]
    lines.append("| --- " * (3 + len(names)) + "|")
    for entry in info.models:
        cells = [entry.task, entry.method, entry.input, *(_figure(entry.figures, name) for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    yield "\n".join(lines)


def _figure(figures: Mapping[str, float], name: str) -> str:
    if f"{name}_mean" not in figures:
        return "–"
    spread = figures.get(f"{name}_sd")
    return f"{figures[f'{name}_mean']:g}" + (f" ± {spread:g}" if spread is not None else "")


def _loading(info: BundleInfo) -> Iterator[str]:
    yield "## Loading"
    yield "In plain PyTorch, in this folder:"
    for entry in info.models:
        lines = loading_lines(entry)
        if entry.kind == "fusion":
            yield f"{entry.task}, {entry.method}: its coefficients are in bundle.toml; `her2batch score` applies them."
        elif lines is None:
            yield f"{entry.task}, {entry.method}: `her2batch.models.bundle.load_mil_head`, or `her2batch score`."
        else:
            yield f"{entry.task}, {entry.method}, {entry.input}:\n\n```python\n{lines}```"


def loading_lines(entry: ModelEntry) -> str | None:
    """Return lines of Python that compute a model's probabilities in plain PyTorch; None for other kinds of models.

    They expect `pixels` or `bag`. Probabilities are those of `score`, to rounding: softmax(logits / temperature).
    """
    values = {"file": entry.file, "temperature": entry.temperature, "classes": ", ".join(entry.classes)}
    if entry.kind == "mil" and entry.method in POOLED and entry.scale is None:
        lines = CLAM_LINES.format(**values, dim=entry.dim, input=entry.input, pooled=POOLED[entry.method])
        return _with_link(entry, lines, "link", "logits")
    if entry.kind not in ("thumbnail", "patch"):
        return None
    spec, tiny = network_spec(entry.method), entry.size == "tiny"
    options = {**(spec.tiny if tiny else {}), **({"img_size": entry.edge} if spec.sized else {})}
    name = spec.toy if tiny and spec.toy else spec.name
    arguments = [repr(name).replace("'", '"'), f"num_classes={len(entry.classes)}"]
    arguments += [f"{key}={value!r}" for key, value in options.items()]
    scale = {"mean": spec.mean, "std": spec.std}
    lines = NETWORK_LINES.format(**values, arguments=", ".join(arguments), edge=entry.edge, **scale)
    return _with_link(entry, lines, LINK_MODULE, "net((pixels / 255 - mean) / std)")


def _with_link(entry: ModelEntry, lines: str, name: str, outputs: str) -> str:
    """Return lines in which an ordinal link is applied to a network's outputs. name: of its module in the file."""
    if entry.ordinal is None:
        return lines
    lines = lines.replace(f"softmax({outputs}", f"softmax(ordered({outputs})")
    lines = lines.replace(f'(load_file("{entry.file}"))', f'(load_file("{entry.file}"), strict=False)')
    link = CORN_LINES if entry.ordinal == "corn" else CUMULATIVE_LINES
    start = "from safetensors.torch import load_file\n"
    return lines.replace(start, start + link.format(file=entry.file, name=name, n=len(entry.classes)) + "\n")
