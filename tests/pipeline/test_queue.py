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


def todo(name: str, size: int = 1, patient: str | None = None, folder: Path = Path("/scans")) -> SlideJob:
    path = folder / f"{name}.svs"
    return SlideJob(name, SlideFiles(path, (path,), size, 0), None, patient)


def drained(queue: SlideQueue) -> list[str]:
    found = []
    while (one := queue.next_job()) is not None:
        found.append(one.slide_id)
    return found


def test_the_largest_comes_first() -> None:
    assert drained(SlideQueue([todo("a", 1), todo("b", 3), todo("c", 2)])) == ["b", "c", "a"]


def test_urgent_slides_come_before_larger_ones_by_name_stem_or_patient(tmp_path: Path) -> None:
    (tmp_path / "urgent.txt").write_text("a.svs\n\nc\nP7\n")
    queue = SlideQueue(
        [todo("a", 1), todo("b", 9), todo("c", 2), todo("d", 3, "P7")], UrgentList(tmp_path / "urgent.txt")
    )
    assert drained(queue) == ["d", "c", "a", "b"]


def test_a_slide_can_become_urgent_while_the_night_runs(tmp_path: Path) -> None:
    listed = tmp_path / "urgent.txt"
    listed.write_text("")
    queue = SlideQueue([todo("a", 1), todo("b", 9), todo("c", 5)], UrgentList(listed))
    assert queue.next_job() == todo("b", 9)
    listed.write_text("a\n")
    assert drained(queue) == ["a", "c"]
    listed.unlink()  # what it said last holds
    queue.put([todo("a", 1), todo("d", 2)])
    assert drained(queue) == ["a", "d"]


def test_a_folder_can_be_urgent(tmp_path: Path) -> None:
    (tmp_path / "stat").mkdir()
    queue = SlideQueue(
        [todo("a", 9, folder=tmp_path), todo("b", 1, folder=tmp_path / "stat")], UrgentList(tmp_path / "stat")
    )
    assert drained(queue) == ["b", "a"]


def test_a_list_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such list"):
        UrgentList(tmp_path / "urgnet.txt")


def test_nothing_is_begun_after_the_window_and_what_is_left_is_known() -> None:
    clock = [local_now()]
    queue = SlideQueue([todo("a"), todo("b")], until=clock[0] + timedelta(hours=1), clock=lambda: clock[0])
    assert (queue.next_job(), queue.is_exhausted(), len(queue.waiting)) == (todo("a"), False, 1)
    clock[0] += timedelta(hours=1)
    assert (queue.next_job(), queue.is_exhausted()) == (None, True)
    assert queue.waiting == [todo("b")]


def test_a_file_that_changed_takes_the_place_of_what_it_was() -> None:
    queue = SlideQueue([todo("a", 1), todo("b", 2)])
    queue.put([todo("a", 7)])
    assert queue.waiting == [todo("a", 7), todo("b", 2)]


@given(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)), st.integers(0, 23), st.integers(0, 59))
def test_the_next_06_00_is_within_a_day_and_shows_06_00(after: datetime, hour: int, minute: int) -> None:
    start = after.astimezone()
    found = next_occurrence(f"{hour:02d}:{minute:02d}", start)
    assert timedelta(0) < found - start <= timedelta(hours=25)
    assert (found.hour, found.minute) == (hour, minute) or found.utcoffset() != start.utcoffset()
