"""The cgroups below the workloads: the hot ones by kept fds every tick, the cold ones in turns.

A workload's own files already sum up everything below it, so these samples only name who, never how much.
A kept fd that was once read costs the kernel about 6 kB, hence a budget (10 000 cgroups would take 230 MB).
"""

from __future__ import annotations

from qosd import cgroupfs
from qosd.config import Sense
from qosd.discover import Below, Caps, is_within, walk
from qosd.errors import CgroupGone, Malformed
from qosd.model import CgroupId, CgroupSample
from qosd.sys import DIRECTORY, Sys
from qosd.watch import BelowFiles, close_cgroup, keep_below, read_kept, read_once

FILES = len(BelowFiles._fields)


class Hot:
    __slots__ = ("below", "files", "last")

    def __init__(self, below: Below, files: BelowFiles) -> None:
        self.below = below
        self.files = files
        self.last: CgroupSample | None = None

    def sample(self, unknown: dict[str, str]) -> CgroupSample:
        """The very object of the last tick when nothing moved. Raises `CgroupGone`.

        Most of a tick is this on a host with many cgroups, hence without a call that it can do without.
        """
        cpu_stat, memory_current = self.files
        last = self.last
        try:
            cpu = cpu_stat.read() if cpu_stat is not None else None
            memory = memory_current.read() if memory_current is not None else None
        except (OSError, Malformed):
            cpu = read_kept(cpu_stat, self.below.path, unknown)
            memory = read_kept(memory_current, self.below.path, unknown)
        if last is None or cpu is not last.cpu or memory is not last.memory_current:
            self.last = last = CgroupSample(self.below.id, self.below.path, cpu, memory)
        return last


class Descendants:
    def __init__(self, sys: Sys, root_fd: int, sense: Sense) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._sense = sense
        self._hot: dict[CgroupId, Hot] = {}
        self._cold: list[Below] = []
        self._turn = 0
        self.cut: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._hot) + len(self._cold)

    def rescan(self, dir_fd: int, path: str, fd_budget: int) -> None:
        """Walk one workload again: keep what is still there, open what is new while the budget lasts."""
        known = len(self)
        tree = walk(
            self._sys, dir_fd, path, Caps(max(self._sense.max_cgroups - known, 0), self._sense.max_depth)
        )
        self._note_cut(path, tree.cut)
        present = {below.id: below for below in tree.below}
        for hot in [hot for hot in self._hot.values() if is_within(hot.below.path, path)]:
            if hot.below.id not in present:
                self._drop(hot)
        self._cold = [below for below in self._cold if not is_within(below.path, path)]
        for below in tree.below:
            if below.id not in self._hot and not self._warm(below, fd_budget):
                self._cold.append(below)

    def forget(self, path: str) -> None:
        """A workload is gone, and all below it."""
        self.cut.pop(path, None)
        for hot in [hot for hot in self._hot.values() if is_within(hot.below.path, path)]:
            self._drop(hot)
        self._cold = [below for below in self._cold if not is_within(below.path, path)]

    def sample(self, unknown: dict[str, str]) -> tuple[tuple[CgroupSample, ...], bool]:
        """Samples of this tick, and whether some cgroup was found gone (so that a rescan is due)."""
        samples: list[CgroupSample] = []
        gone: list[Hot] = []
        for hot in self._hot.values():
            try:
                samples.append(hot.sample(unknown))
            except CgroupGone:
                gone.append(hot)
        for hot in gone:
            self._drop(hot)
        samples += self._sample_cold()
        return tuple(samples), bool(gone)

    def close(self) -> None:
        for hot in list(self._hot.values()):
            self._drop(hot)
        self._cold = []

    def _sample_cold(self) -> list[CgroupSample]:
        if not self._cold:
            return []
        share = -(-len(self._cold) // self._sense.cold_ticks)
        start = self._turn * share
        self._turn = 0 if start + share >= len(self._cold) else self._turn + 1
        samples = (self._read_cold(below) for below in self._cold[start : start + share])
        return [sample for sample in samples if sample is not None]

    def _read_cold(self, below: Below) -> CgroupSample | None:
        try:
            fd = self._sys.open(below.path, DIRECTORY, dir_fd=self._root_fd)
        except OSError:
            return None
        try:
            if self._sys.fstat(fd).st_ino != below.id:
                return None
            return CgroupSample(
                below.id,
                below.path,
                read_once(self._sys, fd, "cpu.stat", cgroupfs.parse_cpu_stat),
                read_once(self._sys, fd, "memory.current", cgroupfs.parse_memory_current),
            )
        finally:
            self._sys.close(fd)

    def _warm(self, below: Below, fd_budget: int) -> bool:
        if (len(self._hot) + 1) * FILES > fd_budget:
            return False
        try:
            fd = self._sys.open(below.path, DIRECTORY, dir_fd=self._root_fd)
        except OSError:
            return False
        try:
            if self._sys.fstat(fd).st_ino == below.id:
                self._hot[below.id] = Hot(below, keep_below(self._sys, fd))
        finally:
            self._sys.close(fd)
        return True

    def _drop(self, hot: Hot) -> None:
        close_cgroup(self._sys, hot.files)
        del self._hot[hot.below.id]

    def _note_cut(self, path: str, cut: str | None) -> None:
        if cut is None:
            self.cut.pop(path, None)
        else:
            self.cut[path] = cut
