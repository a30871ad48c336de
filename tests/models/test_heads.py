"""Features from counts of patch classes, and heads whose files run no code when they are loaded."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import SGDOneClassSVM
from sklearn.neighbors import KNeighborsClassifier
from skops.io import dump

from her2batch.errors import InputError
from her2batch.models.heads import count_features, head_probabilities, load_head, majority_vote, save_head
from her2batch.settings import CountsSettings
from her2batch.training.fit_counts import GRIDS, fit_count_classifier

PLAIN = CountsSettings(search=False)


def examples(n: int = 60, classes: int = 4) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    shares = rng.dirichlet(np.ones(4), n) * 0.5 + np.eye(4)[labels] * 0.5
    return np.hstack([shares, rng.uniform(2, 5, (n, 1))]), labels, [f"p{k // 2}" for k in range(n)]


def test_counts_equal_a_worked_example() -> None:
    p = np.array([[0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.5, 0.3, 0.1, 0.1]], np.float32)
    assert count_features(p).tolist() == pytest.approx([2 / 3, 0, 0, 1 / 3, np.log(4)])
    assert count_features(p[:0]).tolist() == [0, 0, 0, 0, 0]


@given(arrays(np.float64, (3, 4), elements=st.floats(0, 1, width=16)))
def test_the_class_with_most_patches_leads(shares: np.ndarray) -> None:
    found = majority_vote(np.hstack([shares, np.ones((3, 1))]))
    assert np.allclose(found.sum(1), 1)
    for row, p in zip(shares, found, strict=True):
        if np.sort(row)[-1] > np.sort(row)[-2] + 0.01:
            assert p.argmax() == row.argmax()


def test_of_two_equal_shares_the_higher_class_wins() -> None:
    assert majority_vote(np.array([[0.5, 0, 0.5, 0, 3.0]])).argmax() == 2


@pytest.mark.parametrize("method", GRIDS)
def test_a_loaded_head_gives_the_same_probabilities(method: str, tmp_path: Path) -> None:
    features, labels, patients = examples()
    head = fit_count_classifier(method, features, labels, patients, 4, PLAIN, 0)
    save_head(head, tmp_path / "a.skops")
    save_head(head, tmp_path / "b.skops")
    again = load_head(tmp_path / "a.skops", 4)
    assert np.array_equal(head_probabilities(again, features, 4), head_probabilities(head, features, 4))
    assert (tmp_path / "a.skops").read_bytes() == (tmp_path / "b.skops").read_bytes()


def test_a_class_without_examples_gets_probability_zero() -> None:
    features, labels, patients = examples(classes=2)
    p = head_probabilities(fit_count_classifier("random-forest", features, labels, patients, 4, PLAIN, 0), features, 4)
    assert np.allclose(p.sum(1), 1)
    assert not p[:, 2:].any()


@pytest.mark.parametrize("other", [KNeighborsClassifier(1), SGDOneClassSVM()])
def test_a_head_of_another_kind_is_refused(other: object, tmp_path: Path) -> None:
    features, labels, _ = examples()
    dump(other.fit(features, labels), tmp_path / "a.skops")
    with pytest.raises(InputError, match=r"a\.skops"):
        load_head(tmp_path / "a.skops", 4)


class Hostile:
    """Would run when a pickle of it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.place,)


def test_loading_a_file_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "a.skops").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    dump({"head": Hostile(tmp_path / "ran")}, tmp_path / "b.skops")
    for name in ("a.skops", "b.skops"):
        with pytest.raises(InputError, match=name):
            load_head(tmp_path / name, 4)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_head_is_refused(tmp_path: Path) -> None:
    features, labels, patients = examples()
    path = tmp_path / "a.skops"
    save_head(fit_count_classifier("mlp", features, labels, patients, 4, PLAIN, 0), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_head(path, 4)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("schema.json", "{}")
    with pytest.raises(InputError, match="cannot be read"):
        load_head(path, 4)


def test_a_head_of_another_task_is_refused(tmp_path: Path) -> None:
    features, labels, patients = examples()
    save_head(fit_count_classifier("svm", features, labels, patients, 4, PLAIN, 0), tmp_path / "a.skops")
    with pytest.raises(InputError, match="does not fit its entry"):
        load_head(tmp_path / "a.skops", 3)
    save_head(fit_count_classifier("svm", features[:, :3], labels, patients, 4, PLAIN, 0), tmp_path / "b.skops")
    with pytest.raises(InputError, match="3 features"):
        load_head(tmp_path / "b.skops", 4)
