"""Cells on the page of a slide: shares, steps and outlines in the colours of their categories."""

import numpy as np
import pytest

from her2batch.reports.cells.cell_evidence import OTHER_CELL, cell_evidence, draw_outlines


def prediction(**values: object) -> dict:
    return {
        "bundle": "cells", "task": "her2-4way", "predicted": "2+", "percent": [40.0, 30.0, 25.0, 5.0], "n_tumour": 900,
        "n_cells": 2000, "h_score": 95.0, **values,
    }  # fmt: skip


def test_shares_and_steps_of_a_her2_slide() -> None:
    found = cell_evidence([{"bundle": "membrane", "percent": None}, prediction()])
    assert found["cell_shares"][0] == ("3+", "intense, complete", 5.0)
    steps = found["cell_steps"]
    assert [round(step.share, 3) for step in steps] == [0.05, 0.3, 0.05, 0.6, 0.6]
    assert next(step.category for step in steps if step.reached) == "2+"


def test_a_slide_that_cannot_be_scored_has_cells_without_categories() -> None:
    found = cell_evidence([prediction(predicted=None)])
    assert (found["cell_steps"], found["cell_shares"]) == ((), [])
    assert found["cell_prediction"]["n_cells"] == 2000


def test_nuclear_markers_have_their_own_words() -> None:
    found = cell_evidence([prediction(task="er", predicted="positive")])
    assert [name for _, name, _ in found["cell_shares"]] == ["strong", "moderate", "weak", "negative"]
    assert found["cell_steps"] == ()


def test_slides_without_cells_show_nothing() -> None:
    assert cell_evidence([]) == {"cell_prediction": None, "cell_shares": [], "cell_steps": (), "cell_mark": None}


@pytest.mark.parametrize(("tumour", "colour"), [(True, (106, 52, 17)), (False, OTHER_CELL)])
def test_outlines_have_the_colour_of_their_category(tumour: bool, colour: tuple[int, int, int]) -> None:
    image = np.full((60, 60, 3), 200, np.uint8)
    ring = np.array([[[10.0, 10], [50, 10], [50, 50], [10, 50]]])
    drawn = draw_outlines(image, ring, np.array([3], np.uint8), np.array([tumour]))
    assert tuple(drawn[10, 30].tolist()) == pytest.approx(colour, abs=25)  # lines are smoothed
    assert (drawn[30, 30] == 200).all()
    assert (image == 200).all()
