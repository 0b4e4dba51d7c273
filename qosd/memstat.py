"""The memory files of a workload's own cgroup, beyond memory.current: in turns.

Reading memory.stat flushes rstat over the whole subtree, so it is read once in `stat_interval`, and not of
all workloads in the same tick. The rest is read along with it.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from qosd import cgroupfs
from qosd.memory.protection import file_of
from qosd.memsample import MemorySample
from qosd.model import MAX, CgroupId, Max, Tier
from qosd.plan import amount
from qosd.schema.memory import Limit, Memory
from qosd.sys import Sys, open_cgroup
from qosd.watch import KeptFile, keep, read_kept

T = TypeVar("T")

_STAT_SIZE = 1 << 14
FILES = 3


class Ancestor:
    __slots__ = ("file", "path")

    def __init__(self, path: str, file: KeptFile[int | Max]) -> None:
        self.path = path
        self.file = file


class MemoryFiles:
    """Kept open beside the workload's other files; what is not there yet is looked for again."""

    def __init__(
        self, sys: Sys, fds: tuple[int, int], path: str, cgroup_id: CgroupId, tier: Tier, memory: Memory
    ) -> None:
        self._sys = sys
        self._root_fd, self._dir_fd = fds
        self._path = path
        self._interval = int(memory.stat_interval)
        self._phase = cgroup_id * 7919 % self._interval
        self._due: int | None = None
        # Limits follow swap as it fills; for all else it is time enough to look when memory.stat is read.
        self._follows_swap = tier is Tier.BE and memory.limits.enforce is Limit.HIGH
        self._protection = file_of(memory.protection) if tier is Tier.LS else None
        self._last = MemorySample()
        self._open()
        self._ancestors = self._open_ancestors()

    def _open(self) -> None:
        self._stat = keep(self._sys, self._dir_fd, "memory.stat", cgroupfs.parse_memory_stat, _STAT_SIZE)
        self._swap_current = keep(
            self._sys,
            self._dir_fd,
            "memory.swap.current",
            lambda raw: cgroupfs.parse_count(raw, "memory.swap.current"),
        )
        self._swap_max = keep(
            self._sys,
            self._dir_fd,
            "memory.swap.max",
            lambda raw: cgroupfs.parse_limit(raw, "memory.swap.max"),
        )

    def look_again(self) -> None:
        if None in (self._stat, self._swap_current, self._swap_max):
            self._close_own()
            self._open()
        for ancestor in self._ancestors:
            self._sys.close(ancestor.file.fd)
        self._ancestors = self._open_ancestors()

    def fds(self) -> int:
        return FILES + len(self._ancestors)

    def close(self) -> None:
        self._close_own()
        for ancestor in self._ancestors:
            self._sys.close(ancestor.file.fd)
        self._ancestors = []

    def sample(self, now_usec: int, unknown: dict[str, str]) -> MemorySample:
        """Raises `CgroupGone`. The very object of the last tick when nothing moved."""
        if self._due is None or now_usec >= self._due:
            # The first look is at once, the next after a part of the interval that is its own: its turn.
            self._due = now_usec + (self._interval if self._due is not None else self._phase)
            self._last = self._read_all(now_usec, unknown)
        elif self._follows_swap:
            swapped = self._read(self._swap_current, "memory.swap.current", unknown)
            if swapped != self._last.swap_current:
                self._last = msgspec.structs.replace(self._last, swap_current=swapped)
        return self._last

    def _read_all(self, now_usec: int, unknown: dict[str, str]) -> MemorySample:
        stat = self._read(self._stat, "memory.stat", unknown)
        return MemorySample(
            stat,
            now_usec if stat is not None else None,
            self._read(self._swap_current, "memory.swap.current", unknown),
            self._read(self._swap_max, "memory.swap.max", unknown),
            *self._read_ceiling(unknown),
        )

    def _read(self, kept: KeptFile[T] | None, file: str, unknown: dict[str, str]) -> T | None:
        return read_kept(kept, f"{self._path}/{file}", unknown)

    def _read_ceiling(self, unknown: dict[str, str]) -> tuple[int | Max | None, str | None]:
        """The least protection on the way up; an ancestor that cannot be read is taken to have none."""
        if not self._ancestors:
            return None, None
        lowest: tuple[int | Max, str] = (MAX, self._ancestors[0].path)
        for ancestor in self._ancestors:
            value = read_kept(ancestor.file, f"{ancestor.path}/{self._protection}", unknown)
            if amount(value if value is not None else 0) < amount(lowest[0]):
                lowest = (value if value is not None else 0, ancestor.path)
        return lowest

    def _open_ancestors(self) -> list[Ancestor]:
        """The cgroups between the root, which has no protection and needs none, and the workload."""
        file = self._protection
        if file is None:
            return []
        parts = self._path.split("/")
        found = []
        for count in range(1, len(parts)):
            path = "/".join(parts[:count])
            try:
                fd = open_cgroup(self._sys, self._root_fd, path)
            except OSError:
                continue
            kept = keep(self._sys, fd, file, lambda raw: cgroupfs.parse_limit(raw, file))
            self._sys.close(fd)
            if kept is not None:
                found.append(Ancestor(path, kept))
        return found

    def _close_own(self) -> None:
        for kept in (self._stat, self._swap_current, self._swap_max):
            if kept is not None:
                self._sys.close(kept.fd)
