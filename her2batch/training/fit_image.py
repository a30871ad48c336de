"""One fold of an image network: a pure function of pictures, labels, settings and a seed.

Products run in bfloat16 where the processor has it, weights, losses and optimiser in float32: a step of ConvNeXt-S on
8 pictures takes a core with avx512_bf16 2.9 s against 7.7 s. So a fit is repeatable on one kind of machine only.
Validation and test run as every later slide does: in float32 on the CPU.

In a process group (torch.distributed) the processes share every batch and end with the same network. On GPUs BatchNorm
takes its means over the whole batch; gloo has no such layer, there each process normalises its share, and the first
one's running means count.
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
from her2batch.models.device import Normalization, run_network, set_deterministic
from her2batch.models.nets import MEAN, STD, ImageClassifier, build_network, initial_network
from her2batch.models.weights import network_with_weights as filled
from her2batch.settings import ImageSettings
from her2batch.training.augment import (
    Augmentation,
    apply_augmentations,
    apply_augmentations_on_device,
    draw_augmentations,
)
from her2batch.training.fit_loop import (
    FitResult,
    Fold,
    ProgressCallback,
    Stopping,
    Tensors,
    pack_optimiser,
    random_stream,
    run_epochs,
    unpack_optimiser,
)

Rows = NDArray[np.int64]

DECOUPLED: Final = ("convnext-small", "vit-base")
"""Methods whose weights decay beside the gradient (AdamW), as their authors train them."""

DECAY: Final = {True: 1e-2, False: 1e-4}
"""Weight decay of AdamW and of Adam, where the settings name none."""

GAMMA: Final = 2.0
"""Of the focal loss (Lin 2017, section 4.1)."""

BLOCK: Final = 128
"""Pictures that are taken from the disk at once to be classified; a multiple of every SUB_BATCH."""


class ImageArray(Protocol):
    """Pictures on disk, (n, e, e, 3) uint8, of which only some rows are ever read: np.memmap, pictures.Stack."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, e, e, 3)."""

    def __getitem__(self, rows: Rows, /) -> NDArray[np.uint8]:
        """The pictures of these rows."""


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
    """Train on one fold of the pictures.

    fill: (n, 3) or (3,), the colour round each picture, white by default.  checkpoint, report: see loop.train.
    Raises WeightsError when there are no weights to start from, InputError without pictures to train or to validate on,
    or when a batch is too small to be shared.
    """
    for part, rows in (("train", fold.train), ("validate", fold.val)):
        if not len(rows):
            raise InputError(f"there is no picture to {part} on", None, "annotate more slides, or ask for fewer folds")
    learner = _Learner(method, pixels, fold, settings, device, fill)
    stopping = Stopping(settings.epochs, settings.patience)
    return run_epochs(learner, stopping, checkpoint, report, writes=_rank() == 0)


def trained_network(
    method: str, weights: Tensors, n_classes: int, input_px: int, size: str, device: str = "cpu"
) -> torch.nn.Module:
    """A trained network on its device, in evaluation mode, for `predict`."""
    set_deterministic(device)
    net = filled(lambda: build_network(method, n_classes, input_px, size), weights, Path(method))
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def predict_images(
    net: torch.nn.Module, pixels: ImageArray, rows: Rows, n_classes: int, device: str = "cpu"
) -> NDArray[np.float32]:
    """Probabilities of each class, (len(rows), n_classes)."""
    classify = ImageClassifier(net, n_classes, device)
    return np.concatenate([classify(pixels[part]) for part in _blocks(rows)])


def sample_losses(logits: torch.Tensor, labels: torch.Tensor, kind: str, weights: torch.Tensor) -> torch.Tensor:
    """Loss of each picture: (n, C) float32, (n,) int64 → (n,). weights: (C,), see class_weights.

    "cross-entropy": −log p_y.  "weighted": −w_y log p_y.  "focal": −(1 − p_y)^γ log p_y, γ = 2 (Lin 2017, eq. 4).
    """
    cross = F.cross_entropy(logits, labels, reduction="none")
    if kind == "weighted":
        return cross * weights[labels]
    return focal_loss(cross, GAMMA) if kind == "focal" else cross


def focal_loss(cross: torch.Tensor, gamma: float) -> torch.Tensor:
    """Focal loss from cross-entropies −log p_y, (n,); at γ = 0 they are themselves."""
    return (-torch.expm1(-cross)) ** gamma * cross


def class_weights(labels: Rows, n_classes: int) -> NDArray[np.float32]:
    """(C,) inversely proportional to how often a class occurs, 1 on average over the pictures; 0 for one that doesn't.

    The mean over pictures, not classes: a step is then as long as without weights.
    """
    counts = np.bincount(labels, minlength=n_classes)
    present = np.count_nonzero(counts)
    return np.where(counts > 0, len(labels) / (present * np.maximum(counts, 1)), 0).astype(np.float32)


def learning_rate(step: int, per_epoch: int, settings: ImageSettings) -> float:
    """Learning rate of a step, counted from 0 over the whole fit: linear to `lr` in the warm-up, a cosine to 0 then."""
    warmup, total = settings.warmup * per_epoch, settings.epochs * per_epoch
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def even_batches(order: Rows, size: int) -> list[Rows]:
    """Parts of at most `size`, as few and as equal as can be: no last batch of one, which BatchNorm can't take."""
    return np.array_split(order, math.ceil(len(order) / size))


def _blocks(rows: Rows) -> list[Rows]:
    return [rows[k : k + BLOCK] for k in range(0, max(len(rows), 1), BLOCK)]


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _rank() -> int:
    return distributed.get_rank() if _together() else 0


