"""Train one fold of an image network: a pure function of images, labels, settings and a seed.

Matrix products run in bfloat16 where the processor has it, weights, losses and optimiser in float32: a step of
ConvNeXt-S on 8 images takes a core with avx512_bf16 2.9 s instead of 7.7 s. Training is therefore repeatable on one
type of machine only. Validation and test run like the prediction of later slides: in float32 on the CPU.

In a process group (torch.distributed) the processes share every batch and end with the same network. On GPUs BatchNorm
computes its means over the whole batch. gloo has no such layer: each process normalises its share of the batch, and the
running means of the first process are kept.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.nn import functional as F

from her2batch.errors import InputError
from her2batch.models.attention import product_dtype
from her2batch.models.device import Normalization, run_network, set_deterministic, to_channels_last
from her2batch.models.nets import (
    ImageClassifier,
    build_network,
    initial_network,
    locate_initial_weights,
    network_spec,
)
from her2batch.models.weights import network_with_weights as filled
from her2batch.settings import ImageSettings, Ordinal
from her2batch.training.augment import (
    Augmentation,
    apply_augmentations,
    apply_augmentations_on_device,
    draw_augmentations,
)
from her2batch.training.fine_tuning.averaging import WeightAverage
from her2batch.training.fine_tuning.first_layer import standardise_first_layer
from her2batch.training.fine_tuning.layers import fix_batch_norm, is_staged, parameter_groups, set_trained_layers
from her2batch.training.fit_loop import (
    FitResult,
    Fold,
    ProgressCallback,
    Stopping,
    Tensors,
    pack_optimiser,
    run_epochs,
    unpack_optimiser,
)
from her2batch.training.recipes.random_streams import random_stream

Rows = NDArray[np.int64]

DECAY: Final = {True: 1e-2, False: 1e-4}
"""Default weight decay of AdamW (True) and of Adam (False)."""

GAMMA: Final = 2.0
"""Exponent of the focal loss (Lin 2017, section 4.1)."""

BLOCK: Final = 128
"""Images that are read from disk at once for classification; a multiple of every SUB_BATCH."""


class ImageArray(Protocol):
    """Images on disk, (n, e, e, 3) uint8, read by rows: np.memmap or image_data.ImageStack."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (n, e, e, 3)."""

    def __getitem__(self, rows: Rows, /) -> NDArray[np.uint8]:
        """Return the images of these rows."""


def fit_image_network(
    method: str,
    pixels: ImageArray,
    fold: Fold,
    settings: ImageSettings,
    device: str = "cpu",
    fill: NDArray[np.uint8] | None = None,
    checkpoint: Path | None = None,
    report: ProgressCallback = lambda _: None,
) -> FitResult:
    """Train on one fold of the images.

    fill: (n, 3) or (3,), the background colour of each image, white by default.  checkpoint, report: see `run_epochs`.
    Raises WeightsError when the initial weights cannot be found, InputError without images to train or validate on, or
    when a batch is too small to be shared by the processes.
    """
    for part, rows in (("train", fold.train), ("validate", fold.val)):
        if not len(rows):
            raise InputError(f"there is no image to {part} on", None, "annotate more slides, or give fewer --folds")
    learner = _Learner(method, pixels, fold, settings, device, fill)
    stopping = Stopping(settings.epochs, settings.patience)
    return run_epochs(learner, stopping, checkpoint, report, writes=_rank() == 0)


def trained_network(
    method: str,
    weights: Tensors,
    n_classes: int,
    input_px: int,
    size: str,
    device: str = "cpu",
    ordinal: Ordinal = "none",
) -> torch.nn.Module:
    """Return a trained network on its device, in evaluation mode, for `predict_images`."""
    set_deterministic(device)
    net = filled(lambda: build_network(method, n_classes, input_px, size, ordinal), weights, Path(method))
    return to_channels_last(net, device)


def predict_images(
    net: torch.nn.Module,
    pixels: ImageArray,
    rows: Rows,
    n_classes: int,
    device: str = "cpu",
    normalization: Normalization | None = None,
) -> NDArray[np.float32]:
    """Return class probabilities, (len(rows), n_classes). normalization: of the network's row; None: of ImageNet."""
    classify = ImageClassifier(net, n_classes, device, normalization)
    return np.concatenate([classify(pixels[part]) for part in _blocks(rows)])


