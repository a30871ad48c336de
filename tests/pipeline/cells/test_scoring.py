"""Predictions from cells: the guideline for HER2, ER, PR and Ki-67, and slides that cannot be scored."""

import numpy as np
import pyarrow as pa
import pytest

from her2batch.assessment import assess_slide
from her2batch.models.membrane_rule import RuleResult, rule_predictions
from her2batch.pipeline.cells.scoring import cell_predictions, with_other_rule
from her2batch.store.schemas import table_schema
from her2batch.store.tables.cell_provenance import CellProvenance
from her2batch.store.tables.cells import CELL_COLUMNS, cells_table


def row_of(stain: str | None, flags: tuple[str, ...] = ()) -> dict:
    return {"slide_id": "S1", "patient_id": "P1", "stain": stain, "flags": list(flags), "status": "done", "n_tiles": 9}


def cells_of(counts: tuple[int, int, int, int], others: int = 0, **values: float | np.ndarray) -> pa.Table:
    """A table of tumour cells by category, and of other cells without staining."""
    category = np.repeat([0, 1, 2, 3, 0], [*counts, others])
    columns = {column.name: np.zeros(len(category)) for column in CELL_COLUMNS[1:]}
    columns |= {"category": category, "cell": np.arange(len(category)), "area": np.full(len(category), 40.0)}
    columns["faint"] = np.where(category > 0, 1.0, 0.0)
    columns["membrane_dab"] = 0.1 * category
    columns["tumour"] = np.repeat([0.9, 0.1], [sum(counts), others])
    columns |= {name: np.broadcast_to(value, len(category)) for name, value in values.items()}
    return cells_table("S1", columns)


def predictions(row: dict, cells: pa.Table) -> dict[str, dict]:
    table = cell_predictions(row, cells)
    assert table.schema == table_schema("predictions/cells")
    return {one["task"]: one for one in table.to_pylist()}


@pytest.mark.parametrize(
    ("counts", "score", "detail"),
    [
        ((1000, 0, 0, 0), "0", "null"),
        ((950, 50, 0, 0), "0", "ultralow"),
        ((600, 400, 0, 0), "1+", "1+"),
        ((100, 0, 900, 0), "2+", "2+"),
        ((400, 300, 250, 50), "2+", "2+"),
        ((300, 100, 200, 400), "3+", "3+"),
    ],
)
def test_her2_follows_the_guideline(counts: tuple[int, int, int, int], score: str, detail: str) -> None:
    found = predictions(row_of("her2"), cells_of(counts, others=5000))
    assert set(found) == {"her2-4way", "her2-3way", "her2-binary", "her2-5way"}
    assert (found["her2-4way"]["predicted"], found["her2-5way"]["predicted"]) == (score, detail)
    for one in found.values():
        assert one["p"] == pytest.approx(one["p"])
        assert sum(one["p"]) == pytest.approx(1, abs=1e-6)
        assert one["predicted"] in one["plausible"]
        assert one["percent"] == pytest.approx([100 * n / 1000 for n in counts])
        assert (one["n_cells"], one["n_tumour"]) == (6000, 1000)
        assert one["method"] == "cells"


def test_a_presumed_marker_is_a_reason() -> None:
    found = predictions(row_of("ihc"), cells_of((1000, 0, 0, 0)))
    assert "marker-presumed" in found["her2-4way"]["reasons"]
    assert "marker-presumed" not in predictions(row_of("her2"), cells_of((1000, 0, 0, 0)))["her2-4way"]["reasons"]


