"""Counts of patch classes, and the scikit-learn heads over them, in a format that runs nothing when loaded (skops).

Approach 3 of the paper: how many of a slide's patches look like 0, 1+, 2+, 3+ decides its score.
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
"""Types of our three heads beyond those that skops itself takes for safe. Nothing else is ever loaded."""

REMEDY: Final = "copy the bundle again from the training run, or train it anew"

TIE: Final = 1e-6
"""Of two classes with as many patches the higher one wins."""

SCHEMA: Final = "schema.json"

ADDRESS: Final = re.compile(r'(?<="__id__": )\d+|(?<="file": ")\d+(?=\.npy")')
"""Where skops writes an address."""

EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def count_features(p: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, 4) class probabilities of a slide's patches → (5,): shares of the most likely classes, log(1 + n)."""
    if not len(p):
        return np.zeros(len(COUNT_FEATURES))
    found = np.bincount(p.argmax(axis=1), minlength=4) / len(p)
    return np.append(found, np.log1p(len(p)))


def majority_vote(features: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n, 5) features → (n, 4): the shares themselves, so that the class with most patches leads; her2-4way alone.

    A slide without a patch says nothing: all four alike.  The higher of two classes alike leads by a trifle.
    """
    shares = features[:, :4].astype(np.float64)
    shares = np.where(shares.sum(axis=1, keepdims=True) > 0, shares, 0.25) + TIE * np.arange(4)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)


def head_probabilities(head: Any, features: NDArray[np.float64], n_classes: int) -> NDArray[np.float32]:
    """(n, 5) → (n, C); rows sum to 1. Classes that the head has never seen get 0."""
    out = np.zeros((len(features), n_classes), np.float32)
    if len(features):
        out[:, np.asarray(head.classes_, np.int64)] = head.predict_proba(features)
    return out


def save_head(head: Any, path: Path) -> None:
    """Write a fitted head. The same head gives the same bytes.

    skops names objects by their address in memory and stamps its archive with the time: here they are numbered as they
    come, and the time is none.
    """
    from skops.io import dumps

    with zipfile.ZipFile(io.BytesIO(dumps(head))) as made, zipfile.ZipFile(path, "w") as out:
        schema = made.read(SCHEMA).decode()
        number = {one: str(k) for k, one in enumerate(dict.fromkeys(ADDRESS.findall(schema)), start=1)}
        named = {name: number.get(name.removesuffix(".npy"), "") + ".npy" for name in made.namelist() if name != SCHEMA}
        parts = {named[name]: made.read(name) for name in named}
        parts[SCHEMA] = ADDRESS.sub(lambda found: number[found[0]], schema).encode()
        for name in sorted(parts):
            out.writestr(zipfile.ZipInfo(name, EPOCH), parts[name], zipfile.ZIP_DEFLATED)


def load_head(path: Path, n_classes: int) -> Any:
    """A head that save_head wrote.

    Raises InputError for a file that is damaged, holds a type no head of ours has, or answers another question.
    """
    from skops.io import get_untrusted_types, load
    from skops.io.exceptions import UnsupportedTypeException, UntrustedTypesFoundException

    try:
        strange = sorted(set(get_untrusted_types(file=path)) - TRUSTED)
        if strange:
            raise InputError(f"holds {strange[0]}, which no head of ours does", path, REMEDY)
        head = load(path, trusted=sorted(TRUSTED & set(get_untrusted_types(file=path))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, zipfile.BadZipFile,
            UnsupportedTypeException, UntrustedTypesFoundException) as error:  # fmt: skip
        raise InputError(f"is no head that can be read ({type(error).__name__})", path, REMEDY) from error
    if not hasattr(head, "predict_proba"):
        raise InputError(f"holds a {type(head).__name__}, which gives no probabilities", path, REMEDY)
    width, classes = getattr(head, "n_features_in_", None), getattr(head, "classes_", ())
    if width != len(COUNT_FEATURES) or not set(np.asarray(classes).tolist()) <= set(range(n_classes)):
        raise InputError(f"answers another question: {width} features, {len(classes)} classes", path, REMEDY)
    return head
