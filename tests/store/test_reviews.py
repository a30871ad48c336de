"""Tests of reviews: a chain that only grows; every change is found; erased reviews leave it intact."""

import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pytest

from her2batch.errors import InputError
from her2batch.files.parquet import read_parquet, write_parquet
from her2batch.store import reviews, schemas
from her2batch.store.audit import verify_cohort
from her2batch.store.cohort import Cohort, write_row
from her2batch.store.erase import erase, files_naming
from her2batch.store.pseudonyms import Pseudonymizer
from her2batch.store.reviews import Review

SLIDES = ("S1", "S2", "S3")


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Three slides of two patients, as rows alone."""
    from her2batch.settings import Plan

    made = Cohort(tmp_path / "c")
    made.create(Plan())
    for slide_id, patient in zip(SLIDES, ("P1", "P1", "P2"), strict=True):
        row = dict.fromkeys(schemas.table_schema("slides").names) | {"slide_id": slide_id, "patient_id": patient}
        write_row(made, {**row, "path": f"/scans/{slide_id}.svs", "status": "done", "files": []})
    return made


def agreeing(slide_id: str = "S1", **more: str | None) -> Review:
    review = Review("Dr. Who", slide_id, "membrane", "her2-4way", "membrane", "1+", "agree", "1+")
    return replace(review, **more)


def chain_problems(cohort: Cohort) -> list[str]:
    return [one.message for one in verify_cohort(cohort)]


def test_each_review_follows_the_one_before(cohort: Cohort) -> None:
    first = reviews.append_review(cohort, agreeing())
    second = reviews.append_review(cohort, agreeing("S2", verdict="change", label="2+", comment=" rim only "))
    assert (first["number"], first["previous_sha256"]) == (1, "0" * 64)
    assert (second["number"], second["previous_sha256"], second["comment"]) == (2, first["sha256"], "rim only")
    assert reviews.read_reviews(cohort) == [first, second]
    assert reviews.chain_head(cohort) == (2, second["sha256"])
    assert chain_problems(cohort) == []


def test_duckdb_reads_reviews_as_one_table(cohort: Cohort) -> None:
    import duckdb

    for slide_id in SLIDES:
        reviews.append_review(cohort, agreeing(slide_id))
    place = reviews.reviews_folder(cohort) / "*.parquet"
    assert duckdb.sql(f"select slide_id, label from '{place}' order by number").fetchall() == [
        (one, "1+") for one in SLIDES
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"verdict": "agree", "label": "2+"},
        {"verdict": "change", "label": "1+"},
        {"verdict": "change", "label": "4+"},
        {"verdict": "needs-ish", "label": "2+"},
        {"verdict": "perhaps"},
        {"task": "ki67"},
        {"task": "er", "predicted": "positive", "verdict": "needs-ish", "label": None},
        {"reviewer": "  "},
        {"comment": "x" * 2001},
        {"slide_id": "S9"},
    ],
)
def test_an_invalid_review_is_refused(cohort: Cohort, more: dict[str, str | None]) -> None:
    with pytest.raises(InputError):
        reviews.append_review(cohort, agreeing(**more))
    assert reviews.read_reviews(cohort) == []


def test_a_verdict_on_a_task_of_the_users_own_is_one_of_its_classes_or_a_number(cohort: Cohort) -> None:
    index = agreeing(task="ki67", bundle="cells", method="cells", predicted="38.8", verdict="change", label="30")
    for label, classes in (("high", ()), ("-3", ()), ("", ()), ("30", ("low", "high"))):
        with pytest.raises(InputError, match=r"is no number|is not a class"):
            reviews.append_review(cohort, replace(index, label=label), classes)
    assert reviews.append_review(cohort, index, ())["label"] == "30"
    grade = replace(index, task="grade", predicted="low", label="high")
    assert reviews.append_review(cohort, grade, ("low", "high"))["number"] == 2
    assert chain_problems(cohort) == []


def _many(root: Path, count: int) -> None:
    for _ in range(count):
        reviews.append_review(Cohort(root), agreeing())


def test_parallel_writers_do_not_fork_the_chain(cohort: Cohort) -> None:
    with ThreadPoolExecutor(2) as pool:
        workers = [get_context("spawn").Process(target=_many, args=(cohort.root, 8)) for _ in range(2)]
        for one in workers:
            one.start()
        list(pool.map(lambda _: _many(cohort.root, 6), range(2)))
        for one in workers:
            one.join()
    assert [one["number"] for one in reviews.read_reviews(cohort)] == list(range(1, 29))
    assert chain_problems(cohort) == []


KILLED = """
import os, sys
from pathlib import Path
from her2batch.store import reviews
from her2batch.store.cohort import Cohort
from tests.store.test_reviews import agreeing
calls, fatal, kill = [0], int(sys.argv[2]), os.kill

def counting(real):
    def call(*args, **more):
        calls[0] += 1
        if calls[0] == fatal:
            kill(os.getpid(), 9)
        return real(*args, **more)
    return call

for name in ("fsync", "replace", "unlink", "open"):
    setattr(os, name, counting(getattr(os, name)))
