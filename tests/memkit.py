"""Snapshots of a host's memory, a second apart, from what is said of it in MiB."""

from __future__ import annotations

from typing import Any

import msgspec

from qosd.ask import Tighten
from qosd.config import Config
from qosd.memory import decide as memory
from qosd.memsample import MemorySample, MemoryStat, Part, Reclaimed
from qosd.model import CgroupId, CgroupSample, HostSample, Max, Pressure, Snapshot, Stall, Tier, Workload

MIB = 1 << 20
PAGES = MIB // 4096
LS, BE, BE2 = CgroupId(1), CgroupId(2), CgroupId(3)
_FILES = {Tier.LS: {"memory.low": "0", "memory.min": "0"}, Tier.BE: {"memory.high": "max"}}


class Group:
    """One workload as the test wants it; sizes in MiB, refaults in pages, stalls in microseconds."""

    def __init__(self, cgroup_id: CgroupId, path: str, tier: Tier, priority: int = 0) -> None:
        self.id = cgroup_id
        self.path = path
        self.tier = tier
        self.priority = priority
        self.anon = 0.0
        self.shmem = 0.0
        self.active = 0.0
        self.inactive = 0.0
        self.mapped = 0.0
        self.dirty = 0.0
        self.refaults = 0
        self.memory_full = self.memory_some = self.io_some = 0
        self.swap = 0.0
        self.swap_max: int | Max | None = None
        self.ceiling: int | Max | None = None
        self.ceiling_path: str | None = None
        self.known = True
        self.cores = 0.0
        """CPUs in use: whether it works."""
        self.files = dict(_FILES[tier])
        self.originals: dict[str, str] = {}

    def take(self, mib: float) -> None:
        self.active -= max(mib - self.inactive, 0.0)
        self.inactive = max(self.inactive - mib, 0.0)

    @property
    def stat(self) -> MemoryStat:
        return MemoryStat(
            anon=_b(self.anon),
            file=_b(self.shmem + self.active + self.inactive),
            shmem=_b(self.shmem),
            file_mapped=_b(self.mapped),
            file_dirty=_b(self.dirty),
            file_writeback=0,
            inactive_file=_b(self.inactive),
            active_file=_b(self.active),
            workingset_refault_file=self.refaults,
            pgsteal=0,
        )

    def workload(self, usec: int) -> Workload:
        current = self.anon + self.shmem + self.active + self.inactive
        sample = CgroupSample(
            self.id,
            self.path,
            memory_current=_b(current),
            memory_pressure=Pressure(_stall(self.memory_some), _stall(self.memory_full)),
            io_pressure=Pressure(_stall(self.io_some), _stall(0)),
            memory=MemorySample(
                self.stat if self.known else None,
                usec if self.known else None,
                _b(self.swap),
                self.swap_max,
                self.ceiling,
                self.ceiling_path,
            ),
        )
        return Workload(self.path.partition(".")[0], self.tier, self.priority, sample, dict(self.files))


class Host:
    """A host of 1 GiB with ls.slice and be.slice; `tick` is one decision, taken at once where `apply`."""

    def __init__(self, config: Config, *more: Group, apply: bool = True) -> None:
        self.config = config
        self.apply = apply
        self.ls = Group(LS, "ls.slice", Tier.LS)
        self.be = Group(BE, "be.slice", Tier.BE)
        self.groups = [self.ls, self.be, *more]
        self.jobs: list[Group] = []
        """Cgroups below be.slice, whose sum it then is."""
        self.lru_gen: bool | None = False
        self.total = 1024.0
        self.available: float | None = 800.0
        self.free = 500.0
        self.swap_total = self.swap_free = 0.0
        self.usec = 10_000_000
        self.state = memory.State()
        self.prev: Snapshot | None = None
        self.answers: list[Reclaimed] = []
        self.asked: Tighten | None = None

    def snapshot(self) -> Snapshot:
        host = HostSample(
            4,
            mem_total=_b(self.total),
            mem_available=None if self.available is None else _b(self.available),
            mem_free=_b(self.free),
            swap_total=_b(self.swap_total),
            swap_free=_b(self.swap_free),
            lru_gen=self.lru_gen,
        )
        workloads = tuple(group.workload(self.usec) for group in self.groups)
        answers, self.answers = tuple(self.answers), []
        return Snapshot(
            self.usec // 1_000_000,
            self.usec,
            self.usec,
            host,
            workloads=workloads,
            reclaimed=answers,
            originals={group.id: dict(group.originals) for group in self.groups},
        )

    def tick(self, seconds: float = 1.0, **changes: Any) -> memory.Decision:
        for name, value in changes.items():
            setattr(self, name, value)
        self.usec += round(seconds * 1e6)
        now = self.snapshot()
        self.state, decision = memory.decide(self.config, self.prev, now, self.state, self.asked)
        self.prev = now
        wanted = {(each.cgroup_id, each.setting.file): each.setting for each in decision.desired}
        for group in self.groups if self.apply else ():
            for file in group.files:
                setting = wanted.get((group.id, file))
                if setting is not None:
                    group.originals.setdefault(file, group.files[file])
                    group.files[file] = str(setting.bytes)
                elif file in group.originals:
                    group.files[file] = group.originals.pop(file)
        return decision

    def ticks(self, count: int) -> memory.Decision:
        for _ in range(count):
            decision = self.tick()
        return decision

    def answer(self, decision: memory.Decision, share: float = 1.0, result: str = "done") -> int:
        """The worker's: a part of what was asked for is freed, of inactive_file first; the bytes in all."""
        total = 0
        for reclaim in decision.reclaims:
            group = next(each for each in self.groups if each.id == reclaim.cgroup_id)
            jobs = self.jobs if self.jobs and group is self.be else [group]
            taken = {target.id: target.bytes * share for target in reclaim.targets}
            for job in jobs:
                for each in {job.id: job, group.id: group}.values() if job.id in taken else ():
                    each.take(taken[job.id] / MIB)
            sizes = {target.id: target.bytes for target in reclaim.targets}
            seen = tuple(
                Part(
                    job.id,
                    job.path,
                    job.stat,
                    round(job.cores * self.usec),
                    result=result if job.id in taken else None,
                    asked=sizes.get(job.id, 0),
                    freed=round(taken.get(job.id, 0)),
                )
                for job in jobs
            )
            freed = round(sum(taken.values()))
            total += freed
            self.answers.append(
                Reclaimed(
                    group.id,
                    result if taken else "looked",
                    reclaim.bytes,
                    freed,
                    1000,
                    group.stat,
                    self.usec,
                    parts=seen,
                )
            )
        return total


def wants(decision: memory.Decision, cgroup_id: CgroupId) -> dict[str, int]:
    """The sizes wanted of one cgroup, in bytes, by file."""
    return {each.setting.file: each.setting.bytes for each in decision.desired if each.cgroup_id == cgroup_id}


def view(decision: memory.Decision, path: str) -> memory.WorkloadMemory:
    return next(each for each in decision.view.workloads if each.path == path)


def changed(config: Config, section: str, **values: Any) -> Config:
    """The configuration with some keys of one part of [memory] changed."""
    part = msgspec.structs.replace(getattr(config.memory, section), **values)
    return msgspec.structs.replace(config, memory=msgspec.structs.replace(config.memory, **{section: part}))


def _b(mib: float) -> int:
    return round(mib * MIB)


def _stall(total: int) -> Stall:
    return Stall(0.0, 0.0, 0.0, total)
