"""Tables as CSV: pandas and DuckDB read back the values of the Parquet files."""

import csv as plain
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from her2batch.exchange.csv import files_table, text_column, text_rows, write_csv
from tests.exchange.stored_examples import make_stored_cohort


def test_pandas_and_duckdb_read_equal_values(tmp_path: Path) -> None:
    table = make_stored_cohort(tmp_path / "cohort", "S1").read("tiles", "S1")
    path = tmp_path / "tiles.csv"
    write_csv(path, table.column_names, [table])
    wanted = table.to_pandas()
    read = pd.read_csv(path, dtype={name: wanted[name].dtype for name in wanted})
    pd.testing.assert_frame_equal(read, wanted)
    typed = "select x, cast(dab as float) dab from read_csv(?)"
    found = duckdb.execute(typed, [str(path)]).fetchnumpy()
    assert np.array_equal(found["dab"], wanted["dab"].to_numpy())
    assert np.array_equal(found["x"], wanted["x"].to_numpy())


def test_lines_follow_rfc_4180(tmp_path: Path) -> None:
    table = pa.table(
        {"a": ["plain", 'with "quotes"', "with, comma", "two\nlines", None, "é 😐"], "b": [1.5, 2, 3, 4, 5, 6]}
    )
    write_csv(tmp_path / "a.csv", ["a", "b"], [table, table.slice(0, 1)])
    text = (tmp_path / "a.csv").read_bytes().decode("utf-8")
    assert text.startswith('a,b\r\nplain,1.5\r\n"with ""quotes""",2\r\n"with, comma",3\r\n"two\nlines",4\r\n,5\r\n')
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        read = list(plain.reader(file))
    assert [row[0] for row in read[1:]] == ["plain", 'with "quotes"', "with, comma", "two\nlines", "", "é 😐", "plain"]


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "\r=1", "＝1"])
def test_formulas_are_escaped(text: str) -> None:
    assert text_column(pa.chunked_array([[text]])) == [f"'{text}"]
    assert text_column(pa.chunked_array([[[text, "b"]]], pa.list_(pa.string())))[0].startswith("'")


def test_labels_and_numbers_are_not_escaped() -> None:
    assert text_column(pa.chunked_array([["+", "-", "1+", "0"]])) == ["+", "-", "1+", "0"]
    assert text_column(pa.chunked_array([[-0.5, 0.1]], pa.float32())) == ["-0.5", "0.1"]
    assert text_column(pa.chunked_array([[-3]], pa.int32())) == ["-3"]


def test_lists_that_start_with_a_sign_are_escaped() -> None:
    assert text_column(pa.chunked_array([[["-", "x"]]])) == ["'-;x"]
    assert text_column(pa.chunked_array([[[-0.5, 0.25]]], pa.list_(pa.float16()))) == ["-0.5;0.25"]


def test_lists_are_joined_and_nulls_are_empty() -> None:
    table = pa.table({
        "classes": pa.array([["0", "1+"], [], None, [None, "3+"]], pa.list_(pa.string())),
        "review": pa.array([True, False, None, True]),
    })  # fmt: skip
    assert list(text_rows(table)) == [("0;1+", "true"), ("", "false"), (None, None), (";3+", "true")]


def test_embeddings_read_back_exactly(tmp_path: Path) -> None:
    table = make_stored_cohort(tmp_path, "S1").read("embeddings/stain", "S1")
    texts = text_column(table["embedding"])
    back = np.array([[float(value) for value in text.split(";")] for text in texts], np.float16)
    assert np.array_equal(back, np.stack(table["embedding"].to_numpy()))


def test_files_of_a_slide_are_a_table(tmp_path: Path) -> None:
    row = make_stored_cohort(tmp_path, "S1").rows()["S1"]
    found = files_table(row)
    assert found["path"].to_pylist() == [file["path"] for file in row["files"]]
    assert set(found["slide_id"].to_pylist()) == {"S1"}
