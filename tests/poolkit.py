"""Pools on a host that answers to its limits."""

from __future__ import annotations

from qosd import governors
from qosd.config import Config, decode
from qosd.model import CgroupId, CgroupSample, CpuMax, CpuStat, HostSample, Snapshot, Tier, Workload

NR_CPUS = 10
FILES = {"cpu.max": "max 100000", "cpu.weight": "100"}
THREE = """
[cpu.bandwidth]
enforce = "max"
deadband_up_pct = 0
deadband_down_pct = 0
[host]
cpu_target_pct = 100
[[pool]]
name = "front"
priority = 0
[[pool]]
name = "middle"
priority = 1
[[pool]]
name = "last"
priority = 2
[[workload]]
name = "web"
tier = "ls"
match = ["web"]
pool = "front"
[[workload]]
name = "etl"
tier = "be"
match = ["etl"]
pool = "middle"
[[workload]]
name = "batch"
tier = "be"
match = ["batch"]
pool = "last"
"""


class Plant:
    """BE uses what it wants within its limit; LS always what it wants. A tick is a second."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ids = {rule.name: CgroupId(n) for n, rule in enumerate(config.workload, 1)}
        self.used = dict.fromkeys(self.ids, 0.0)
        self.limits: dict[CgroupId, float] = {}
        self.usec = 0
        self.prev: Snapshot | None = None
        self.state = governors.State()
        self.decision: governors.Decision | None = None
        self.cores: dict[str, float] = {}
        self.local_minutes: dict[str, int] = {}

    def tick(self, **wants: float) -> governors.Decision:
        self.usec += 1_000_000
        self.cores = {
            name: min(wants.get(name, 0.0), self.limits.get(cgroup_id, float("inf")))
            for name, cgroup_id in self.ids.items()
        }
        for name, cores in self.cores.items():
            self.used[name] += cores * 1e6
        busy = round(sum(self.used.values()))
        host = HostSample(NR_CPUS, tuple(range(NR_CPUS)), busy_usec=busy, steal_usec=0)
        workloads = tuple(
            Workload(rule.name, rule.tier, rule.priority, self._sample(rule.name, rule.match[0]), FILES)
            for rule in self.config.workload
            if rule.name in self.ids
        )
        now = Snapshot(
            self.usec // 1_000_000,
            self.usec,
            self.usec,
            host,
            workloads=workloads,
            local_minutes=self.local_minutes,
        )
        self.state, self.decision = governors.decide(self.config, self.prev, now, self.state)
        self.prev = now
        for wanted in self.decision.desired:
            if isinstance(wanted.setting, CpuMax):
                assert wanted.tier is Tier.BE
                quota = wanted.setting.quota_usec
                assert isinstance(quota, int)
                self.limits[wanted.cgroup_id] = quota / wanted.setting.period_usec
        return self.decision

    def run(self, ticks: int, **wants: float) -> governors.Decision:
        for _ in range(ticks):
            decision = self.tick(**wants)
        return decision

    def _sample(self, name: str, path: str) -> CgroupSample:
        usec = round(self.used[name])
        return CgroupSample(self.ids[name], path, CpuStat(usec, usec, 0))

    def sizes(self) -> dict[str, float | None]:
        assert self.decision is not None
        return {view.name: view.size_cores for view in self.decision.cpu.pools}

    def limit(self, name: str) -> float:
        return self.limits[self.ids[name]]


def three(extra: str = "") -> Plant:
    return Plant(decode(THREE + extra))
