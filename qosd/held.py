"""How long an LS workload was held by a limit of its own (cpu.max) in the moments before a breach.

Throttled tasks wait for a CPU, and PSI counts them. `throttled_usec` alone does not show it: the kernel adds
to it when it lets a group run again (unthrottle_cfs_rq()). A group in debt, whose task ran on past its quota
until the next scheduler tick or while the hypervisor ran somebody else, is held over several periods in one
go, and shows nothing of it but `nr_throttled`, which counts at the end of each (sched_cfs_period_timer()).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import NamedTuple

from qosd import cgroupfs
from qosd.errors import CgroupGone, Malformed
from qosd.look import Look
from qosd.model import Breach, CgroupId, CgroupSample, CpuMax, CpuStat, Snapshot, Tier, Workload
from qosd.sys import open_cgroup, read_interface

_TICKS = 16  # those below that are read in turns (sense.cold_ticks) are in one of them
_YOUNG_TICKS = 2  # a limit of a cgroup that was seen for longer has shown in its nr_periods
_LIMITED = 64  # cgroups with a cpu.max of their own, or new ones, below an LS workload that are asked
_WALKED = 256  # directories below it that are looked into for new ones
_GONE = (
    8  # cgroups that the last tick did not see, of which one that is alive shows that some are read in turns
)
_PERIOD_USEC = 100_000  # of a cpu.max, by default and at systemd's choice
_PATIENCE_USEC = 5_000_000  # reports further apart are of two different incidents
_NOTHING = CpuStat(0, 0, 0)


class _Tick(NamedTuple):
    snapshot: Snapshot
    above: dict[str, CgroupSample]
    """What stood above the LS workloads then, by path: in no snapshot, and perhaps limited as well."""
    ids: frozenset[CgroupId]
    """Of the descendants."""


class Held:
    def __init__(self, look: Look) -> None:
        self._kept = look
        self._sys = look.sys
        self._root_fd = look.root_fd
        self._seen: deque[_Tick] = deque(maxlen=_TICKS)
        self._reports: dict[CgroupId, tuple[int, int]] = {}
        """By victim, the first and the last report of those that came without a pause."""

    def note(self, now: Snapshot) -> None:
        ancestors = {path for workload in now.tier(Tier.LS) for path in _above(workload.path)}
        samples = {path: sample for path in ancestors if (sample := self._look(path)) is not None}
        self._seen.append(_Tick(now, samples, frozenset(each.id for each in now.descendants)))
        here = {workload.id for workload in now.workloads}
        self._reports = {victim: times for victim, times in self._reports.items() if victim in here}

    def forget(self) -> None:
        self._seen.clear()

    def usec(self, event: Breach, since: Snapshot) -> int | None:
        """How long the victim, one below it or one above it was held; a group's file has its own only.

        The longest, not the sum: they are held at the same time. None while it cannot be known.
        """
        victim = since.workload(event.victim)
        if victim is None:
            return None
        below = self._known(victim.path + "/", since)
        new = self._newcomers(victim, below)
        asked = (victim.sample, *self._ancestors(victim, since), *self._limited(below))
        longest, settled, doubtful = 0, True, bool(new)
        present = self._present(since)
        for before in (*asked, *new):
            now = self._read(before)
            if now is None and before.id not in present:
                continue  # it was gone before the evidence begins
            if before.cpu is None or now is None:
                return None
            held = self._held(before, before.cpu, now)
            doubtful = doubtful or bool(now.nr_periods) or held is None
            settled = settled and held is not None
            longest = max(longest, held or 0)
        proven = self._lasts(event)
        return longest if longest or (proven and settled) or not doubtful else None

    def _held(self, sample: CgroupSample, before: CpuStat, now: CpuStat) -> int | None:
        throttled = (now.throttled_usec or 0) - (before.throttled_usec or 0)
        if throttled > 0:
            return throttled
        ends = (now.nr_throttled or 0) - (before.nr_throttled or 0)
        if ends > 0:
            # Held at the end of each and never let go in between: all periods but the first, and it goes on.
            return (ends - 1) * self._period_usec(sample) or None
        return None if self._is_between_periods(sample, before, now) else 0

    def _is_between_periods(self, sample: CgroupSample, before: CpuStat, now: CpuStat) -> bool:
        """Whether it has a limit and ran, and no period has ended since: it may be held and not show it yet.

        A period ends when its timer fires, and a busy hypervisor makes that late.
        """
        if now.usage_usec <= before.usage_usec or (now.nr_periods or 0) > (before.nr_periods or 0):
            return False
        try:
            return not self._kept.file(sample, "cpu.max").startswith(b"max")
        except (OSError, CgroupGone):
            return False

    def _period_usec(self, sample: CgroupSample) -> int:
        try:
            limit = cgroupfs.parse_setting(CpuMax.file, self._kept.file(sample, "cpu.max").decode("latin-1"))
        except (OSError, CgroupGone, Malformed):
            return 0
        return limit.period_usec if isinstance(limit, CpuMax) else 0

    def _known(self, prefix: str, since: Snapshot) -> dict[CgroupId, CgroupSample]:
        """What the ticks saw below a workload, each as it was last seen before the evidence begins."""
        known: dict[CgroupId, CgroupSample] = {}
        for tick in self._seen:
            before = tick.snapshot.monotonic_usec <= since.monotonic_usec
            for each in tick.snapshot.descendants:
                if each.path.startswith(prefix) and (before or each.id not in known):
                    known[each.id] = each
        return known

    def _limited(self, below: dict[CgroupId, CgroupSample]) -> list[CgroupSample]:
        """Those that have a cpu.max, and those that are too new for it to have shown."""
        older = [tick.ids for tick in self._seen][:-_YOUNG_TICKS]
        old = frozenset[CgroupId]().union(*older)
        limited = [each for each in below.values() if each.cpu is not None and each.cpu.nr_periods]
        asked = {each.id for each in limited}
        young = [each for each in below.values() if older and each.id not in old and each.id not in asked]
        return [*limited, *young][:_LIMITED]

    def _present(self, since: Snapshot) -> frozenset[CgroupId]:
        """What was there when the evidence begins, or came later."""
        ticks = [tick for tick in self._seen if tick.snapshot.monotonic_usec >= since.monotonic_usec]
        roots = {workload.id for tick in ticks for workload in tick.snapshot.workloads}
        above = {sample.id for tick in ticks for sample in tick.above.values()}
        return frozenset(roots | above).union(*(tick.ids for tick in ticks))

    def _ancestors(self, victim: Workload, since: Snapshot) -> list[CgroupSample]:
        noted = next((tick.above for tick in self._seen if tick.snapshot is since), {})
        return [noted[path] for path in _above(victim.path) if path in noted]

    def _lasts(self, event: Breach) -> bool:
        """Whether the victim's reports have gone on for a period of its limit.

        At its first report a group that is held has nothing to show for it yet.
        """
        first, last = self._reports.get(event.victim, (event.at_usec, event.at_usec))
        if event.at_usec - last > _PATIENCE_USEC:
            first = event.at_usec
        self._reports[event.victim] = (first, event.at_usec)
        return event.at_usec - first >= _PERIOD_USEC

    def _newcomers(self, victim: Workload, below: dict[CgroupId, CgroupSample]) -> list[CgroupSample]:
        """Cgroups below it that no tick has seen yet: whatever they were held is new."""
        try:
            stat = cgroupfs.parse_flat_keyed(self._kept.file(victim.sample, "cgroup.stat"), "cgroup.stat")
            if stat.get(b"nr_descendants") == self._alive(below):
                return []
            return self._walk(victim.path, below)
        except (OSError, CgroupGone, Malformed):
            return []

    def _alive(self, below: dict[CgroupId, CgroupSample]) -> int:
        """How many of them there should be: one that went must not make up for one that came."""
        newest = self._seen[-1].ids if self._seen else frozenset[CgroupId]()
        missing = [each for cgroup_id, each in below.items() if cgroup_id not in newest]
        in_turns = any(self._read(each) is not None for each in missing[-_GONE:])
        return len(below) if in_turns else len(below) - len(missing)

    def _walk(self, path: str, known: Container[int]) -> list[CgroupSample]:
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

    def _look(self, path: str) -> CgroupSample | None:
        try:
            dir_fd = open_cgroup(self._sys, self._root_fd, path)
        except OSError:
            return None
        try:
            cgroup_id = CgroupId(self._sys.fstat(dir_fd).st_ino)
            stat = cgroupfs.parse_cpu_stat(read_interface(self._sys, dir_fd, "cpu.stat"))
        except (OSError, Malformed):
            return None
        finally:
            self._sys.close(dir_fd)
        return CgroupSample(cgroup_id, path, stat)

    def _read(self, sample: CgroupSample) -> CpuStat | None:
        try:
            return cgroupfs.parse_cpu_stat(self._kept.file(sample, "cpu.stat"))
        except (OSError, CgroupGone, Malformed):
            return None


def _above(path: str) -> list[str]:
    """Its ancestors without the root, which has no cpu.max."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
