"""Folds of the user's own: from a file of slides or patients, and by site; no patient is ever on two sides."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from her2batch.errors import InputError
from her2batch.experiments.given_folds import read_fold_file
from her2batch.experiments.train import TrainingRequest, read_request, train
from her2batch.settings import Training, TrainingResources
from her2batch.store.cohort import Cohort
from tests.training import stores

SERIAL = TrainingResources(workers=0)
FAST = Training(folds=3, options=("epochs=1", "k=2"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Path]:
    """18 slides of 18 patients at three sites."""
    folder = tmp_path_factory.mktemp("sites")
    bags, labels = stores.planted(18)
    made = stores.cohort(folder / "cohort", bags)
    return made, sheet(folder / "labels.csv", list(bags), labels.tolist())


def sheet(
    path: Path, ids: Sequence[str], labels: Sequence[int], patients: Sequence[str] = (), sites: str = "ABC"
) -> Path:
    rows = []
    for k, (slide_id, label) in enumerate(zip(ids, labels, strict=True)):
        patient = patients[k] if patients else f"P{k}"
        site = sites[k // 3 % len(sites)].replace("-", "")
        rows.append(f"{slide_id},{patient},{('0', '1+', '3+')[label]},her2,{site}")
    path.write_text("\n".join(["slide_id,patient_id,her2,stain,site", *rows]))
    return path


def folds_of(run: Path, split: str = "test") -> dict[int, set[str]]:
    rows = pq.read_table(run / "folds.parquet").to_pylist()
    return {k: {row["slide_id"] for row in rows if (row["fold"], row["split"]) == (k, split)} for k in range(-1, 3)}


@pytest.mark.parametrize("key", ["slide_id", pytest.param("patient_id", marks=pytest.mark.slow)])
def test_the_folds_of_a_run_given_as_a_file_are_the_same_folds(
    key: str, cohort: tuple[Cohort, Path], tmp_path: Path
) -> None:
    made, labels = cohort
    assert train(TrainingRequest(made.root, tmp_path / "own", labels), FAST, SERIAL).exit_code == 0
    table = pq.read_table(tmp_path / "own" / "folds.parquet").to_pylist()
    lines = [f"{row[key]};{row['fold']}" for row in table if row["split"] == "test"]
    (tmp_path / "folds.csv").write_text("\n".join([f"{key};Fold", *lines]), encoding="utf-8-sig")
    request = TrainingRequest(made.root, tmp_path / "run", labels, folds_file=tmp_path / "folds.csv")
    assert train(request, FAST.model_copy(update={"folds": 10}), SERIAL).exit_code == 0
    for name in ("folds", "predictions", "metrics"):
        tables = [(tmp_path / run / f"{name}.parquet").read_bytes() for run in ("own", "run")]
        assert tables[0] == tables[1], name
    again, training = read_request(tmp_path / "run")
    assert (again, training.folds, training.fold_names) == (request, 3, ("0", "1", "2"))
    assert train(again, training, SERIAL).exit_code == 0


def test_each_site_is_tested_by_the_others(cohort: tuple[Cohort, Path], tmp_path: Path) -> None:
    made, labels = cohort
    found = train(
        TrainingRequest(made.root, tmp_path / "run", labels), FAST.model_copy(update={"folds_by": "site"}), SERIAL
    )
    assert found.exit_code == 0
    sites = {f"s{k:03}": "ABC"[k // 3 % 3] for k in range(18)}
    for k, tested in folds_of(tmp_path / "run").items():
        assert {sites[slide_id] for slide_id in tested} == ({"ABC"[k]} if k >= 0 else set())
    for k, validated in folds_of(tmp_path / "run", "val").items():
        assert validated
        assert all(k < 0 or sites[slide_id] != "ABC"[k] for slide_id in validated)
        assert len({sites[slide_id] for slide_id in folds_of(tmp_path / "run", "train")[k]}) == (2 if k >= 0 else 3)
    assert read_request(tmp_path / "run")[1].fold_names == ("A", "B", "C")


def test_two_sites_are_enough_and_slides_without_one_are_listed(cohort: tuple[Cohort, Path], tmp_path: Path) -> None:
    made, _ = cohort
    bags, labels = stores.planted(18)
    two = sheet(tmp_path / "labels.csv", list(bags), labels.tolist(), sites="AB-ABA")
    found = train(
        TrainingRequest(made.root, tmp_path / "run", two), FAST.model_copy(update={"folds_by": "site"}), SERIAL
    )
    assert found.exit_code == 0
    rows = found.excluded.to_pylist()
    assert {(row["slide_id"], row["reason"]) for row in rows} == {(f"s{k:03}", "no-site") for k in (6, 7, 8)}
    one = sheet(tmp_path / "one.csv", list(bags), labels.tolist(), sites="A")
    with pytest.raises(
        InputError, match=r"the column site of the labels gives 1 folds \(A\); a cross-validation needs"
    ):
        train(TrainingRequest(made.root, tmp_path / "two", one), FAST.model_copy(update={"folds_by": "site"}), SERIAL)


def refused(cohort: tuple[Cohort, Path], folder: Path, text: str, labels: Path | None = None, **more: object) -> str:
    (folder / "folds.csv").write_text(text)
    request = TrainingRequest(cohort[0].root, folder / "run", labels or cohort[1], folds_file=folder / "folds.csv")
    with pytest.raises(InputError) as caught:
        train(request, FAST.model_copy(update=more), SERIAL)
    assert not (folder / "run" / "units").exists()
    return str(caught.value)


SLIDES = [f"s{k:03},{k // 3 % 3}" for k in range(18)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [(["slide_id,part", *SLIDES], "has no column fold beside slide_id or patient_id"),
     (["slide_id,fold", *SLIDES, "s000,2"], "lines 2 and 20: s000 is in the folds 0 and 2"),
     (["slide_id,fold", *SLIDES, "s000,0", "x1,0", "x2,1"], "has folds of x1, x2, which are no slide of the cohort"),
     (["patient_id,fold", "P0,1", "P1,2", "Q,0"], "has folds of Q, which are no patient of the cohort and its labels"),
     (["slide_id,fold", "s000,"], "line 2 has no fold"), (["slide_id,fold", ",1"], "line 2 has no key"),
     (["slide_id,fold", *(line[:4] + ",1" for line in SLIDES)], "gives 1 folds (1); a cross-validation needs two")],
)  # fmt: skip
def test_a_mistake_in_the_file_is_named(
    lines: list[str], words: str, cohort: tuple[Cohort, Path], tmp_path: Path
) -> None:
    assert words in refused(cohort, tmp_path, "\n".join(lines))


def test_a_patient_on_two_sides_is_refused(cohort: tuple[Cohort, Path], tmp_path: Path) -> None:
    bags, labels = stores.planted(18)
    patients = [f"P{k // 2}" for k in range(18)]
    pairs = sheet(tmp_path / "labels.csv", list(bags), labels.tolist(), patients)
    words = refused(cohort, tmp_path, "\n".join(["slide_id,fold", *SLIDES]), pairs)
    assert "patient P1 is in two folds (s002 in 0, s003 in 1), and would be in training and test" in words
    sites = TrainingRequest(cohort[0].root, tmp_path / "sites", pairs)
    with pytest.raises(InputError, match=r"patient P1 is in two folds \(s002 in A, s003 in B\)"):
        train(sites, FAST.model_copy(update={"folds_by": "site"}), SERIAL)


def test_a_file_and_sites_at_once_are_refused(cohort: tuple[Cohort, Path], tmp_path: Path) -> None:
    words = refused(cohort, tmp_path, "\n".join(["slide_id,fold", *SLIDES]), folds_by="site")
    assert "folds are given by a file and by site; omit --folds-file or --folds-by" in words


def test_slides_that_the_file_lacks_are_left_out_by_name(cohort: tuple[Cohort, Path], tmp_path: Path) -> None:
    made, labels = cohort
    (tmp_path / "folds.csv").write_text("\n".join(["slide_id,fold", *SLIDES[:-2]]).replace("s004,", "s004.svs,"))
    assert read_fold_file(tmp_path / "folds.csv")[1]["s004.svs"] == "1"
    request = TrainingRequest(made.root, tmp_path / "run", labels, folds_file=tmp_path / "folds.csv")
    found = train(request, FAST, SERIAL)
    assert [(row["slide_id"], row["words"]) for row in found.excluded.to_pylist()] == [
        ("s016", "s016 is not in the file of folds"), ("s017", "s017 is not in the file of folds")
    ]  # fmt: skip