def _size() -> int:
    return distributed.get_world_size() if _together() else 1


class _Learner:
    """An image network that learns. See loop.Learner."""

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
        if len(fold.train) // self._per_epoch < _size():
            what = f"{_size()} processes can't share a batch of {len(fold.train) // self._per_epoch} pictures"
            raise InputError(what, None, "give fewer --unit-workers or a larger batch")
        net = initial_network(method, fold.n_classes, pixels.shape[1], settings.size, settings.pretrained, fold.seed)
        if _together() and self._kind == "cuda":
            from timm.layers import convert_sync_batchnorm

            net = convert_sync_batchnorm(net)
        self._net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        ids = [torch.device(device)] if self._kind == "cuda" else None
        self._shared = torch.nn.parallel.DistributedDataParallel(self._net, ids) if _together() else self._net
        decoupled = method in DECOUPLED
        decay = DECAY[decoupled] if settings.weight_decay is None else settings.weight_decay
        adam = torch.optim.AdamW if decoupled else torch.optim.Adam
        self._optimiser = adam(self._net.parameters(), settings.lr, weight_decay=decay, fused=True)
        self._weights = torch.from_numpy(class_weights(fold.labels[fold.train], fold.n_classes)).to(device)
        self._mean, self._std = (torch.tensor(one, device=device).view(1, 3, 1, 1) * 255 for one in (MEAN, STD))

    def epoch(self, number: int) -> float:
        draw = random_stream(self._fold.seed, number)
        self._net.train()
        total = torch.zeros((), device=self._device)
        with torch.random.fork_rng([self._device] if self._kind == "cuda" else []):
            torch.manual_seed(
                int(random_stream(self._fold.seed, number, _rank() + 1).integers(2**62))
            )  # dropout, drop path
            for k, rows in enumerate(even_batches(draw.permutation(self._fold.train), self._settings.batch)):
                step = (number - 1) * self._per_epoch + k
                self._optimiser.param_groups[0]["lr"] = learning_rate(step, self._per_epoch, self._settings)
                total += self._step(rows, draw)
        if _together():
            for one in self._net.buffers():  # running means, of the first process's shares on the CPU
                distributed.broadcast(one, 0)
        return self._summed(float(total), number) / len(self._fold.train)

    def _step(self, rows: Rows, draw: np.random.Generator) -> torch.Tensor:
        """One step on a batch; the sum of the losses of this process's share of it."""
        rows = np.sort(rows)  # in the order of the file
        moves = draw_augmentations(len(rows), draw, self._settings)
        share = np.arange(_rank(), len(rows), _size())
        x = self._seen(rows[share], moves.of(share))
        labels = torch.from_numpy(self._fold.labels[rows[share]]).to(self._device, non_blocking=True)
        dtype = product_dtype(self._device)
        with torch.autocast(self._kind, dtype, enabled=dtype != torch.float32):
            logits = self._shared(x)
        loss = sample_losses(logits.float(), labels, self._settings.loss, self._weights).sum()
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss * (_size() / len(rows)))  # over the mean of the processes: the batch's mean loss
        self._optimiser.step()
        return loss.detach()

    def _seen(self, rows: Rows, moves: Augmentation) -> torch.Tensor:
        """What the network sees of these pictures, (n, 3, e, e) float32 on the device; (n, e, e, 3) as it lies."""
        pixels, fill = self._pixels[rows], self._fill[rows]
        if self._kind == "cuda":
            bare = torch.from_numpy(pixels).pin_memory().to(self._device, non_blocking=True)
            pictures = apply_augmentations_on_device(bare, moves, torch.from_numpy(fill).to(self._device))
        else:
            pictures = torch.from_numpy(apply_augmentations(pixels, moves, fill))
        return pictures.permute(0, 3, 1, 2).float().sub_(self._mean).div_(self._std)

    def validate(self) -> float:
        self._net.eval()
        rows = self._fold.val[_rank() :: _size()]
        total = 0.0
        for part in _blocks(rows):
            if len(part):
                log_p = run_network(self._net, self._pixels[part], Normalization(MEAN, STD), self._device, _log_softmax)
                total -= float(log_p[np.arange(len(part)), self._fold.labels[part]].sum(dtype=np.float64))
        return self._summed(total, 0) / len(self._fold.val)

    def _summed(self, value: float, number: int) -> float:
        """The sum over all processes. Raises RuntimeError where they are not at the same epoch."""
        if not _together():
            return value
        both = torch.tensor([value, number], dtype=torch.float64, device=self._device)
        distributed.all_reduce(both)
        if both[1] != number * _size():
            raise RuntimeError("the processes have gone on from different checkpoints")
        return float(both[0])

    def state(self) -> Tensors:
        packed = {f"net/{key}": one for key, one in self._net.state_dict().items()}
        return packed | {f"optimiser/{key}": one for key, one in pack_optimiser(self._optimiser).items()}

    def restore(self, state: Tensors) -> None:
        parts: dict[str, Tensors] = {"net": {}, "optimiser": {}}
        for key, one in state.items():
            part, _, name = key.partition("/")
            parts[part][name] = one
        self._net.load_state_dict(parts["net"])
        unpack_optimiser(self._optimiser, parts["optimiser"])
        for parameter, moments in self._optimiser.state.items():
            for name, one in moments.items():
                if one.shape == parameter.shape:  # the fused step walks memory: moments must lie as their weights do
                    moments[name] = torch.empty_like(parameter).copy_(one)

    def weights(self) -> Tensors:
        own = self._net.state_dict()
        return {key: one.detach().cpu().clone(memory_format=torch.contiguous_format) for key, one in own.items()}


def _log_softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.float().log_softmax(-1)