reviews.append_review(Cohort(Path(sys.argv[1])), agreeing("S2"))
"""


@pytest.mark.slow
def test_a_review_is_complete_or_absent_after_a_kill(cohort: Cohort) -> None:
    reviews.append_review(cohort, agreeing())
    for fatal in range(1, 20):
        before = len(reviews.read_reviews(cohort))
        command = [sys.executable, "-c", KILLED, str(cohort.root), str(fatal)]
        ended = subprocess.run(command, cwd=Path(__file__).parents[2], env=dict(os.environ), check=False)
        assert len(reviews.read_reviews(cohort)) - before in (0, 1)
        assert chain_problems(cohort) == []
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
    assert fatal > 3
    assert reviews.append_review(cohort, agreeing())["number"] == len(reviews.read_reviews(cohort))


def changed(cohort: Cohort, place: int, **more: object) -> None:
    path = reviews.reviews_folder(cohort) / f"{place:08d}.parquet"
    entry = read_parquet(path).to_pylist()[0] | more
    write_parquet(pa.Table.from_pylist([entry], schemas.table_schema("reviews")), path)


def test_verify_finds_every_change_of_a_review(cohort: Cohort) -> None:
    for slide_id in SLIDES:
        reviews.append_review(cohort, agreeing(slide_id))
    shutil.copytree(reviews.reviews_folder(cohort), cohort.root / "kept")

    def restored() -> None:
        shutil.rmtree(reviews.reviews_folder(cohort))
        shutil.copytree(cohort.root / "kept", reviews.reviews_folder(cohort))

    changed(cohort, 2, label="3+")
    assert chain_problems(cohort) == ["its content was changed after it was written"]
    restored()
    changed(cohort, 2, sha256="1" * 64)
    assert chain_problems(cohort)[0] == "its hash is not that of its content"
    restored()
    (reviews.reviews_folder(cohort) / "00000002.parquet").unlink()
    assert chain_problems(cohort) == ["review 2 is missing before it"]
    restored()
    (reviews.reviews_folder(cohort) / "00000002.parquet").write_bytes(b"PAR1")
    assert chain_problems(cohort)[0].startswith("can't be read as Parquet")
    restored()
    second = read_parquet(reviews.reviews_folder(cohort) / "00000002.parquet").to_pylist()[0]
    forged = reviews._chained(
        2, second["previous_sha256"], {name: second[name] for name in reviews.CONTENT} | {"label": "3+"}
    )
    changed(cohort, 2, **forged)
    assert chain_problems(cohort) == ["does not follow the review before it: the chain is broken here"]


def test_erased_reviews_are_empty_and_the_chain_is_intact(cohort: Cohort) -> None:
    reviews.append_review(cohort, agreeing("S1", comment="secret"))
    reviews.append_review(cohort, agreeing("S3", comment="as in S2"))
    last = reviews.append_review(cohort, agreeing("S3"))
    found = erase(cohort, "P1", Pseudonymizer())
    assert (found.reviews, found.left) == ([1, 2], [])
    entries = reviews.read_reviews(cohort)
    assert [one["slide_id"] for one in entries] == [None, None, "S3"]
    assert {name for name, value in entries[0].items() if value is not None} == {"number", *reviews.HASHES}
    assert entries[2] == last
    assert list(files_naming(cohort.root, {"S1", "P1", "secret", "S2"})) == []
    assert chain_problems(cohort) == []
    assert reviews.append_review(cohort, agreeing("S3"))["number"] == 4
    assert chain_problems(cohort) == []


def test_the_newest_review_of_a_slide_counts(cohort: Cohort) -> None:
    for label in ("2+", "3+"):
        reviews.append_review(cohort, agreeing(verdict="change", label=label))
    reviews.append_review(cohort, agreeing("S2", verdict="needs-ish", label=None))
    reviews.erase_reviews(cohort, {"S2"}, re.compile(b"S2"))
    found = reviews.newest_reviews(reviews.read_reviews(cohort))
    assert {key: one["label"] for key, one in found.items()} == {("S1", "her2"): "3+"}


def test_an_author_supersedes_an_own_entry_with_a_reason_and_the_chain_keeps_both(cohort: Cohort) -> None:
    wrong = reviews.append_review(cohort, agreeing(verdict="change", label="0"))
    right = reviews.append_review(cohort, agreeing(comment="wrong key", supersedes=wrong["number"]))
    assert reviews.read_reviews(cohort) == [wrong, right]
    assert reviews.counting_reviews([wrong, right]) == [right]
    assert reviews.newest_reviews([wrong, right]) == {("S1", "her2"): right}
    assert chain_problems(cohort) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"supersedes": 1}, "state the reason"),
        ({"supersedes": 1, "comment": "x", "reviewer": "Dr. No"}, "only its author"),
        ({"supersedes": 1, "comment": "x", "slide_id": "S2"}, "not of this slide"),
        ({"supersedes": 7, "comment": "x"}, "no review 7"),
        ({"supersedes": 2, "comment": "x"}, "superseded already"),
    ],
)
def test_what_may_not_be_superseded_is_refused(cohort: Cohort, more: dict, words: str) -> None:
    for supersedes in (None, None, 2):
        reviews.append_review(cohort, agreeing(comment="x", supersedes=supersedes))
    with pytest.raises(InputError, match=words):
        reviews.append_review(cohort, agreeing(**more))
    assert len(reviews.read_reviews(cohort)) == 3


def test_entries_from_before_entries_could_be_superseded_stay_valid(cohort: Cohort) -> None:
    """Write two entries in the columns of an older release, whose hash does not cover `supersedes`."""
    for slide_id in ("S1", "S2"):
        reviews.append_review(cohort, agreeing(slide_id))
        path = max(reviews.reviews_folder(cohort).glob("*.parquet"))
        write_parquet(read_parquet(path).drop_columns("supersedes"), path)
    assert read_parquet(path).schema == reviews.FIRST_SCHEMA
    assert chain_problems(cohort) == []
    assert [one["supersedes"] for one in reviews.read_reviews(cohort)] == [None, None]
    assert reviews.append_review(cohort, agreeing(comment="wrong slide", supersedes=1))["number"] == 3
    assert chain_problems(cohort) == []
