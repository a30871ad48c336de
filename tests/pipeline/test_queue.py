"""The order in which slides are begun, and the end of the window."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2batch.errors import InputError
from her2batch.pipeline.inventory import SlideJob
from her2batch.pipeline.queue import SlideQueue, UrgentList, local_now, next_occurrence
from her2batch.slides.discover import SlideFiles


def make_job(name: str, size: int = 1, patient: str | None = None, folder: Path = Path("/scans")) -> SlideJob:
    path = folder / f"{name}.svs"
    return SlideJob(name, SlideFiles(path, (path,), size, 0), None, patient)


def drain(queue: SlideQueue) -> list[str]:
    found = []
    while (one := queue.next_job()) is not None:
        found.append(one.slide_id)
    return found


def test_largest_slides_come_first() -> None:
    assert drain(SlideQueue([make_job("a", 1), make_job("b", 3), make_job("c", 2)])) == ["b", "c", "a"]


def test_urgent_slides_come_first_by_name_stem_or_patient(tmp_path: Path) -> None:
    (tmp_path / "urgent.txt").write_text("a.svs\n\nc\nP7\n")
    queue = SlideQueue(
        [make_job("a", 1), make_job("b", 9), make_job("c", 2), make_job("d", 3, "P7")],
        UrgentList(tmp_path / "urgent.txt"),
    )
    assert drain(queue) == ["d", "c", "a", "b"]


def test_slide_can_become_urgent_during_a_run(tmp_path: Path) -> None:
    listed = tmp_path / "urgent.txt"
    listed.write_text("")
    queue = SlideQueue([make_job("a", 1), make_job("b", 9), make_job("c", 5)], UrgentList(listed))
    assert queue.next_job() == make_job("b", 9)
    listed.write_text("a\n")
    assert drain(queue) == ["a", "c"]
    listed.unlink()  # what it said last holds
    queue.put([make_job("a", 1), make_job("d", 2)])
    assert drain(queue) == ["a", "d"]


def test_folder_can_be_urgent(tmp_path: Path) -> None:
    (tmp_path / "stat").mkdir()
    queue = SlideQueue(
        [make_job("a", 9, folder=tmp_path), make_job("b", 1, folder=tmp_path / "stat")], UrgentList(tmp_path / "stat")
    )
    assert drain(queue) == ["b", "a"]


def test_missing_list_of_urgent_slides_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such list"):
        UrgentList(tmp_path / "urgnet.txt")


def test_no_slide_is_begun_after_the_window() -> None:
    clock = [local_now()]
    queue = SlideQueue([make_job("a"), make_job("b")], until=clock[0] + timedelta(hours=1), clock=lambda: clock[0])
    assert (queue.next_job(), queue.is_exhausted(), len(queue.waiting)) == (make_job("a"), False, 1)
    clock[0] += timedelta(hours=1)
    assert (queue.next_job(), queue.is_exhausted()) == (None, True)
    assert queue.waiting == [make_job("b")]


def test_changed_file_replaces_its_older_job() -> None:
    queue = SlideQueue([make_job("a", 1), make_job("b", 2)])
    queue.put([make_job("a", 7)])
    assert queue.waiting == [make_job("a", 7), make_job("b", 2)]


@given(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)), st.integers(0, 23), st.integers(0, 59))
def test_next_occurrence_is_within_a_day_and_at_that_time(after: datetime, hour: int, minute: int) -> None:
    start = after.astimezone()
    found = next_occurrence(f"{hour:02d}:{minute:02d}", start)
    assert timedelta(0) < found - start <= timedelta(hours=25)
    assert (found.hour, found.minute) == (hour, minute) or found.utcoffset() != start.utcoffset()
