"""What LS and BE did in the moments before a breach: read on the spot, against what the last ticks read.

A tick may be a second ago or a millisecond; the signal of the breach looks back over a window of its own. So
a few snapshots are kept, and the evidence is taken since the latest of them that is older than the window.
"""

from __future__ import annotations

from collections import deque

import msgspec

from qosd import cgroupfs
from qosd.errors import CgroupGone, Malformed
from qosd.model import Breach, CgroupId, CgroupSample, CpuStat, Snapshot, Tier, Workload
from qosd.sys import Sys, open_cgroup, open_same_cgroup, read_interface

CPU_PRESSURE = "cpu.pressure some"
_TICKS = 16  # those below that are read in turns (sense.cold_ticks) are in one of them
_LIMITED = 64  # cgroups with a cpu.max of their own, or new ones, below an LS workload that are asked
_WALKED = 256  # directories below it that are looked into for new ones
_PERIOD_USEC = 100_000  # of a cpu.max, by default and at systemd's choice
_PATIENCE_USEC = 5_000_000  # reports further apart are of two different incidents
_NOTHING = CpuStat(0, 0, 0)


class Witness:
    def __init__(self, sys: Sys, root_fd: int) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._seen: deque[Snapshot] = deque(maxlen=_TICKS)
        self._reports: dict[CgroupId, tuple[int, int]] = {}
        """By victim, the first and the last report of those that came without a pause."""

    def note(self, now: Snapshot) -> None:
        self._seen.append(now)
        here = {workload.id for workload in now.workloads}
        self._reports = {victim: times for victim, times in self._reports.items() if victim in here}

    def forget(self) -> None:
        """After a gap that no monotonic clock counted."""
        self._seen.clear()

    def testify(self, event: Breach, *, cut_idle: bool) -> Breach:
        """The event with its evidence; None where the files cannot say."""
        since = self._since(event.at_usec - event.window_usec)
        if since is None:
            return event
        return msgspec.structs.replace(
            event,
            throttled_usec=self._throttled_usec(event, since),
            be_cores=self._be_cores(
                event.at_usec - since.monotonic_usec, _suspects(event, since, cut_idle=cut_idle)
            ),
        )

    def _since(self, usec: int) -> Snapshot | None:
        older = [snapshot for snapshot in self._seen if snapshot.monotonic_usec <= usec]
        return older[-1] if older else next(iter(self._seen), None)

    def _throttled_usec(self, event: Breach, since: Snapshot) -> int | None:
        """How long the victim or one below it was held by its cpu.max; a group's file has its own only.

        The longest, not the sum: they are held at the same time. None while it cannot be known.
        """
        victim = since.workload(event.victim)
        if victim is None:
            return None
        below = self._known(victim.path + "/", since)
        new = self._newcomers(victim, set(below))
        limited = [each for each in below.values() if each.cpu is not None and each.cpu.nr_periods]
        longest, settled = 0, True
        for before in (victim.sample, *limited[:_LIMITED], *new):
            now = self._read(before)
            if before.cpu is None or now is None:
                return None
            longest = max(longest, (now.throttled_usec or 0) - (before.cpu.throttled_usec or 0))
            settled = settled and not self._is_between_periods(before, before.cpu, now)
        doubtful = bool(new or limited or (victim.sample.cpu is not None and victim.sample.cpu.nr_periods))
        proven = self._lasts(event)
        return longest if longest or (proven and settled) or not doubtful else None

    def _is_between_periods(self, sample: CgroupSample, before: CpuStat, now: CpuStat) -> bool:
        """Whether it has a limit and ran, and no period has ended since: it may be held and not show it yet.

        A period ends when its timer fires (sched_cfs_period_timer()), and a busy hypervisor makes that late.
        """
        if now.usage_usec <= before.usage_usec or (now.nr_periods or 0) > (before.nr_periods or 0):
            return False
        try:
            return not self._file(sample, "cpu.max").startswith(b"max")
        except (OSError, CgroupGone):
            return False

    def _known(self, prefix: str, since: Snapshot) -> dict[CgroupId, CgroupSample]:
        """What the ticks saw below a workload, each as it was last seen before the evidence begins."""
        known: dict[CgroupId, CgroupSample] = {}
        for snapshot in self._seen:
            before = snapshot.monotonic_usec <= since.monotonic_usec
            for each in snapshot.descendants:
                if each.path.startswith(prefix) and (before or each.id not in known):
                    known[each.id] = each
        return known

    def _lasts(self, event: Breach) -> bool:
        """Whether the victim's reports have gone on for a period of its limit.

        The kernel adds to throttled_usec when it lets a group run again (unthrottle_cfs_rq()), so at its
        first report a group that is held has nothing to show for it yet.
        """
        first, last = self._reports.get(event.victim, (event.at_usec, event.at_usec))
        if event.at_usec - last > _PATIENCE_USEC:
            first = event.at_usec
        self._reports[event.victim] = (first, event.at_usec)
        return event.at_usec - first >= _PERIOD_USEC

    def _newcomers(self, victim: Workload, known: set[CgroupId]) -> list[CgroupSample]:
        """Cgroups below it that no tick has seen yet: whatever they were held is new."""
        try:
            stat = cgroupfs.parse_flat_keyed(self._file(victim.sample, "cgroup.stat"), "cgroup.stat")
            if stat.get(b"nr_descendants") == len(known):
                return []
            return self._walk(victim.path, known)
        except (OSError, CgroupGone, Malformed):
            return []

    def _walk(self, path: str, known: set[CgroupId]) -> list[CgroupSample]:
        new: list[CgroupSample] = []
        paths = deque([path])
        for _ in range(_WALKED):
            if not paths or len(new) >= _LIMITED:
                break
            above = paths.popleft()
            fd = open_cgroup(self._sys, self._root_fd, above)
            try:
                with self._sys.scandir(fd) as entries:
                    children = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
            finally:
                self._sys.close(fd)
            paths.extend(f"{above}/{child.name}" for child in children)
            new += [
                CgroupSample(CgroupId(child.inode()), f"{above}/{child.name}", _NOTHING)
                for child in children
                if child.inode() not in known
            ]
        return new

    def _be_cores(self, elapsed_usec: int, suspects: tuple[Workload, ...]) -> float | None:
        """What they used at least: one that cannot be read adds nothing. None if none of them can."""
        if not suspects:
            return 0.0
        used = [
            max(now.usage_usec - workload.sample.cpu.usage_usec, 0)
            for workload in suspects
            if workload.sample.cpu is not None and (now := self._read(workload.sample)) is not None
        ]
        return sum(used) / elapsed_usec if used and elapsed_usec > 0 else None

    def _read(self, sample: CgroupSample) -> CpuStat | None:
        try:
            return cgroupfs.parse_cpu_stat(self._file(sample, "cpu.stat"))
        except (OSError, CgroupGone, Malformed):
            return None

    def _file(self, sample: CgroupSample, file: str) -> bytes:
        dir_fd = open_same_cgroup(self._sys, self._root_fd, sample.path, sample.id)
        try:
            return read_interface(self._sys, dir_fd, file)
        finally:
            self._sys.close(dir_fd)


def _suspects(event: Breach, since: Snapshot, *, cut_idle: bool) -> tuple[Workload, ...]:
    """The BE workloads that can be to blame.

    A group that is cpu.idle is preempted whenever a task of LS wakes up: it makes none wait for a CPU.
    """
    waits_for_cpu = event.signal == CPU_PRESSURE and not cut_idle
    be = since.tier(Tier.BE)
    return tuple(each for each in be if not waits_for_cpu or each.setting("cpu.idle") != "1")
