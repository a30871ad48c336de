"""The estimate of a run's CPU time: it follows the settings, and the paper's tables fit into an evening."""

import pytest

from her2batch.experiments.training_cost import START_S, RunSize, describe_settings, estimate_cost
from her2batch.reports.paper_tables import further_rows, paper_rows
from her2batch.settings import Training
from her2batch.training.methods import UnitPlan, method_kind, method_settings, units_of_cells
from her2batch.training.recipes.profiles import with_run_defaults

PAPER = {"her2-binary": 500, "her2-3way": 500, "her2-4way": 500, "er": 385, "pr": 387}
SIZE = RunSize(PAPER, 60.0, {"efficientnet-lite0": 1280, "stain": 96})


def all_tables() -> UnitPlan:
    rows = [*paper_rows(), *further_rows(["stain"])]
    return units_of_cells([row.cell("efficientnet-lite0", "thumbnail-224") for row in rows], range(10))


def test_all_tables_of_a_cohort_of_the_papers_size_take_less_than_two_and_a_half_hours_on_two_cores() -> None:
    costs = estimate_cost(all_tables(), with_run_defaults(Training(profile="laptop")), SIZE)
    assert sum(row.units for row in costs) == len(all_tables().units)
    assert 1 * 3600 < sum(row.seconds for row in costs) / 2 < 2.4 * 3600


@pytest.mark.parametrize("name", ["thumbnail-512", "thumbnail-224"])
def test_twice_the_epochs_cost_about_twice(name: str) -> None:
    work = units_of_cells([("her2-3way", "resnet50", name)], range(10))
    one, two = (estimate_cost(work, Training(options=(f"epochs={n}",)), SIZE)[0].seconds for n in (10, 20))
    assert two == pytest.approx(2 * one, rel=0.05)


def test_a_cohort_without_labelled_slides_costs_nothing() -> None:
    work = units_of_cells([("er", "dtfd-afs", "stain")], range(3))
    assert estimate_cost(work, Training(), RunSize({}, 60.0, {}))[0].seconds == pytest.approx(3 * START_S)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("resnet50", "thumbnail-224", "tiny network, random weights, up to 8 epochs of 16"),
        (
            "efficientnet-lite0",
            "thumbnail-224",
            "full network, imagenet weights, up to 4 epochs of 16, 0.4 of the layers",
        ),
        ("clam-sb", "stain", "up to 8 epochs, at least 0"),
        ("svm", "patches-low", "grid search"),
        ("majority-vote", "patches-low", "no search"),
    ],
)
def test_settings_are_described_for_the_table(method: str, given: str, words: str) -> None:
    settings = method_settings(method, method_kind(method, given), Training(profile="laptop"))
    assert describe_settings(method, settings) == words
