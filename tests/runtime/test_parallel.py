"""Items on workers: every result is returned, an exception concerns its own item, lost items are tried again."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from her2batch.errors import InputError, StoreError
from her2batch.runtime.parallel import RETRIES, map_unordered
from her2batch.runtime.ray_session import RaySession


def square(item: int, device: str) -> int:
    if item < 0:
        raise InputError(f"{item} is negative", None, "give another")
    return item * item


def meet(folder: Path, n: int, item: int, device: str) -> int:
    """Wait until n items have come, and return how many have."""
    (folder / str(item)).touch()
    deadline = time.monotonic() + 30
    while len(list(folder.iterdir())) < n and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(list(folder.iterdir()))


def die_times(folder: Path, times: int, item: int, device: str) -> int:
    """Let the process die `times` times; each leaves a file."""
    marks = len(list(folder.glob(f"{item}-*")))
    if item == 1 and marks < times:
        (folder / f"{item}-{marks}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item, device)


@pytest.mark.parametrize("ray", [False, True])
def test_every_item_is_returned_with_its_result(ray: bool, ray_session: RaySession) -> None:
    found = dict(map_unordered(ray_session if ray else None, square, [1, 2, 3]))
    assert found == {1: 1, 2: 4, 3: 9}


def test_the_last_item_does_not_wait_for_a_free_core(tmp_path: Path, ray_session: RaySession) -> None:
    assert ray_session.workers == 2
    found = dict(map_unordered(ray_session, partial(meet, tmp_path, 3), [0, 1, 2]))
    assert found == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize("ray", [False, True])
def test_exception_of_one_item_does_not_affect_the_others(ray: bool, ray_session: RaySession) -> None:
    found = dict(map_unordered(ray_session if ray else None, square, [1, -2, 3]))
    assert (found[1], found[3]) == (1, 9)
    assert isinstance(found[-2], InputError)
    assert str(found[-2]) == "-2 is negative; give another"


def test_item_whose_worker_dies_is_tried_again(tmp_path: Path, ray_session: RaySession) -> None:
    found = dict(map_unordered(ray_session, partial(die_times, tmp_path, RETRIES), [0, 1, 2]))
    assert found == {0: 0, 1: 1, 2: 4}


@pytest.mark.long
def test_item_that_kills_every_worker_fails(tmp_path: Path, ray_session: RaySession) -> None:
    found = dict(map_unordered(ray_session, partial(die_times, tmp_path, RETRIES + 1), [0, 1, 2]))
    assert (found[0], found[2]) == (0, 4)
    assert isinstance(found[1], StoreError)
    assert len(list(tmp_path.iterdir())) == RETRIES + 1


def test_stop_leaves_the_remaining_items(ray_session: RaySession) -> None:
    done = []
    try:
        for item, _ in map_unordered(ray_session, square, range(100)):
            done.append(item)
            ray_session.stopped.set()
    finally:
        ray_session.stopped.clear()
    assert 0 < len(done) < 100
