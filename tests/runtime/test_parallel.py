"""Items over workers: every result comes back, an item's fault is its own, a dead worker's item is tried again."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from her2batch.errors import InputError, StoreError
from her2batch.runtime.parallel import RETRIES, map_unordered
from her2batch.runtime.ray_session import RaySession


def squared(item: int, device: str) -> int:
    if item < 0:
        raise InputError(f"{item} is negative", None, "give another")
    return item * item


def dying(folder: Path, times: int, item: int, device: str) -> int:
    """Dies so many times, each leaving a mark."""
    marks = len(list(folder.glob(f"{item}-*")))
    if item == 1 and marks < times:
        (folder / f"{item}-{marks}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return squared(item, device)


@pytest.mark.parametrize("ray", [False, True])
def test_every_item_comes_back_with_its_result(ray: bool, ray_session: RaySession) -> None:
    found = dict(map_unordered(ray_session if ray else None, squared, [1, 2, 3]))
    assert found == {1: 1, 2: 4, 3: 9}


@pytest.mark.parametrize("ray", [False, True])
def test_an_items_fault_is_its_own(ray: bool, ray_session: RaySession) -> None:
    found = dict(map_unordered(ray_session if ray else None, squared, [1, -2, 3]))
    assert (found[1], found[3]) == (1, 9)
    assert isinstance(found[-2], InputError)
    assert str(found[-2]) == "-2 is negative; give another"


def test_an_item_whose_worker_dies_is_tried_again(tmp_path: Path, ray_session: RaySession) -> None:
    found = dict(map_unordered(ray_session, partial(dying, tmp_path, RETRIES), [0, 1, 2]))
    assert found == {0: 0, 1: 1, 2: 4}


def test_an_item_that_kills_every_worker_is_given_up(tmp_path: Path, ray_session: RaySession) -> None:
    found = dict(map_unordered(ray_session, partial(dying, tmp_path, RETRIES + 1), [0, 1, 2]))
    assert (found[0], found[2]) == (0, 4)
    assert isinstance(found[1], StoreError)
    assert len(list(tmp_path.iterdir())) == RETRIES + 1


def test_a_stop_leaves_the_rest(ray_session: RaySession) -> None:
    done = []
    try:
        for item, _ in map_unordered(ray_session, squared, range(100)):
            done.append(item)
            ray_session.stopped.set()
    finally:
        ray_session.stopped.clear()
    assert 0 < len(done) < 100