def sample_losses(
    logits: torch.Tensor, labels: torch.Tensor, kind: str, weights: torch.Tensor, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the loss of each image: (n, C) float32, (n,) int64 → (n,). weights: (C,), see class_weights.

    targets: (n, C), distributions over the classes: the loss is then the mean of those of all classes, weighted so.

    "cross-entropy": −log p_y.  "weighted": −w_y log p_y.  "focal": −(1 − p_y)^γ log p_y, γ = 2 (Lin 2017, eq. 4).
    """
    if targets is not None:
        each = -F.log_softmax(logits, 1)
        each = each * weights if kind == "weighted" else focal_loss(each, GAMMA) if kind == "focal" else each
        return (targets * each).sum(1)
    cross = F.cross_entropy(logits, labels, reduction="none")
    if kind == "weighted":
        return cross * weights[labels]
    return focal_loss(cross, GAMMA) if kind == "focal" else cross


def focal_loss(cross: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return the focal loss from cross-entropies −log p_y, (n,); with γ = 0 it is the cross-entropy."""
    return (-torch.expm1(-cross)) ** gamma * cross


def class_weights(labels: Rows, n_classes: int) -> NDArray[np.float32]:
    """Return weights, (C,), inversely proportional to the class frequency; 0 for a class that does not occur.

    Their mean over the images, not the classes, is 1, so that a step is as long as without weights.
    """
    counts = np.bincount(labels, minlength=n_classes)
    present = np.count_nonzero(counts)
    return np.where(counts > 0, len(labels) / (present * np.maximum(counts, 1)), 0).astype(np.float32)


def learning_rate(step: int, per_epoch: int, settings: ImageSettings) -> float:
    """Return the learning rate of a step, counted from 0 over all epochs: linear warm-up to `lr`, cosine to 0."""
    warmup, total = settings.warmup * per_epoch, settings.epochs * per_epoch
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def even_batches(order: Rows, size: int) -> list[Rows]:
    """Split into the fewest, most equal batches of at most `size`: BatchNorm does not accept a last batch of one."""
    return np.array_split(order, math.ceil(len(order) / size))


def _blocks(rows: Rows) -> list[Rows]:
    return [rows[k : k + BLOCK] for k in range(0, max(len(rows), 1), BLOCK)]


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _rank() -> int:
    return distributed.get_rank() if _is_distributed() else 0


def _world_size() -> int:
    return distributed.get_world_size() if _is_distributed() else 1


class _Learner:
    """An image network in training. See `fit_loop.Learner`."""

    def __init__(
        self,
        method: str,
        pixels: ImageArray,
        fold: Fold,
        settings: ImageSettings,
        device: str,
        fill: NDArray[np.uint8] | None,
    ) -> None:
        set_deterministic(device)
        self._pixels, self._fold, self._settings = pixels, fold, settings
        self._device, self._kind = device, torch.device(device).type
        self._fill = np.broadcast_to(np.uint8(255) if fill is None else fill, (pixels.shape[0], 3))
        self._per_epoch = len(even_batches(fold.train, settings.batch))
        if len(fold.train) // self._per_epoch < _world_size():
            what = f"{_world_size()} processes cannot share a batch of {len(fold.train) // self._per_epoch} images"
            raise InputError(what, None, "give fewer --unit-workers or a larger batch")
        size, source = settings.size, settings.pretrained
        net = initial_network(method, fold.n_classes, pixels.shape[1], size, source, fold.seed, settings.ordinal)
        has_weights = locate_initial_weights(method, settings.size, settings.pretrained) is not None
        self._fixed_norm = settings.fixed_norm and has_weights
        spec = network_spec(method)
        if not has_weights:
            standardise_first_layer(net, spec.normalization, pixels.__getitem__, fold.train)
        if _is_distributed() and self._kind == "cuda":
            from timm.layers import convert_sync_batchnorm

            net = convert_sync_batchnorm(net)
        self._net: torch.nn.Module = to_channels_last(net, device)
        self._shared = self._over_processes()
        self._normalization, self._optimiser = spec.normalization, self._make_optimiser(spec.decoupled)
        self._average = WeightAverage(self._net, settings.ema) if settings.ema > 0 else None
        self._weights = torch.from_numpy(class_weights(fold.labels[fold.train], fold.n_classes)).to(device)
        scale = (spec.mean, spec.std)
        self._mean, self._std = (torch.tensor(values, device=device).view(1, 3, 1, 1) * 255 for values in scale)

    def _over_processes(self) -> torch.nn.Module:
        """Return the network as all processes train it."""
        if not _is_distributed():
            return self._net
        ids = [torch.device(self._device)] if self._kind == "cuda" else None
        unused = is_staged(self._settings)  # frozen layers give no gradient
        return torch.nn.parallel.DistributedDataParallel(self._net, ids, find_unused_parameters=unused)

    def _make_optimiser(self, decoupled: bool) -> torch.optim.Optimizer:
        settings = self._settings
        decay = DECAY[decoupled] if settings.weight_decay is None else settings.weight_decay
        adam = torch.optim.AdamW if decoupled else torch.optim.Adam
        groups = parameter_groups(self._net, settings, decay)
        return adam(groups, settings.lr, weight_decay=decay, fused=True)

    def epoch(self, number: int) -> float:
        draw = random_stream(self._fold.seed, number)
        self._net.train()
        if self._fixed_norm:
            fix_batch_norm(self._net)
        if is_staged(self._settings):
            set_trained_layers(self._net, number, self._settings)
        total = torch.zeros((), device=self._device)
        with torch.random.fork_rng([self._device] if self._kind == "cuda" else []):
            seeds = random_stream(self._fold.seed, number, _rank() + 1)  # of dropout and drop path
            torch.manual_seed(int(seeds.integers(2**62)))
            for k, rows in enumerate(even_batches(draw.permutation(self._fold.train), self._settings.batch)):
                step = (number - 1) * self._per_epoch + k
                rate = learning_rate(step, self._per_epoch, self._settings)
                for group in self._optimiser.param_groups:
                    group["lr"] = rate * group["scale"]
                total += self._step(rows, draw)
        if _is_distributed():
            for buffer in self._net.buffers():  # running means; on the CPU those of the first process
                distributed.broadcast(buffer, 0)
            for tensor in self._average.tensors.values() if self._average is not None else ():
                distributed.broadcast(tensor, 0)
        return self._sum_over_processes(float(total), number) / len(self._fold.train)

    def _step(self, rows: Rows, draw: np.random.Generator) -> torch.Tensor:
        """Train one step on a batch; returns the sum of losses over this process's share of it."""
        rows = np.sort(rows)  # in the order of the file
        augmentation = draw_augmentations(len(rows), draw, self._settings)
        share = np.arange(_rank(), len(rows), _world_size())
        x = self._input(rows[share], augmentation.of(share))
        labels = torch.from_numpy(self._fold.labels[rows[share]]).to(self._device, non_blocking=True)
        dtype = product_dtype(self._device)
        with torch.autocast(self._kind, dtype, enabled=dtype != torch.float32):
            logits = self._shared(x)
        targets = self._fold.targets
        soft = None if targets is None else torch.from_numpy(targets[rows[share]]).to(self._device)
        loss = sample_losses(logits.float(), labels, self._settings.loss, self._weights, soft).sum()
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss * (_world_size() / len(rows)))  # the mean over processes is the batch's mean loss
        self._optimiser.step()
        if self._average is not None:
            self._average.update(self._net)
        return loss.detach()

    def _input(self, rows: Rows, augmentation: Augmentation) -> torch.Tensor:
        """Return augmented, normalised images, (n, 3, e, e) float32 on the device, channels last in memory."""
        pixels, fill = self._pixels[rows], self._fill[rows]
        if self._kind == "cuda":
            on_device = torch.from_numpy(pixels).pin_memory().to(self._device, non_blocking=True)
            background = torch.from_numpy(fill).to(self._device)
            images = apply_augmentations_on_device(on_device, augmentation, background)
        else:
            images = torch.from_numpy(apply_augmentations(pixels, augmentation, fill))
        return images.permute(0, 3, 1, 2).float().sub_(self._mean).div_(self._std)

    def validate(self) -> float:
        if self._average is None:
            return self._validate()
        with self._average.in_place_of_weights(self._net):
            return self._validate()

    def _validate(self) -> float:
        self._net.eval()
        rows = self._fold.val[_rank() :: _world_size()]
        total = 0.0
        for part in _blocks(rows):
            if len(part):
                log_p = run_network(self._net, self._pixels[part], self._normalization, self._device, _log_softmax)
                targets = self._fold.targets
                picked = (
                    log_p[np.arange(len(part)), self._fold.labels[part]] if targets is None else (targets[part] * log_p)
                )
                total -= float(picked.sum(dtype=np.float64))
        return self._sum_over_processes(total, 0) / len(self._fold.val)

    def _sum_over_processes(self, value: float, number: int) -> float:
        """Return the sum over all processes. Raises RuntimeError when they are not at the same epoch."""
        if not _is_distributed():
            return value
        both = torch.tensor([value, number], dtype=torch.float64, device=self._device)
        distributed.all_reduce(both)
        if both[1] != number * _world_size():
            raise RuntimeError("the processes resumed from different checkpoints")
        return float(both[0])

    def state(self) -> Tensors:
        packed = {f"net/{key}": tensor for key, tensor in self._net.state_dict().items()}
        if self._average is not None:
            packed |= {f"average/{key}": tensor for key, tensor in self._average.state().items()}
        return packed | {f"optimiser/{key}": tensor for key, tensor in pack_optimiser(self._optimiser).items()}

    def restore(self, state: Tensors) -> None:
        parts: dict[str, Tensors] = {"net": {}, "optimiser": {}, "average": {}}
        for key, tensor in state.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        self._net.load_state_dict(parts["net"])
        if self._average is not None:
            self._average.restore(parts["average"])
        unpack_optimiser(self._optimiser, parts["optimiser"])
        for parameter, moments in self._optimiser.state.items():
            for name, moment in moments.items():
                if moment.shape == parameter.shape:  # the fused step needs moments in the memory layout of the weights
                    moments[name] = torch.empty_like(parameter).copy_(moment)

    def weights(self) -> Tensors:
        own = self._net.state_dict() if self._average is None else self._average.tensors
        return {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in own.items()}


def _log_softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.float().log_softmax(-1)
