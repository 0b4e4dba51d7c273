"""The cgroups below the workloads: a large one's by a walk, else the hot by kept fds, the cold in turns.

A workload's own files already sum up everything below it, so these samples only name who, never how much.
A kept fd that was once read costs the kernel about 6 kB, hence a budget (10 000 cgroups would take 230 MB).
"""

from __future__ import annotations

from qosd import cgroupfs
from qosd.config import Sense
from qosd.discover import Below, Caps, is_within, right_below, walk
from qosd.errors import CgroupGone, Malformed
from qosd.model import CgroupId, CgroupSample
from qosd.sys import DIRECTORY, Sys
from qosd.walked import Walked
from qosd.walks import Walks
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
        self._walked: dict[str, Walked] = {}
        """By the workload's path."""
        self._sizes: dict[str, int] = {}
        """By the same, walked or not: how many cgroups were last found below."""
        self.walks: Walks | None = None
        self.cut: dict[str, str] = {}

    def rescan(self, dir_fd: int, path: str, fd_budget: int) -> None:
        """Look into one workload again: keep what is still there, open what is new while the budget lasts."""
        if path in self._walked:
            return  # a walk sees itself who comes and goes
        tree = walk(self._sys, dir_fd, path, self._caps(path))
        self._sizes[path] = len(tree.below)
        self._note_cut(path, tree.cut)
        if self._walk(dir_fd, path, tree.below):
            return
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
        self._sizes.pop(path, None)
        self._stop_walking(path)
        self._close_files(path)

    def sample(self, unknown: dict[str, str]) -> tuple[tuple[CgroupSample, ...], bool]:
        """Samples of this tick, and whether a rescan is due: some cgroup went, or walks begin or end."""
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
        due = self._sample_walked(samples)
        return tuple(samples), bool(gone) or due

    def close(self) -> None:
        for path in list(self._walked):
            self._stop_walking(path)
        for hot in list(self._hot.values()):
            self._drop(hot)
        self._cold = []

    def _caps(self, path: str) -> Caps:
        """What a workload may have below it: the others have theirs already."""
        elsewhere = sum(size for other, size in self._sizes.items() if other != path)
        return Caps(max(self._sense.max_cgroups - elsewhere, 0), self._sense.max_depth)

    def _walk(self, dir_fd: int, path: str, below: list[Below]) -> bool:
        """Whether this workload is walked from now on, also when it gets smaller: it is cheap then too."""
        if self.walks is None or not self.walks.worth(len(below)):
            return False
        subtree = self.walks.attach(dir_fd)
        if subtree is None:
            return False
        self._walked[path] = Walked(
            subtree, path, below, lambda above: right_below(self._sys, self._root_fd, above)
        )
        self._close_files(path)
        return True

    def _sample_walked(self, samples: list[CgroupSample]) -> bool:
        """Whether the directories must be looked into, as walks can begin or have ended."""
        walks = self.walks
        if walks is None:
            return False
        due = any(walks.worth(size) for path, size in self._sizes.items() if path not in self._walked)
        for path, walked in list(self._walked.items()):
            raw = walks.read(walked.subtree)
            if raw is None:
                del self._walked[path]
                due = True
                continue
            below = walked.sample(raw, self._caps(path))
            self._sizes[path] = len(below)
            self._note_cut(path, walked.cut)
            samples += below
        return due

    def _stop_walking(self, path: str) -> None:
        walked = self._walked.pop(path, None)
        if walked is not None and self.walks is not None:
            self.walks.detach(walked.subtree)

    def _close_files(self, path: str) -> None:
        for hot in [hot for hot in self._hot.values() if is_within(hot.below.path, path)]:
            self._drop(hot)
        self._cold = [below for below in self._cold if not is_within(below.path, path)]

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
