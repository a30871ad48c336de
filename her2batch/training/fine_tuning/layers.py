"""Layers of a network in fine-tuning: their learning rates, and the epoch from which each of them is trained.

A small cohort changes the layers near the classifier most: those at the input see edges and colours, which ImageNet
taught them from a million pictures (Yosinski et al., NeurIPS 2014, doi:10.48550/arXiv.1411.1792). Discriminative
learning rates and gradual unfreezing: Howard and Ruder, ACL 2018, doi:10.48550/arXiv.1801.06146.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch

from her2batch.models.ordinal.links import LINK_MODULE
from her2batch.settings import ImageSettings

BATCH_NORMS: Final = (torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm)


def layer_numbers(net: torch.nn.Module) -> dict[str, int]:
    """Return parameter → layer, counted from 0 at the input; the classifier, and its ordinal link, has the highest.

    net: of timm, whose grouping of parameters into blocks is used.
    """
    from timm.models import group_parameters

    matcher: Any = net.group_matcher
    found: Mapping[str, int] = group_parameters(net, matcher(coarse=False), reverse=True)
    classifier = (classifier_prefix(net), f"{LINK_MODULE}.")
    names = [name for name, _ in net.named_parameters()]
    below = sorted({found[name] for name in names if not name.startswith(classifier)})
    number = {layer: k for k, layer in enumerate(below)}
    return {name: len(below) if name.startswith(classifier) else number[found[name]] for name in names}


def classifier_prefix(net: torch.nn.Module) -> str:
    """Return the prefix of the names of a timm network's classifier."""
    config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
    return f"{config['classifier']}."


def parameter_groups(net: torch.nn.Module, settings: ImageSettings, decay: float) -> list[dict[str, Any]]:
    """Return groups for an optimiser: parameters, `scale` of the learning rate, and weight decay.

    One group of everything where all layers learn alike. Otherwise one group for each layer: its rate is that of the
    layer above it times `layer_decay`, and vectors (biases, normalisations) have no weight decay.
    """
    if settings.layer_decay == 1 and not is_staged(settings):
        return [{"params": list(net.parameters()), "scale": 1.0, "weight_decay": decay}]
    layers = layer_numbers(net)
    top = max(layers.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        layer, is_vector = layers[name], parameter.ndim <= 1
        scale = settings.layer_decay ** (top - layer)
        empty = {"params": [], "scale": scale, "weight_decay": 0.0 if is_vector else decay}
        groups.setdefault((layer, is_vector), empty)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def is_staged(settings: ImageSettings) -> bool:
    """Return whether layers are frozen in some epoch."""
    return settings.frozen_epochs > 0 or settings.trained_layers < 1


def first_trained_layer(epoch: int, top: int, settings: ImageSettings) -> int:
    """Return the lowest layer that is trained in an epoch, counted from 1. top: number of the classifier.

    The classifier alone for `frozen_epochs`; then layers are added from above, evenly over `unfreeze_epochs`, down to
    the share `trained_layers` of all.
    """
    lowest = top - math.ceil(settings.trained_layers * top)
    if epoch <= settings.frozen_epochs:
        return top
    if not settings.unfreeze_epochs or not settings.frozen_epochs:
        return lowest
    share = min(1.0, (epoch - settings.frozen_epochs) / settings.unfreeze_epochs)
    return top - math.ceil(share * (top - lowest))


def set_trained_layers(net: torch.nn.Module, epoch: int, settings: ImageSettings) -> None:
    """Freeze and unfreeze the layers of a network for an epoch; this depends on the epoch alone."""
    layers = layer_numbers(net)
    first = first_trained_layer(epoch, max(layers.values()), settings)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(layers[name] >= first)


def fix_batch_norm(net: torch.nn.Module) -> None:
    """Let batch normalisation use, and keep, the means and variances that it has. Call it after `net.train()`."""
    for module in net.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()
