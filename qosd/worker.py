"""One thread for what may block: a bounded queue, one job in flight per cgroup, and never a join.

A system call that hangs in the kernel cannot be taken back. So a job that overruns its deadline is given
up: its cgroup stays busy until it does return, another thread goes on with the queue, and after a few of
those nothing is taken any more and the watchdog is not fed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

E = TypeVar("E")
R = TypeVar("R")

_QUEUE = 256
_THREADS = 4


class Job(Generic[E, R]):
    __slots__ = ("begun_usec", "effect", "error", "key", "over", "result")

    def __init__(self, key: int, effect: E) -> None:
        self.key = key
        self.effect = effect
        self.begun_usec: int | None = None
        self.over = False
        self.result: R | None = None
        self.error: BaseException | None = None


class Worker(Generic[E, R]):
    """`run` does one effect and says how it ended; what it raises is a bug, and is raised by `collect`."""

    def __init__(
        self, name: str, run: Callable[[E], R], monotonic_ns: Callable[[], int], deadline_usec: int
    ) -> None:
        self._name = name
        self._run = run
        self._monotonic_ns = monotonic_ns
        self.deadline_usec = deadline_usec
        self._changed = threading.Condition()
        self._queue: deque[Job[E, R]] = deque()
        self._current: Job[E, R] | None = None
        self._done: list[Job[E, R]] = []
        self._busy: dict[int, Job[E, R]] = {}
        self._stuck: list[Job[E, R]] = []
        self._started = False
        self._closed = False

    def submit(self, key: int, effect: E) -> Job[E, R] | None:
        """Queue it; None where an earlier job of this cgroup is not back, or too much waits already."""
        with self._changed:
            if self._closed or key in self._busy or len(self._queue) >= _QUEUE or not self._can_run():
                return None
            self._started = self._started or self._start()
            if not self._started:
                return None
            job = Job[E, R](key, effect)
            self._busy[key] = job
            self._queue.append(job)
            self._changed.notify_all()
            return job

    def collect(self) -> list[tuple[E, R]]:
        """What has ended since the last call; a job that overran its deadline is given up here."""
        now_usec = self._monotonic_ns() // 1000
        with self._changed:
            current = self._current
            if (
                current is not None
                and current.begun_usec is not None
                and now_usec - current.begun_usec > self.deadline_usec
            ):
                self._stuck.append(current)
                self._current = None
                self._started = self._can_run() and self._start()
            done, self._done = self._done, []
        for job in done:
            if job.error is not None:
                raise job.error
        return [(job.effect, job.result) for job in done if job.result is not None]

    def wait(self, job: Job[E, R], seconds: float) -> bool:
        """Whether the job is over, after waiting for it at most so long."""
        with self._changed:
            return self._changed.wait_for(lambda: job.over, seconds)

    def wait_idle(self, seconds: float) -> bool:
        """Whether nothing is queued or under way, after waiting for that at most so long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, seconds)

    def cancel(self, job: Job[E, R]) -> bool:
        """Take it back if it has not begun."""
        with self._changed:
            if job not in self._queue:
                return False
            self._queue.remove(job)
            del self._busy[job.key]
            return True

    @property
    def stuck(self) -> int:
        """Jobs that have overrun their deadline and are not back."""
        with self._changed:
            return len(self._stuck)

    @property
    def alive(self) -> bool:
        """Whether it can still do anything: for the watchdog."""
        with self._changed:
            return self._can_run()

    @property
    def closed(self) -> bool:
        """To be looked at by `run` between two steps."""
        return self._closed

    def close(self) -> None:
        """Take nothing more. What is in the kernel stays there; nobody waits for it."""
        with self._changed:
            self._closed = True
            for job in self._queue:
                self._busy.pop(job.key, None)
            self._queue.clear()
            self._changed.notify_all()

    def _can_run(self) -> bool:
        return len(self._stuck) < _THREADS

    def _start(self) -> bool:
        try:
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        except RuntimeError:
            return False  # no task to be had (TasksMax=, memory): the next submit tries again
        return True

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.result = self._run(job.effect)
            except Exception as error:  # noqa: BLE001 - raised again by collect(), in the thread that can act
                job.error = error
            if not self._finish(job):
                return  # another thread took over when this job was given up

    def _next(self) -> Job[E, R] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            job = self._queue.popleft()
            job.begun_usec = self._monotonic_ns() // 1000
            self._current = job
            return job

    def _finish(self, job: Job[E, R]) -> bool:
        with self._changed:
            job.over = True
            self._done.append(job)
            self._busy.pop(job.key, None)
            in_turn = self._current is job
            if in_turn:
                self._current = None
            else:
                self._stuck.remove(job)
            self._changed.notify_all()
            return in_turn
