"""A host of four CPUs on which LS suffers as a test says, seen by the interference governor tick by tick."""

from __future__ import annotations

from typing import Any

from qosd import governors
from qosd.config import Config
from qosd.interference import governor
from qosd.interference.signals import Kind
from qosd.model import (
    CgroupId,
    CgroupSample,
    CpuStat,
    HostSample,
    Pressure,
    Snapshot,
    Stall,
    Tier,
    Workload,
)

SECOND = 1_000_000
MIB, GIB = 1 << 20, 1 << 30
NR_CPUS = 4
LS, OTHER_LS, BE, OTHER_BE, BELOW_LS = (CgroupId(number) for number in (1, 2, 3, 4, 5))
PATHS = {LS: "ls.slice", OTHER_LS: "other.slice", BE: "be.slice", OTHER_BE: "worse.slice"}
TIERS = {LS: Tier.LS, OTHER_LS: Tier.LS, BE: Tier.BE, OTHER_BE: Tier.BE}
FILES = {
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
    "cpu.weight": "100",
    "cpu.idle": "0",
    "cpuset.cpus": "",
    "cgroup.freeze": "0",
}


def hog() -> dict[str, float]:
    """BE takes three CPUs, LS one, and some task of LS waits 60 % of the time."""
    return {"be": 3, "ls": 1, "ls_cpu_wait": 0.6}


class Stage:
    """Everything adds up over time as the kernel's counters do."""

    def __init__(
        self,
        config: Config,
        *,
        two_be: bool = False,
        total: int = 8 * GIB,
        sizes: dict[CgroupId, int] | None = None,
        free: int = 4 * GIB,
    ) -> None:
        self.config = config
        self.usec = 1_000 * SECOND
        self.ids = (LS, OTHER_LS, BE, *((OTHER_BE,) if two_be else ()))
        self.used = dict.fromkeys(PATHS, 0.0)
        self.busy = 0.0
        self.waits = {kind: dict.fromkeys(PATHS, 0.0) for kind in Kind}
        self.throttled = {LS: 0.0, BELOW_LS: 0.0}
        self.sizes = {LS: 100 * MIB, OTHER_LS: 100 * MIB, BE: 100 * MIB, OTHER_BE: 100 * MIB} | (sizes or {})
        self.total, self.free = total, free
        self.high = 0
        self.below: tuple[CgroupSample, ...] = ()
        self.prev: Snapshot | None = None
        self.state = governors.State()
        self.frozen: frozenset[CgroupId] = frozenset()
        self.unfreezable: frozenset[CgroupId] = frozenset()
        self.common = dict(FILES)
        self.files: dict[CgroupId, dict[str, str]] = {}
        """What of a workload's files differs from the common ones."""
        self.full = False
        """Whether who waits for memory does so with all its tasks."""
        self.priorities: dict[CgroupId, int] = {each: each for each in PATHS}
        self.decision: governors.Decision | None = None

    def snapshot(self, seconds: float = 1.0, **what: Any) -> Snapshot:
        """Time passes; `be`, `ls`, `other_ls`, `system` in CPUs, `*_wait` as shares, `*_grown` in bytes."""
        self.usec += round(seconds * SECOND)
        for cgroup_id, name in ((LS, "ls"), (OTHER_LS, "other_ls"), (BE, "be")):
            self.used[cgroup_id] += what.get(name, 0.0) * seconds
            self.busy += what.get(name, 0.0) * seconds
            for kind in (Kind.CPU, Kind.MEMORY, Kind.IO):
                self.waits[kind][cgroup_id] += what.get(f"{name}_{kind}_wait", 0.0) * seconds
            grown = what.get(f"{name}_grown", 0)
            self.sizes[cgroup_id] += grown
            self.free -= grown
        self.busy += what.get("system", 0.0) * seconds
        self.free -= what.get("system_grown", 0)
        self.throttled[LS] += what.get("ls_throttled", 0.0)
        self.throttled[BELOW_LS] += what.get("below_throttled", 0.0)
        self.high += what.get("ls_high", 0)
        return self._snapshot(what)

    def _snapshot(self, what: dict[str, Any]) -> Snapshot:
        host = HostSample(
            NR_CPUS,
            tuple(range(NR_CPUS)),
            busy_usec=round(self.busy * 1e6),
            steal_usec=0,
            mem_total=self.total,
            mem_available=max(self.free, 0),
        )
        workloads = tuple(self._workload(each, what) for each in self.ids if each != what.get("without"))
        below = CgroupSample(BELOW_LS, "ls.slice/unit.service", self._cpu(0.0, self.throttled[BELOW_LS]))
        return Snapshot(
            self.usec // SECOND,
            self.usec,
            self.usec,
            host,
            workloads=workloads,
            descendants=(below, *self.below),
        )

    def _workload(self, cgroup_id: CgroupId, what: dict[str, Any]) -> Workload:
        unknown = bool(what.get("unknown"))
        waits = [
            None if unknown else self._pressure(kind, cgroup_id) for kind in (Kind.CPU, Kind.MEMORY, Kind.IO)
        ]
        sample = CgroupSample(
            cgroup_id,
            PATHS[cgroup_id],
            self._cpu(self.used[cgroup_id], self.throttled.get(cgroup_id, 0.0)),
            self.sizes[cgroup_id],
            *waits,
        )
        events = {"high": self.high, "max": 0} if cgroup_id == LS else {}
        return Workload(
            PATHS[cgroup_id].partition(".")[0],
            TIERS[cgroup_id],
            self.priorities.get(cgroup_id, 0),
            sample,
            {
                **self.common,
                **self.files.get(cgroup_id, {}),
                "cgroup.freeze": "1" if cgroup_id in self.frozen else "0",
            },
            {"populated": 1, "frozen": 0},
            events,
        )

    def _cpu(self, used: float, throttled: float) -> CpuStat:
        usec = round(used * 1e6)
        return CpuStat(usec, usec, 0, 0, 0, round(throttled * 1e6))

    def _pressure(self, kind: Kind, cgroup_id: CgroupId) -> Pressure:
        some = Stall(0.0, 0.0, 0.0, round(self.waits[kind][cgroup_id] * 1e6))
        return Pressure(some, some if self.full and kind is Kind.MEMORY else None)

    def tick(self, seconds: float = 1.0, **what: Any) -> governor.Outcome:
        now = self.snapshot(seconds, **what)
        self.state, decision = governors.decide(self.config, self.prev, now, self.state)
        self.prev, self.decision = now, decision
        self.frozen = frozenset(decision.interference.answer.freeze) - self.unfreezable
        return decision.interference
