"""Bundles for tests, made of networks in memory."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from her2batch.models.bundle import Bundle, BundleInfo, ModelEntry, save_bundle
from her2batch.models.encoders import embedding_dim
from her2batch.models.mil_registry import build_mil_network
from her2batch.settings import MilSettings
from her2batch.tasks import CLASSES


def bundle_of(folder: Path, info: BundleInfo, nets: Mapping[str, torch.nn.Module]) -> Bundle:
    """Save networks as the files of a bundle: file name of each entry → its network."""
    with tempfile.TemporaryDirectory() as place:
        for name, net in nets.items():
            save_file({key: one.contiguous() for key, one in net.state_dict().items()}, Path(place) / name)
        return save_bundle(folder, info, {name: Path(place) / name for name in nets})


def untrained(folder: Path, task: str = "her2-3way") -> Bundle:
    """One MIL head on stain embeddings, as it was born."""
    classes, dim = CLASSES[task], embedding_dim("stain")
    entry = ModelEntry(
        kind="mil", task=task, method="clam-sb", input="stain", classes=classes, dim=dim, file="head.safetensors"
    )
    info = BundleInfo(her2batch="0.1.0", tasks=(task,), encoder="stain", mpp=0.5, tile=224,
                      licence="none: untrained", models=(entry,))  # fmt: skip
    torch.manual_seed(0)
    return bundle_of(folder, info, {entry.file: build_mil_network("clam-sb", dim, len(classes), MilSettings())})
