"""A calibration as a file: readable, complete, bound to its content."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from her2batch.errors import InputError
from her2batch.models.calibration.calibration_file import (
    Calibration,
    measurement_plan,
    read_calibration,
    save_calibration,
)
from her2batch.models.calibration.evidence import SlideEvidence, scanner_name, slide_digest
from her2batch.models.calibration.fitting import LabelledEvidence, assign_folds, fit_method, patient_numbers
from her2batch.settings import ALGORITHMS, Plan
from her2batch.tasks import IHC_SCORES, is_calibration


def labelled(n: int, shift: float = 0.0, seed: int = 0) -> list[LabelledEvidence]:
    """Labelled slides whose logits are too high by `shift`; two slides of every third patient."""
    rng = np.random.default_rng(seed)
    slides = []
    for k in range(n):
        label = k % 4
        steps = 4.0 * label + rng.normal(0, 0.8) - 4.0 * (np.arange(3) + 0.5) + shift
        evidence = SlideEvidence(
            slide_digest(f"s{k}"), "membrane", "her2-4way", "membrane", IHC_SCORES, steps,
            {"moderate": float(rng.normal())}, {"haematoxylin": 0.25 + 0.01 * float(rng.normal())}, "aperio 0.25 µm/px",
        )  # fmt: skip
        slides.append(LabelledEvidence(evidence, IHC_SCORES[label], f"p{k - (k % 12 == 4) * 4}"))
    return slides


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(
        her2batch="1.0",
        algorithms=ALGORITHMS,
        plan=Plan().id,
        stains=("her2",),
        methods=(fit_method(labelled(24), None),),
    )


def test_a_file_that_was_written_reads_the_same(calibration: Calibration, tmp_path: Path) -> None:
    for name in ("first.toml", "second.toml"):
        save_calibration(calibration, tmp_path / name)
    found = read_calibration(tmp_path / "first.toml")
    assert found == calibration
    assert found.id == calibration.id
    assert is_calibration(found.id)
    assert (tmp_path / "first.toml").read_bytes() == (tmp_path / "second.toml").read_bytes()


def test_a_person_can_read_what_it_is_and_on_what_it_stands(calibration: Calibration, tmp_path: Path) -> None:
    save_calibration(calibration, tmp_path / "c.toml")
    text = (tmp_path / "c.toml").read_text()
    assert "# membrane, her2-4way: labelled slides of 0: 6 of 4 patients, 1+: 6 of 6" in text
    assert "Too few for the coverage: 0, 1+, 2+, 3+; every set holds all classes." in text
    data = tomllib.loads(text)
    assert {"checksum", "her2batch", "algorithms", "plan", "stains", "coverage", "methods"} <= set(data)
    method = data["methods"][0]
    assert method["slides"] == dict.fromkeys(IHC_SCORES, 6)
    assert set(method["ranges"]) == {"haematoxylin"}
    assert not any("s0" in line for line in text.splitlines() if "slide =" in line)  # no names of slides


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("coverage = 0.9", "coverage = 0.5"),
        ("algorithms = 2", "algorithms = 1"),
        ('"her2"', '"er"'),
        ("shift = ", "shift = 1"),
        ("checksum = ", "# checksum = "),
    ],
)
def test_a_changed_file_is_refused(calibration: Calibration, tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "c.toml"
    save_calibration(calibration, path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match="was changed after it was made") as caught:
        read_calibration(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("a = ", "is not valid TOML"),
        ("\x00\xff", "is not valid TOML"),
        ("format = 99\n", "install a newer version"),
        ("format = 1\n", "is no valid calibration"),
        ('kind = "bundle"\n', "is no valid calibration"),
    ],
)
def test_another_file_is_refused_with_its_name(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text, "latin-1")
    with pytest.raises(InputError, match=words) as caught:
        read_calibration(path)
    assert str(path) in str(caught.value)


def test_slides_of_a_patient_share_a_fold_and_every_class_is_spread() -> None:
    slides = labelled(48)
    patients = patient_numbers([one.patient for one in slides])
    labels = np.array([IHC_SCORES.index(one.label) for one in slides])
    folds = assign_folds(patients, labels)
    assert all(len(set(folds[patients == patient])) == 1 for patient in set(patients))
    assert len(set(folds)) == 10
    assert np.bincount(folds).max() <= 7


def test_the_order_of_the_slides_changes_nothing() -> None:
    slides = labelled(30)
    assert fit_method(slides, None) == fit_method(slides[::-1], None)


def test_encoders_and_bundle_do_not_change_the_plan_of_the_measurements() -> None:
    plan = Plan()
    assert measurement_plan(
        plan.model_copy(update={"encoders": ("uni",), "compile": True, "bundle": "x"})
    ) == measurement_plan(plan)
    for other in ({"mpp": 1.0}, {"tile": 256}, {"min_tissue": 0.5}):
        assert measurement_plan(plan.model_copy(update=other)) != measurement_plan(plan)


def test_a_scanner_is_the_format_and_the_resolution_of_its_files() -> None:
    assert scanner_name({"format": "aperio", "mpp": 0.2528}) == "aperio 0.25 µm/px"
    assert scanner_name({"format": None, "mpp": None}) == "unknown"