@pytest.mark.parametrize(
    ("stain", "brown", "doubtful"), [("ihc", 0.2, True), ("ihc", 0.05, False), ("her2", 0.2, False)]
)
def test_many_brown_nuclei_put_a_presumed_marker_in_doubt(stain: str, brown: float, doubtful: bool) -> None:
    nuclei = np.where(np.arange(1000) < 1000 * brown, 0.5, 0.0)
    cells = cells_of((0, 0, 0, 1000), nuclear_dab=nuclei, moderate=1.0)
    for one in predictions(row_of(stain), cells).values():
        assert one["predicted"] in ("3+", "high", "positive")
        assert ("marker-doubtful" in one["reasons"], one["review"]) == (doubtful, True)  # 3+ is for review anyway
    found = assess_slide(
        row_of(stain), [{**one, "bundle": "cells"} for one in predictions(row_of(stain), cells).values()]
    )
    assert ("marker-doubtful" in {reason.code for reason in found.reasons if reason.asks}) == doubtful


def test_er_and_pr_have_status_allred_and_h_score() -> None:
    found = predictions(row_of("er"), cells_of((200, 100, 300, 400)))["er"]
    assert (found["predicted"], found["score"]) == ("positive", 7.0)  # proportion 5, intensity 2 of 2.4
    assert found["h_score"] == pytest.approx(10 + 60 + 120)
    assert predictions(row_of("pr"), cells_of((1000, 2, 0, 0)))["pr"]["predicted"] == "negative"


def test_er_of_at_most_ten_percent_is_for_review_and_may_be_negative() -> None:
    low = predictions(row_of("er"), cells_of((950, 50, 0, 0)))["er"]
    assert (low["predicted"], low["plausible"], low["review"]) == ("positive", ["negative", "positive"], True)
    assert low["reasons"] == ["low-positive", "uncalibrated"]
    high = predictions(row_of("er"), cells_of((850, 50, 50, 50)))["er"]
    assert (high["plausible"], high["review"], high["reasons"]) == (["positive"], False, ["uncalibrated"])


@pytest.mark.parametrize("stain", ["her2", "er", "pr", "ki67"])
def test_every_prediction_of_a_rule_says_that_it_is_not_calibrated(stain: str) -> None:
    for one in predictions(row_of(stain), cells_of((500, 100, 100, 100))).values():
        assert "uncalibrated" in one["reasons"]


def test_ki67_is_a_number() -> None:
    found = predictions(row_of("ki67"), cells_of((800, 50, 50, 100)))["ki67"]
    assert (found["predicted"], found["classes"], found["score"]) == ("20.0", [], pytest.approx(20))


def test_other_stains_have_no_prediction() -> None:
    assert predictions(row_of("he"), cells_of((1000, 0, 0, 0))) == {}


@pytest.mark.parametrize("stain", ["her2", "er", "pr", "ki67", "ihc"])
def test_too_few_tumour_cells_give_no_class(stain: str) -> None:
    (found,) = predictions(row_of(stain, ("blurred",)), cells_of((20, 10, 10, 9), others=4000)).values()
    assert found["predicted"] is None
    assert found["reasons"][:2] == ["blurred", "few-tumour-cells"]
    assert (found["review"], found["n_tumour"], found["p"]) == (True, 49, [])


def test_pictures_that_are_no_her2_give_no_class() -> None:
    cells = cells_of((1000, 0, 0, 0))
    (he,) = predictions(row_of("her2"), CellProvenance(stain="he").attach(cells)).values()
    assert (he["predicted"], he["reasons"]) == (None, ["not-ihc"])
    (nuclear,) = predictions(row_of("her2"), cells_of((0, 1000, 0, 0), nuclear_dab=0.5)).values()
    assert nuclear["reasons"] == ["nuclear-staining"]


def test_a_slide_without_cells_cannot_be_scored() -> None:
    (found,) = predictions(row_of("her2"), cells_of((0, 0, 0, 0))).values()
    assert found["reasons"] == ["few-tumour-cells"]


