"""Features from counts of patch classes, and scikit-learn heads over them in a format that runs no code (skops).

Approach 3 of the paper: the shares of a slide's patches that are classified as 0, 1+, 2+ and 3+ decide its score.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from her2batch.errors import InputError

COUNT_FEATURES: Final = ("share_0", "share_1+", "share_2+", "share_3+", "log_patches")

TRUSTED: Final = frozenset(
    (
        "numpy.dtype",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._forest.RandomForestClassifier",
        "sklearn.frozen._frozen.FrozenEstimator",
        "sklearn.model_selection._split.StratifiedKFold",
        "sklearn.neural_network._multilayer_perceptron.MLPClassifier",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.preprocessing._label.LabelBinarizer",
        "sklearn.tree._tree.Tree",
    )
)
"""Types in the three kinds of heads beyond those that skops itself regards as safe. Nothing else is ever loaded."""

REMEDY: Final = "copy the bundle from the training run again, or train a new one"

TIE_BREAK: Final = 1e-6
"""Added to the shares in order of the classes: of two classes with equally many patches the higher one wins."""

SCHEMA: Final = "schema.json"

ADDRESSES: Final = re.compile(r'(?<="__id__": )\d+|(?<="file": ")\d+(?=\.npy")')
"""Memory addresses in the schema that skops writes."""

ZIP_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""Time of every archive member, so that the bytes do not depend on the clock."""


def count_features(p: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return shares of the most likely classes and log(1 + n): (n, 4) probabilities of a slide's patches → (5,)."""
    if not len(p):
        return np.zeros(len(COUNT_FEATURES))
    shares = np.bincount(p.argmax(axis=1), minlength=4) / len(p)
    return np.append(shares, np.log1p(len(p)))


def majority_vote(features: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the shares as probabilities, (n, 5) features → (n, 4), so that the class with most patches leads.

    For her2-4way only. A slide without a patch has four equal probabilities; see TIE_BREAK for equal shares.
    """
    shares = features[:, :4].astype(np.float64)
    shares = np.where(shares.sum(axis=1, keepdims=True) > 0, shares, 0.25) + TIE_BREAK * np.arange(4)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)


def head_probabilities(head: Any, features: NDArray[np.float64], n_classes: int) -> NDArray[np.float32]:
    """Return class probabilities, (n, 5) → (n, C); rows sum to 1. Classes that the head has never seen get 0."""
    out = np.zeros((len(features), n_classes), np.float32)
    if len(features):
        out[:, np.asarray(head.classes_, np.int64)] = head.predict_proba(features)
    return out


def save_head(head: Any, path: Path) -> None:
    """Write a fitted head. The same head gives the same bytes.

    skops names objects by their memory address and stores the time in its archive: here objects are numbered in order
    of appearance, and the time is constant.
    """
    from skops.io import dumps

    with zipfile.ZipFile(io.BytesIO(dumps(head))) as archive, zipfile.ZipFile(path, "w") as out:
        schema = archive.read(SCHEMA).decode()
        addresses = dict.fromkeys(ADDRESSES.findall(schema))
        numbers = {address: str(k) for k, address in enumerate(addresses, start=1)}
        arrays = [name for name in archive.namelist() if name != SCHEMA]
        members = {numbers.get(name.removesuffix(".npy"), "") + ".npy": archive.read(name) for name in arrays}
        members[SCHEMA] = ADDRESSES.sub(lambda match: numbers[match[0]], schema).encode()
        for name in sorted(members):
            out.writestr(zipfile.ZipInfo(name, ZIP_EPOCH), members[name], zipfile.ZIP_DEFLATED)


def load_head(path: Path, n_classes: int) -> Any:
    """Load a head that `save_head` wrote.

    Raises InputError for a file that is damaged, contains an unexpected type, or has other features or classes.
    """
    from skops.io import get_untrusted_types, load
    from skops.io.exceptions import UnsupportedTypeException, UntrustedTypesFoundException

    try:
        unexpected = sorted(set(get_untrusted_types(file=path)) - TRUSTED)
        if unexpected:
            what = f"contains the type {unexpected[0]}, which is not allowed in a bundle"
            raise InputError(what, path, REMEDY)
        head = load(path, trusted=sorted(TRUSTED & set(get_untrusted_types(file=path))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, zipfile.BadZipFile,
            UnsupportedTypeException, UntrustedTypesFoundException) as error:  # fmt: skip
        raise InputError(f"cannot be read as a scikit-learn head ({type(error).__name__})", path, REMEDY) from error
    if not hasattr(head, "predict_proba"):
        raise InputError(f"contains a {type(head).__name__}, which has no class probabilities", path, REMEDY)
    width, classes = getattr(head, "n_features_in_", None), getattr(head, "classes_", ())
    if width != len(COUNT_FEATURES) or not set(np.asarray(classes).tolist()) <= set(range(n_classes)):
        what = f"does not fit its entry in bundle.toml: it has {width} features and {len(classes)} classes"
        raise InputError(what, path, REMEDY)
    return head
