"""Writes to memory.reclaim, on a worker: the kernel does the work in the writer, for as long as it takes.

It asks in chunks, and looks at the clock and at what was freed between them: the classic LRU takes up to half
as much again as it is asked for. EAGAIN means that less was there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import msgspec

from qosd.errors import CgroupGone
from qosd.memory.look import look, read_stat
from qosd.memory.parts import Target
from qosd.memory.reclaim import Reclaim
from qosd.memsample import MemoryStat, Part, Reclaimed
from qosd.model import CgroupId
from qosd.schema.memory import Reclaiming
from qosd.sys import Sys, open_same_cgroup, write_interface
from qosd.worker import Worker

FILE = "memory.reclaim"
_GONE = frozenset({errno.ENODEV, errno.ENOENT})


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What came of a request to one cgroup."""

    result: str
    asked: int = 0
    freed: int = 0
    error: str | None = None


class Reclaimer:
    """`start` what was decided, `collect` what came of it."""

    def __init__(self, sys: Sys, root_fd: int, section: Reclaiming, page_bytes: int) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._page_bytes = page_bytes
        self.section = section
        self._unstarted: list[Reclaimed] = []
        self.worker = Worker[Reclaim, Reclaimed](
            "qosd-reclaim", self._run, sys.monotonic_ns, int(section.deadline)
        )

    def reconfigure(self, section: Reclaiming) -> None:
        self.section = section
        self.worker.deadline_usec = int(section.deadline)

    def start(self, reclaims: tuple[Reclaim, ...], may: Callable[[str], bool] | None) -> None:
        """Hand over to the worker what may be done; without a `may`, as in observe mode, nothing is."""
        for reclaim in reclaims:
            if may is None:
                self._say(reclaim, "not-run")
            elif not may(reclaim.path):
                self._say(reclaim, "refused", "it is or contains a protected cgroup")
            elif self.worker.submit(reclaim.cgroup_id, reclaim) is None:
                self._say(reclaim, "busy", "an earlier request has not come back")

    def collect(self) -> tuple[Reclaimed, ...]:
        unstarted, self._unstarted = self._unstarted, []
        return (*unstarted, *(result for _, result in self.worker.collect()))

    def close(self) -> None:
        self.worker.close()

    def _say(self, reclaim: Reclaim, result: str, error: str | None = None) -> None:
        self._unstarted.append(Reclaimed(reclaim.cgroup_id, result, error=error))

    def _run(self, reclaim: Reclaim) -> Reclaimed:
        begun_usec = self._now_usec()
        try:
            dir_fd = open_same_cgroup(self._sys, self._root_fd, reclaim.path, reclaim.cgroup_id)
        except CgroupGone:
            return Reclaimed(reclaim.cgroup_id, "gone", error="the cgroup was removed")
        except OSError as error:
            return Reclaimed(reclaim.cgroup_id, "failed", error=error.strerror)
        try:
            asked = {target.id: self._take(target, reclaim, begun_usec) for target in reclaim.targets}
            stat = read_stat(self._sys, dir_fd)
            seen = look(self._sys, dir_fd, reclaim.path, reclaim.cgroup_id)
            stat_usec = self._now_usec()
        finally:
            self._sys.close(dir_fd)
        return Reclaimed(
            CgroupId(reclaim.cgroup_id),
            _overall([outcome.result for outcome in asked.values()]),
            sum(outcome.asked for outcome in asked.values()),
            sum(outcome.freed for outcome in asked.values()),
            stat_usec - begun_usec,
            stat,
            stat_usec if stat is not None else None,
            parts=tuple(_with(part, asked.get(part.id)) for part in seen),
        )

    def _take(self, target: Target, reclaim: Reclaim, begun_usec: int) -> Outcome:
        try:
            dir_fd = open_same_cgroup(self._sys, self._root_fd, target.path, target.id)
        except CgroupGone:
            return Outcome("gone", error="the cgroup was removed")
        except OSError as error:
            return Outcome("failed", error=error.strerror)
        try:
            before = read_stat(self._sys, dir_fd)

            def freed() -> int:
                return self._freed(before, read_stat(self._sys, dir_fd))

            result, asked, error_text = self._ask(dir_fd, reclaim, (target.bytes, freed), begun_usec)
            return Outcome(result, asked, freed(), error_text)
        finally:
            self._sys.close(dir_fd)

    def _ask(
        self, dir_fd: int, reclaim: Reclaim, wanted: tuple[int, Callable[[], int]], begun_usec: int
    ) -> tuple[str, int, str | None]:
        """The result, how many bytes were asked for, and what the kernel said of it."""
        key = "" if reclaim.swappiness is None else f" swappiness={reclaim.swappiness}"
        size, freed = wanted
        asked = 0
        while asked < size and not self.worker.closed and not (asked and freed() >= size):
            if self._now_usec() - begun_usec >= self.section.slice:
                break
            chunk = min(int(self.section.chunk), size - asked)
            try:
                write_interface(self._sys, dir_fd, FILE, f"{chunk}{key}")
            except OSError as error:
                return self._refusal(error, key, asked, chunk)
            asked += chunk
        return "done" if asked else "not-run", asked, None

    def _refusal(self, error: OSError, key: str, asked: int, size: int) -> tuple[str, int, str | None]:
        if error.errno in (errno.EAGAIN, errno.EINTR):
            return "short", asked + size, None
        if error.errno == errno.EINVAL and key:
            return "no-swappiness", 0, None
        if error.errno in _GONE:
            return "absent", asked, f"this cgroup has no {FILE}"
        return "failed", asked, error.strerror or str(error)

    def _freed(self, before: MemoryStat | None, after: MemoryStat | None) -> int:
        """Bytes that reclaim took meanwhile: pgsteal, whoever called for it."""
        if before is None or after is None or before.pgsteal is None or after.pgsteal is None:
            return 0
        return max(after.pgsteal - before.pgsteal, 0) * self._page_bytes

    def _now_usec(self) -> int:
        return self._sys.monotonic_ns() // 1000


def _overall(results: list[str]) -> str:
    """Of a workload: one that could be asked counts for all; the rest is told by the parts."""
    for result in ("no-swappiness", "done", "short"):
        if result in results:
            return result
    return "looked"


def _with(part: Part, outcome: Outcome | None) -> Part:
    if outcome is None:
        return part
    return msgspec.structs.replace(
        part, result=outcome.result, asked=outcome.asked, freed=outcome.freed, error=outcome.error
    )