def test_a_refused_slide_has_no_result_whatever_other_methods_say() -> None:
    refused = cell_predictions(row_of("her2"), cells_of((20, 0, 0, 0))).to_pylist()
    others = cell_predictions(row_of("her2"), cells_of((300, 100, 200, 400))).to_pylist()
    rows = [{**one, "bundle": "cells"} for one in refused]
    rows += [{**one, "bundle": "membrane", "method": "membrane"} for one in others if one["task"] != "her2-5way"]
    found = assess_slide({**row_of("her2"), "blank_tiles": 0}, rows)
    assert (found.result, found.state, found.not_scorable, found.methods) == (None, "review", True, ())
    assert found.meaning == "not scorable: too few tumour cells"
    assert [reason.kind for reason in found.reasons] == ["not-scorable"]
    verdict = {
        "number": 1, "task": "her2-4way", "verdict": "change", "label": "1+", "supersedes": None, "reviewer": "Dr. A"
    }  # fmt: skip
    decided = assess_slide({**row_of("her2"), "blank_tiles": 0}, rows, None, [verdict])
    assert (decided.result, decided.by, decided.state) == ("1+", "pathologist", "decided")


def test_rules_that_disagree_ask_for_a_review() -> None:
    of_cells, of_area = (
        cell_predictions(row_of("her2"), cells_of(counts)).to_pylist()
        for counts in ((1000, 0, 0, 0), (300, 100, 200, 400))
    )
    rows = [{**one, "bundle": "cells"} for one in of_cells]
    rows += [{**one, "bundle": "membrane", "method": "membrane"} for one in of_area if one["task"] != "her2-5way"]
    found = assess_slide({**row_of("her2"), "blank_tiles": 0}, rows)
    assert (found.result, found.review) == ("3+", True)
    (reason,) = [one for one in found.reasons if one.code == "cells-disagree"]
    assert "3+ by membrane, 0 by cells" in reason.words


def by_area(category: str, p: tuple[float, float, float, float], stain: str = "her2") -> pa.Table:
    """Predictions of the membrane rule for the slide of `row_of`."""
    result = RuleResult(category, 1.0, 1.0, False, {}, p, ())
    rows = [{**one, "slide_id": "S1", "patient_id": "P1"} for one in rule_predictions(result, presumed=False)]
    return pa.Table.from_pylist(rows if stain == "her2" else [], table_schema("predictions"))


def sets_of(predictions: pa.Table) -> dict[str, list[str]]:
    return {one["task"]: one["plausible"] for one in predictions.to_pylist()}


def test_where_area_and_cells_differ_the_sets_of_both_hold_both_classes() -> None:
    area = by_area("0", (0.999, 0.001, 0.0, 0.0))
    cells = cell_predictions(row_of("her2"), cells_of((100, 0, 900, 0)))
    assert sets_of(area)["her2-4way"] == ["0"]
    assert "0" not in sets_of(cells)["her2-4way"]
    for found in (sets_of(with_other_rule(area, cells)), sets_of(with_other_rule(cells, area))):
        assert found["her2-4way"][:3] == ["0", "1+", "2+"]  # without gaps
        assert found["her2-3way"] == ["0", "low", "high"]  # 2+ without ISH is low or high
        assert found["her2-binary"] == ["negative", "positive"]
    changed = with_other_rule(area, cells)
    assert changed.schema == area.schema
    assert changed.drop_columns("plausible") == area.drop_columns("plausible")


def test_rules_that_agree_or_say_nothing_change_no_set() -> None:
    area = by_area("3+", (0.0, 0.0, 0.01, 0.99))
    strong = cell_predictions(row_of("her2"), cells_of((0, 0, 0, 1000)))
    assert with_other_rule(area, strong) == area
    assert with_other_rule(strong, area) == strong
    refused = cell_predictions(row_of("her2"), cells_of((20, 0, 0, 0)))
    assert with_other_rule(area, refused) == area
    assert with_other_rule(refused, area) == refused
    nuclear = cell_predictions(row_of("er"), cells_of((200, 100, 300, 400)))
    assert with_other_rule(nuclear, by_area("0", (1, 0, 0, 0), "er")) == nuclear
