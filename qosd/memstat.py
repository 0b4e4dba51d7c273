"""The memory files of a workload's own cgroup, beyond memory.current: some every tick, memory.stat in turns.

Reading memory.stat flushes rstat over the whole subtree, so it is read once in `stat_interval`, and not of
all workloads in the same tick. The ancestors' protection is read along with it.
"""

from __future__ import annotations

from qosd import cgroupfs
from qosd.memory.protection import file_of
from qosd.memsample import MemorySample, MemoryStat
from qosd.model import MAX, CgroupId, Max, Tier
from qosd.plan import amount
from qosd.schema.memory import Memory
from qosd.sys import Sys, open_cgroup
from qosd.watch import KeptFile, keep, read_kept

_STAT_SIZE = 1 << 14
FILES = 4


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
        self._events = keep(self._sys, self._dir_fd, "memory.events", cgroupfs.parse_memory_events)

    def look_again(self) -> None:
        if None in (self._stat, self._swap_current, self._swap_max, self._events):
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
        label = self._path
        stat, stat_usec = self._last.stat, self._last.stat_usec
        ceiling, ceiling_path = self._last.ceiling, self._last.ceiling_path
        if self._due is None or now_usec >= self._due:
            stat, stat_usec = self._read_stat(now_usec, unknown)
            ceiling, ceiling_path = self._read_ceiling(unknown)
            # The first look is at once, the next after a part of the interval that is its own: its turn.
            self._due = now_usec + (self._interval if self._due is not None else self._phase)
        sample = MemorySample(
            stat,
            stat_usec,
            read_kept(self._swap_current, f"{label}/memory.swap.current", unknown),
            read_kept(self._swap_max, f"{label}/memory.swap.max", unknown),
            read_kept(self._events, f"{label}/memory.events", unknown),
            ceiling,
            ceiling_path,
        )
        if sample != self._last:
            self._last = sample
        return self._last

    def _read_stat(self, now_usec: int, unknown: dict[str, str]) -> tuple[MemoryStat | None, int | None]:
        stat = read_kept(self._stat, f"{self._path}/memory.stat", unknown)
        return stat, now_usec if stat is not None else None

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
        for kept in (self._stat, self._swap_current, self._swap_max, self._events):
            if kept is not None:
                self._sys.close(kept.fd)
