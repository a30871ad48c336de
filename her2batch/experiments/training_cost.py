"""Estimate of the CPU time of a run's units before it is started, from rates that were measured.

The rates are those of one core with avx512_bf16 on which other programs ran at the same time, so that a machine that
does nothing else is faster. Early stopping is not counted: every unit is taken to train all its epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from her2batch.settings import CountsSettings, ImageSettings, MilSettings, Settings, Training
from her2batch.training.methods import MethodKind, UnitPlan, method_kind, method_settings

IMAGES_PER_S: Final[Mapping[tuple[str, str], float]] = {
    ("convnext-small", "full"): 2.1,
    ("resnet50", "full"): 5.8,
    ("densenet201", "full"): 4.2,
    ("vit-base", "full"): 1.4,
    ("efficientnet-lite0", "full"): 12.0,
    ("efficientnet-lite0", "tiny"): 77.0,
}
"""Network and size → images of 224 px that a CPU second trains on. A network of timm is taken to be as fast as
ConvNeXt-S. The others that are tiny train on TINY_PER_S."""

TINY_PER_S: Final = 145.0

FORWARD_SHARE: Final = 1 / 3
"""Time of a prediction as a share of that of a step of training."""

FROZEN_GAIN: Final = 1.6
"""With a share t of the layers trained, a network trains 1 + FROZEN_GAIN · (1 − t) times as fast: 2 at t = 0.4."""

MIL_BAG_MS: Final = 5.4
MIL_VALUE_MS: Final = 3.9e-5
"""CPU time of a step of MIL: for the bag, and for each value of its embeddings (60 × 96 and 60 × 1280 measured)."""

COUNTS_S: Final[Mapping[str, float]] = {"random-forest": 4.6, "svm": 1.1, "mlp": 18.2, "majority-vote": 0.0}
"""CPU seconds of the grid search of a classifier of counts on 450 slides."""

START_S: Final = 0.3
"""CPU seconds that a unit takes beside its training."""

CUT_S: Final = 0.28
"""CPU seconds in which the patches of a slide are cut at one resolution, once for all folds."""

PATCHES: Final[Mapping[str, float]] = {"patches-low": 25.0, "patches-moderate": 25.0, "patches-high": 400.0}
"""Patches of a slide where the run has no limit, about the paper's."""


class RunSize(NamedTuple):
    """What a run trains on.

    slides: task → number of its labelled slides.  tiles: mean number of tiles of a slide.  dims: encoder → length of
    its embeddings.
    """

    slides: Mapping[str, int]
    tiles: float
    dims: Mapping[str, int]


class CostRow(NamedTuple):
    """Estimated cost of the units of a kind on an input: their number and CPU seconds, and the settings they have."""

    kind: MethodKind
    method: str
    input: str
    units: int
    seconds: float
    settings: str


def estimate_cost(work: UnitPlan, training: Training, size: RunSize) -> list[CostRow]:
    """Return the estimated cost of each method on each input, in the order of the units."""
    rows: dict[tuple[str, str], CostRow] = {}
    for unit in work.units:
        kind = method_kind(unit.method, unit.input)
        settings = method_settings(unit.method, kind, training)
        slides = size.slides.get(unit.task, 0)
        seconds = START_S + _unit_seconds(unit.method, unit.input, settings, slides, training, size)
        if kind == "patch":
            seconds += CUT_S * slides / training.folds
        found = rows.get((unit.method, unit.input))
        words = describe_settings(unit.method, settings)
        rows[unit.method, unit.input] = CostRow(
            kind, unit.method, unit.input, 1 + (found.units if found else 0),
            seconds + (found.seconds if found else 0.0), words,
        )  # fmt: skip
    return list(rows.values())


def describe_settings(method: str, settings: Settings) -> str:
    """Return the settings of a method that decide how long it trains, as text for a table."""
    if isinstance(settings, ImageSettings):
        layers = "" if settings.trained_layers == 1 else f", {settings.trained_layers:g} of the layers"
        weights = settings.pretrained if settings.size == "full" else "random"
        return f"{settings.size} network, {weights} weights, up to {settings.epochs} epochs of {settings.batch}{layers}"
    if isinstance(settings, MilSettings):
        return f"up to {settings.epochs} epochs, at least {min(settings.least_epochs, settings.epochs)}"
    assert isinstance(settings, CountsSettings)
    return "grid search" if settings.search and COUNTS_S[method] > 0 else "no search"


def _unit_seconds(
    method: str, input_name: str, settings: Settings, slides: int, training: Training, size: RunSize
) -> float:
    """Return the CPU seconds of one unit."""
    parts = 1 - 2 / training.folds, 1 / training.folds  # of the slides that train, and that validate or test
    if isinstance(settings, CountsSettings):
        return COUNTS_S[method] * slides / 450 if settings.search else 0.1
    if isinstance(settings, MilSettings):
        bag = (MIL_BAG_MS + MIL_VALUE_MS * size.tiles * size.dims.get(input_name, 1024)) / 1000
        return slides * bag * (settings.epochs * (parts[0] + parts[1] * FORWARD_SHARE) + parts[1])
    assert isinstance(settings, ImageSettings)
    limit = training.patches_per_slide
    per_slide = 1.0 if input_name not in PATCHES else min(PATCHES[input_name], limit or PATCHES[input_name])
    rate = TINY_PER_S if settings.size == "tiny" else IMAGES_PER_S["convnext-small", "full"]
    rate = IMAGES_PER_S.get((method, settings.size), rate) * (1 + FROZEN_GAIN * (1 - settings.trained_layers))
    edge = 512 / 224 if input_name == "thumbnail-512" else 1.0
    tested = 1.0 if input_name in PATCHES else parts[1]  # a patch network classifies the tissue of all slides
    images = settings.epochs * (parts[0] + parts[1] * FORWARD_SHARE) + tested * FORWARD_SHARE
    return slides * per_slide * images * edge**2 / rate
