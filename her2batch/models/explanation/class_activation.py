"""Saliency of image networks by HiResCAM: the places of an image that raise the score of its predicted class.

With the features A (C channels on a grid) of a network's last stage and the score y of a class, before the softmax, the
map is ReLU(Σ_c ∂y/∂A_c ⊙ A_c) (Draelos & Carin 2020, arXiv:2011.08891). Grad-CAM (Selvaraju 2017,
10.1109/ICCV.2017.74) replaces the gradient by its mean over the grid. Both give the same map for networks that average
the features over the grid before a linear classifier; of a vision transformer, whose class token attends to the others
unevenly, only HiResCAM keeps each place's own contribution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from her2batch.models.nets import MEAN, STD, ImageClassifier

DECIMALS = 3
"""Decimal places of a map: more than a heatmap shows, and fewer than differ between machines."""


def class_activation_map(classifier: ImageClassifier, pixels: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Return the saliency of the predicted class: (rows, columns) float32, 0–1, relative to the image's largest.

    pixels: (h, w, 3) uint8 RGB.  The grid is that of the last stage: 7 × 7 of 224 px for convolutions, 14 × 14 for
    ViT-B/16. All zeros where nothing raises the score.  None: the network has no grid of features that is known.
    """
    own = classifier.normalization
    figures = (own.mean, own.std) if own else (MEAN, STD)
    x = torch.from_numpy(pixels[None].copy()).to(classifier.device).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in figures)
    found = _features_and_scores(classifier.net, (x - mean) / std)
    if found is None:
        return None
    features, scores = found
    (gradient,) = torch.autograd.grad(scores[0, scores[0].argmax()], features)
    product = _to_grid(classifier.net, (gradient * features).detach()[0])
    if product is None:
        return None
    values = product.clamp_(min=0).double().cpu().numpy()
    return np.asarray(np.round(values / max(values.max(), 1e-12), DECIMALS), np.float32)


def _features_and_scores(net: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the features of the last stage and the scores that are computed from them, for x (1, 3, h, w).

    A network with tokens reads its class token alone after the last block, so that the features are those that enter
    this block's attention.  The attention is computed by the plain formula, whose gradient is deterministic on a GPU.
    """
    with torch.no_grad():
        features = net.forward_features(x)
    if features.ndim == 4:
        features.requires_grad_()
        with torch.enable_grad():
            return features, net.forward_head(features)
    blocks = getattr(net, "blocks", None)
    if features.ndim != 3 or blocks is None or not hasattr(blocks[-1], "norm1"):
        return None
    seen: list[torch.Tensor] = []

    def cut(module: torch.nn.Module, inputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        seen.append(tokens.detach().requires_grad_())
        return seen[0]

    hook = blocks[-1].norm1.register_forward_hook(cut)
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            scores = net(x)
    finally:
        hook.remove()
    return seen[0], scores


def _to_grid(net: Any, values: torch.Tensor) -> torch.Tensor | None:
    """Return the sum over channels on the grid of a network: (C, rows, columns), (rows, columns, C) or (tokens, C)."""
    if values.ndim == 3:
        return values.sum(dim=-1 if getattr(net, "output_fmt", "NCHW") == "NHWC" else 0)
    places = values[net.num_prefix_tokens :].sum(dim=-1)
    rows, columns = net.patch_embed.grid_size
    return places.view(rows, columns) if len(places) == rows * columns else None
