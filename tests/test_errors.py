"""Errors: what they print, and how they travel between processes."""

import os
import pickle
from pathlib import Path

import pytest

from her2batch.errors import REMEDIES, HeadLost, InputError, SlideError, StoreError, one_line, printable_path


def test_an_error_prints_file_message_and_remedy() -> None:
    assert str(InputError("can't be read", Path("a.csv"), "give a CSV file")) == "a.csv: can't be read; give a CSV file"
    assert str(InputError("can't be read")) == "can't be read"


def test_a_slide_error_has_the_remedy_of_its_code() -> None:
    error = SlideError("truncated", "a.svs", "ends in the middle of a tile")
    assert (error.code, error.remedy) == ("truncated", REMEDIES["truncated"])
    with pytest.raises(KeyError):
        SlideError("unheard-of", "a.svs", "…")


@pytest.mark.parametrize(("error", "exit_code"), [
    (InputError("x"), 2), (StoreError("x"), 2), (HeadLost("x"), 2), (SlideError("no-mpp", "a.svs", "x"), 3),
])  # fmt: skip
def test_errors_travel_between_processes(error: Exception, exit_code: int) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))
    assert other.exit_code == exit_code


def test_paths_that_are_no_text_stay_different() -> None:
    names = [os.fsdecode(b"a\xff.svs"), r"a\xff.svs", "a.svs", "ä.svs"]
    texts = [printable_path(Path(name)) for name in names]
    assert len(set(texts)) == len(names)
    assert texts[2:] == names[2:]
    assert [text.encode() for text in texts]


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("first\n   second")) == "first second"
