"""Tables of a training run have their columns in one place."""

import pytest

from her2batch.store.tables.runs import NUMBER_METRIC_COLUMNS, RUN_TABLES, run_schema


@pytest.mark.parametrize("name", ["labels", "folds", "predictions", "metrics", "trials", "attention", "counts"])
def test_every_table_has_a_schema(name: str) -> None:
    columns = RUN_TABLES.get(name) or RUN_TABLES[f"units/UNIT/{name}"]
    assert run_schema(name).names == [column.name for column in columns]


def test_metrics_of_numbers_have_further_columns() -> None:
    more = [column.name for column in NUMBER_METRIC_COLUMNS]
    assert run_schema("metrics", numbers=True).names == [*run_schema("metrics").names, *more]
