"""The thread for what may block: bounded, one job in flight per cgroup, and never waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from qosd.worker import Worker

LONG = 10.0


class Clock:
    def __init__(self) -> None:
        self.usec = 0

    def __call__(self) -> int:
        return self.usec * 1000


class Doors:
    """Jobs that end when the test lets them."""

    def __init__(self) -> None:
        self.open = {number: threading.Event() for number in range(20)}
        self.entered = {number: threading.Event() for number in range(20)}

    def run(self, number: int) -> int:
        self.entered[number].set()
        assert self.open[number].wait(LONG)
        return number * 10


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def doors() -> Iterator[Doors]:
    doors = Doors()
    yield doors
    for door in doors.open.values():
        door.set()


@pytest.fixture
def worker(clock: Clock, doors: Doors) -> Iterator[Worker[int, int]]:
    worker = Worker[int, int]("test", doors.run, clock, 1_000_000)
    yield worker
    worker.close()


def test_a_job_is_done_elsewhere_and_its_result_is_collected_once(
    worker: Worker[int, int], doors: Doors
) -> None:
    job = worker.submit(1, 7)
    assert job is not None
    assert worker.collect() == []
    doors.open[7].set()
    assert worker.wait(job, LONG)
    assert worker.collect() == [(7, 70)]
    assert worker.collect() == []


def test_a_cgroup_has_one_job_in_flight(worker: Worker[int, int], doors: Doors) -> None:
    job = worker.submit(1, 1)
    assert job is not None
    assert worker.submit(1, 2) is None
    other = worker.submit(2, 3)
    assert other is not None
    doors.open[1].set()
    doors.open[3].set()
    assert worker.wait(job, LONG)
    assert worker.wait(other, LONG)
    assert worker.submit(1, 2) is not None


def test_a_job_that_has_not_begun_can_be_taken_back(worker: Worker[int, int], doors: Doors) -> None:
    running, waiting = worker.submit(1, 1), worker.submit(2, 2)
    assert running is not None
    assert waiting is not None
    assert doors.entered[1].wait(LONG)
    assert worker.cancel(waiting)
    assert not worker.cancel(running)
    assert worker.submit(2, 2) is not None


def test_a_stuck_job_keeps_its_cgroup_busy_and_nobody_else_waits_for_it(
    worker: Worker[int, int], doors: Doors, clock: Clock
) -> None:
    stuck = worker.submit(1, 1)
    assert stuck is not None
    assert doors.entered[1].wait(LONG)
    clock.usec = 1_500_000
    assert worker.collect() == []
    assert worker.stuck == 1
    assert worker.submit(1, 5) is None
    job = worker.submit(2, 2)
    assert job is not None
    doors.open[2].set()
    assert worker.wait(job, LONG)
    assert worker.collect() == [(2, 20)]
    doors.open[1].set()
    assert worker.wait(stuck, LONG)
    assert worker.collect() == [(1, 10)], "it does come back in the end"
    assert worker.stuck == 0
    assert worker.submit(1, 5) is not None


def test_when_all_its_threads_are_stuck_it_says_so_and_takes_nothing(
    worker: Worker[int, int], doors: Doors, clock: Clock
) -> None:
    for number in range(4):
        assert worker.alive
        assert worker.submit(number, number) is not None
        assert doors.entered[number].wait(LONG)
        clock.usec += 1_500_000
        worker.collect()
    assert not worker.alive
    assert worker.submit(9, 9) is None


def test_a_bug_in_a_job_is_raised_where_something_can_be_done_about_it(clock: Clock) -> None:
    def bug(number: int) -> int:
        raise ZeroDivisionError(number)

    worker = Worker[int, int]("test", bug, clock, 1_000_000)
    job = worker.submit(1, 1)
    assert job is not None
    assert worker.wait(job, LONG)
    with pytest.raises(ZeroDivisionError):
        worker.collect()
    worker.close()


def test_closing_waits_for_nobody(worker: Worker[int, int], doors: Doors) -> None:
    running, waiting = worker.submit(1, 1), worker.submit(2, 2)
    assert running is not None
    assert waiting is not None
    assert doors.entered[1].wait(LONG)
    worker.close()
    assert worker.closed
    assert worker.submit(3, 3) is None
    doors.open[1].set()
    assert worker.wait(running, LONG)
    assert not doors.entered[2].is_set()


def test_without_a_thread_to_be_had_nothing_is_taken_and_later_it_is(
    worker: Worker[int, int], doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TasksMax= or memory is used up: that must not end the tick."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert worker.submit(1, 1) is None
    job = worker.submit(1, 1)
    assert job is not None
    doors.open[1].set()
    assert worker.wait(job, LONG)
