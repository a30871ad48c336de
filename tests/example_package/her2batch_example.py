"""An encoder and a MIL method that her2batch finds by entry point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from her2batch.models.encoders import CustomEncoder
from her2batch.models.mil_registry import Choice, LogUniform, MilMethod
from her2batch.settings import MilSettings
from her2batch.vision.membrane import TileBatch


def load_colour(device: str, weights: Path | None) -> Callable[[TileBatch], NDArray[np.float32]]:
    """Return the encoder, ready to run. device: 'cpu' or 'cuda'.  weights: what `--weights` names, or None."""
    return colour_statistics


def colour_statistics(batch: TileBatch) -> NDArray[np.float32]:
    """Return mean and standard deviation of red, green and blue of each tile, 0–1: (n, 6) float32."""
    pixels = batch.pixels.reshape(len(batch.pixels), -1, 3) / np.float32(255)  # (n, h · w, 3)
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1, dtype=np.float32)


COLOUR = CustomEncoder(dim=6, load=load_colour, licence="Apache-2.0")


class MeanPoolSettings(MilSettings):
    """Settings of mean pooling, beyond those that every MIL method has."""

    hidden: int = Field(8, ge=1, description="width of the hidden layer")


MEAN_POOL = MilMethod(
    build="her2batch_example_network:build_mean_pool",
    settings=MeanPoolSettings,
    defaults={"lr": 1e-2},
    shape=("hidden",),
    space={"lr": LogUniform(1e-4, 1e-1), "hidden": Choice((4, 8, 16))},
)
