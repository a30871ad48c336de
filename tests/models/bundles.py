"""Bundles of networks that are in memory."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from her2batch.models.bundle import Bundle, BundleInfo, save_bundle


def bundle_of(folder: Path, info: BundleInfo, nets: Mapping[str, torch.nn.Module]) -> Bundle:
    """Save networks as the files of a bundle: file name of each entry → its network."""
    with tempfile.TemporaryDirectory() as place:
        for name, net in nets.items():
            save_file({key: one.contiguous() for key, one in net.state_dict().items()}, Path(place) / name)
        return save_bundle(folder, info, {name: Path(place) / name for name in nets})
