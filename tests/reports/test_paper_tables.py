"""The rows of the paper's tables, and the comparison of a run with them."""

from collections import Counter

import pyarrow as pa
import pytest

from her2batch.reports.paper_tables import compare_with_paper, further_rows, paper_rows
from her2batch.training.methods import method_kind

FIGURES = {
    ("table4", "her2-3way", "convnext-small"): (91.79, 83.52, 83.56),
    ("table5", "her2-4way", "convnext-small"): (94.29, 77.85, 78.83),
    ("table6", "her2-binary", "mlp"): (97.82, 91.64, 93.52),
    ("table6", "her2-4way", "majority-vote"): (42.77, 13.88, 16.66),
    ("tableS1", "her2-4way", "dtfd-afs"): (92.79, 75.72, 75.50),
    ("tableS2", "her2-3way", "random-forest"): (91.88, 78.11, 79.80),
    ("tableS3", "her2-binary", "mlp"): (96.67, 88.52, 91.78),
    ("figure5", "pr", "dtfd-afs"): (97.10, 93.35, None),
}


def test_all_rows_of_the_paper_are_present() -> None:
    rows = paper_rows()
    assert Counter(row.table for row in rows) == {
        "table4": 12, "table5": 3, "table6": 10, "tableS1": 9, "tableS2": 10, "tableS3": 10, "figure5": 4,
    }  # fmt: skip
    for row in rows:
        assert all(mean is None or 10 < mean < 100 for mean, _ in row.figures.values())


@pytest.mark.parametrize(("key", "figures"), FIGURES.items())
def test_figures_equal_those_of_the_paper(key: tuple[str, str, str], figures: tuple[float, ...]) -> None:
    row = next(one for one in paper_rows() if (one.table, one.task, one.method) == key)
    assert tuple(row.figures[name][0] for name in ("auc", "f1", "accuracy")) == figures


def test_every_row_is_a_method_that_can_be_run() -> None:
    for row in paper_rows():
        _, method, given = row.cell("stain", "thumbnail-512")
        assert method_kind(method, given)
    assert len({row.cell("uni", "thumbnail-224") for row in paper_rows()}) == 58


def test_each_row_has_its_status_and_reason() -> None:
    rows = [(row, row.cell("stain", "thumbnail-224")) for row in paper_rows()][:3]
    names = {f"{name}_{what}": pa.array([50.0]) for name in ("auc", "f1", "accuracy") for what in ("mean", "sd")}
    keys = dict(zip(("task", "method", "input"), ([one] for one in rows[0][1]), strict=True))
    table = compare_with_paper(rows, pa.table({**keys, **names}), {rows[1][1]: "no slide is labelled"})
    assert table["status"].to_pylist() == ["reproduced", "no data", "not run"]
    assert table["accuracy_mean"].to_pylist() == [50, None, None]
    assert table["paper_accuracy"].to_pylist() == [92.80, 93.60, 96.19]
    assert table["why"].to_pylist()[:2] == [None, "no slide is labelled"]


def test_a_row_whose_folds_are_not_all_trained_has_no_result() -> None:
    rows = [(row, row.cell("stain", "thumbnail-224")) for row in paper_rows()][:2]
    names = {f"{name}_{what}": pa.array([50.0, 60.0]) for name in ("auc", "f1", "accuracy") for what in ("mean", "sd")}
    keys = {name: [cell[k] for _, cell in rows] for k, name in enumerate(("task", "method", "input"))}
    summary = pa.table({**keys, **names, "folds": pa.array([10, 4], pa.int32())})
    table = compare_with_paper(rows, summary, {}, folds=10)
    assert table["status"].to_pylist() == ["reproduced", "not run"]
    assert table["auc_mean"].to_pylist() == [50, None]
    assert "stopped" in table["why"].to_pylist()[1]


def test_further_encoders_have_rows_of_ours_and_settings_are_listed() -> None:
    rows = [(row, row.cell("efficientnet-lite0", "thumbnail-224")) for row in further_rows(["stain"])]
    stain = [cell for _, cell in rows if cell[2] == "stain"]
    assert len(stain) == 9
    assert {method for _, method, _ in stain} == {"clam-sb", "clam-mb", "dtfd-afs"}
    empty = pa.table({name: pa.array([], pa.string()) for name in ("task", "method", "input")})
    table = compare_with_paper(rows, empty, {}, {stain[0]: "up to 8 epochs"})
    assert table["settings"].to_pylist().count("up to 8 epochs") == 1


def test_networks_that_the_paper_does_not_have_are_marked_as_ours() -> None:
    rows = further_rows()
    assert {(row.table, row.method) for row in rows} == {("ours", "efficientnet-lite0")}
    assert [row.task for row in rows] == ["her2-binary", "her2-3way", "her2-4way"]
    cells = [(row, row.cell("stain", "thumbnail-512")) for row in rows]
    assert all(method_kind(cell[1], cell[2]) == "image" for _, cell in cells)
    names = {f"{name}_{what}": pa.array([50.0]) for name in ("auc", "f1", "accuracy") for what in ("mean", "sd")}
    keys = dict(zip(("task", "method", "input"), ([one] for one in cells[0][1]), strict=True))
    table = compare_with_paper(cells, pa.table({**keys, **names}), {})
    assert table["status"].to_pylist() == ["reproduced", "not run", "not run"]
    assert table["paper_accuracy"].to_pylist() == [None] * 3
