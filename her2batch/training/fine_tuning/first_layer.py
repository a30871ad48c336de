"""Adapt the first layer of a network with random weights to the images that it is trained on.

ImageNet's means and deviations put slides, which are nearly white, all on one side: a thumbnail has a mean of 1.7 and a
deviation of 0.6 where a photograph has 0 and 1. Batch normalisation after the first layer removes that. A network that
normalises over channels (ConvNeXt, ViT) divides each place by its own length, which on slides is mostly their white,
and keeps nearly nothing of the colours: it stays at chance for any number of epochs. Inputs of mean 0 and deviation 1
are what LeCun 1998 (Efficient BackProp, section 4.3) asks for; setting the weights by data is Krähenbühl 2016
(doi:10.48550/arXiv.1511.06856).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from her2batch.models.device import Normalization

MOST_IMAGES: Final = 128
"""Images whose colours are measured, spread evenly over those of the training part."""

LEAST_DEVIATION: Final = 1 / 255
"""Smallest deviation by which is divided: that of images of one colour is 0."""

Rows = NDArray[np.int64]
ReadImages = Callable[[Rows], NDArray[np.uint8]]
"""Rows → images (n, e, e, 3)."""


def standardise_first_layer(network: torch.nn.Module, given: Normalization, read: ReadImages, rows: Rows) -> bool:
    """Change the first convolution so that it sees channels of mean 0 and deviation 1, and return whether it was.

    given: the normalisation of the network's input, which stays as it is.  rows: of the images of the training part.
    Left as they are: a convolution that pads its input, as its zeros would mean another colour, and one without a bias,
    which batch normalisation follows.
    """
    first = next((layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)), None)
    if first is None or first.bias is None or first.in_channels != 3 or first.padding not in ((0, 0), "valid"):
        return False
    mean, deviation = channel_statistics(read, rows)
    deviation = np.maximum(deviation, LEAST_DEVIATION)
    shift, scale = (
        torch.from_numpy(values).view(1, 3, 1, 1)
        for values in ((np.array(given.mean) - mean) / deviation, np.array(given.std) / deviation)
    )
    with torch.no_grad():
        weight = first.weight.double()
        first.bias += (weight * shift).sum((1, 2, 3)).to(first.bias.dtype)
        first.weight.copy_(weight * scale)
    return True


def channel_statistics(read: ReadImages, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the deviation of each channel, RGB in 0–1, (3,) each, over images of these rows."""
    spread = np.unique(rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_IMAGES)).astype(int)])
    moments = np.zeros((2, 3))
    for row in spread:
        image = read(np.array([row]))[0].reshape(-1, 3) / 255
        moments += [image.mean(0), (image**2).mean(0)]
    mean, of_squares = moments / len(spread)
    return mean, np.sqrt(np.maximum(of_squares - mean**2, 0))
