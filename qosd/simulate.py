"""The governors against a small model of a host: hours of load in seconds, nothing touched.

What the plant assumes, and so what its figures cannot say:

* CPUs are one fluid: `nr_cpus` of capacity, shared without cache, SMT, migration or wake-up cost. Queueing
  that comes from unlucky placement (docs/cpu.md) is not in it, so its LS delay is a lower bound.
* LS is an open loop: Poisson arrivals of a fixed amount of work, a first-come queue. It never slows down.
* LS runs before BE: a BE group that is `cpu.idle` weighs 3 against 1024 (WEIGHT_IDLEPRIO), others by weight.
  BE is hogs that take whatever they may.
* cpu.max holds over each step (its period is not longer than a step); cpuset.cpus caps BE at its CPUs.
* The system uses a constant share. Counters are exact, but the host's are counted in hundredths of a second
  as in /proc/stat. The tick is punctual; a write is in force at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping

import msgspec

from qosd import governors
from qosd.config import Config
from qosd.files import Key
from qosd.model import CgroupId, CgroupSample, CpuStat, HostSample, Snapshot, Tier, Workload
from qosd.plan import Ledger, Now, diff
from qosd.replay import as_if_written
from qosd.response import Edge, Point, response
from qosd.topology import parse_cpulist

Static = Mapping[Tier, Mapping[str, str]]
"""By tier the interface files that are not at the kernel's default."""
LIMITS = ("cpu.max", "cpuset.cpus")
_DEFAULTS = {
    "cpu.weight": "100",
    "cpu.idle": "0",
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
    "cpuset.cpus": "",
}
_IDLE_WEIGHT = 0.3  # WEIGHT_IDLEPRIO 3 where weight 100 is 1024
_USER_HZ_USEC = 10_000
_DAY_SEC = 86_400
_START_SEC = 60
_MANY = 30  # arrivals a step from which a Poisson number is as good as normal


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seconds: float
    ls_pct: float
    """Of all CPUs."""


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """LS follows `steps`, repeated, plus a daily sine of `swing_pct`."""

    seconds: float
    steps: tuple[Step, ...]
    swing_pct: float = 0.0
    nr_cpus: int = 4
    request_usec: float = 500.0
    """Work of one LS request: the coarser, the noisier the load."""
    hogs: int = 8
    system_pct: float = 2.0
    step_ms: float = 10.0
    phase_sec: float = 0.37
    """How far into the schedule the first tick is: a load keeps no step with the ticks."""
    seed: int = 1


SCENARIOS = {
    "steady": Scenario(1800, (Step(1, 30),), step_ms=50),
    "steady-10": Scenario(1800, (Step(1, 10),), step_ms=50),
    "steady-60": Scenario(1800, (Step(1, 60),), step_ms=50),
    "steady-80": Scenario(1800, (Step(1, 80),), step_ms=50),
    "coarse": Scenario(1800, (Step(1, 30),), request_usec=10_000, step_ms=50),
    "square": Scenario(600, (Step(5, 20), Step(5, 60))),
    "step": Scenario(1200, (Step(30.3, 10), Step(30.4, 80))),
    "bursty": Scenario(600, (Step(0.8, 15), Step(0.2, 90))),
    "spike": Scenario(600, (Step(19.3, 10), Step(0.9, 90))),
    "day": Scenario(_DAY_SEC, (Step(1, 40),), swing_pct=30, step_ms=250),
    "busy-day": Scenario(_DAY_SEC, (Step(50, 35), Step(10, 55)), swing_pct=30, step_ms=250),
}


class Result(msgspec.Struct, frozen=True):
    seconds: float
    ticks: int
    limit_writes_per_minute: float
    """Of cpu.max and cpuset.cpus, without the first minute."""
    be_kept_pct: float
    """BE's use as a share of capacity x X - LS - system, where that is positive."""
    be_pct: float
    ls_delay_ms: float
    """Mean wait in the queue: what LS would have with all CPUs to itself is in it too."""
    ls_delay_p99_ms: float
    overshoot_pct: float | None
    """Worst excursion of the allowance past where it settles after a step, in per cent of all CPUs."""
    settle_ticks: float | None
    yield_sec: float | None
    """After LS rose: until BE uses no more than it settles at, plus 5 % of all CPUs. The median."""
    recover_sec: float | None
    """After LS fell: until BE uses 90 % of what it settles at. The median."""
    trace: tuple[Point, ...] = ()


class _Host:
    """The plant: queues, counters and interface files."""

    def __init__(self, scenario: Scenario, config: Config) -> None:
        self.scenario = scenario
        self.files = {rule.name: dict(_DEFAULTS) for rule in config.workload}
        self.usage = {rule.name: 0.0 for rule in config.workload}
        self.rules = config.workload
        self.ids = {rule.name: CgroupId(1000 + n) for n, rule in enumerate(config.workload)}
        self.busy = 0.0
        self.now = 0.0
        self.backlog = 0.0
        self.offered = 0.0
        self.delays: list[float] = []
        self._chance = random.Random(scenario.seed)  # noqa: S311 - a load, not a secret
        self._cycle = sum(step.seconds for step in scenario.steps)
        self._names = {tier: [r.name for r in config.workload if r.tier is tier] for tier in Tier}

    def load_pct(self, at: float) -> float:
        into = (at + self.scenario.phase_sec) % self._cycle
        pct = self.scenario.steps[-1].ls_pct
        for step in self.scenario.steps:
            if into < step.seconds:
                pct = step.ls_pct
                break
            into -= step.seconds
        swing = -self.scenario.swing_pct * math.cos(2 * math.pi * at / _DAY_SEC)
        return max(pct + swing, 0.0)

    def advance(self) -> None:
        """One step: arrivals, LS first, BE what its limits and the rest allow."""
        scenario = self.scenario
        dt = scenario.step_ms / 1000
        work = scenario.request_usec / 1e6
        mean = self.load_pct(self.now) / 100 * scenario.nr_cpus * dt / work
        arrived = _poisson(self._chance, mean) * work
        self.offered += arrived
        room = scenario.nr_cpus * dt
        system = room * scenario.system_pct / 100
        room -= system
        wants = {name: self._be_cap(name) * dt for name in self._names[Tier.BE]}
        ls = min(self.backlog + arrived, max(room - self._be_share(wants, room), 0.0))
        if arrived > 0:
            self.delays.append(self.backlog / scenario.nr_cpus)
        self.backlog += arrived - ls
        for name in self._names[Tier.LS]:
            self.usage[name] += ls / len(self._names[Tier.LS])
        be = self._run_be(wants, room - ls)
        self.busy += system + ls + be
        self.now += dt

    def _be_cap(self, name: str) -> float:
        """CPUs that the group's own limits and threads allow."""
        files = self.files[name]
        quota, period = files["cpu.max"].split()
        limit = math.inf if quota == "max" else int(quota) / int(period)
        cpus = len(parse_cpulist(files["cpuset.cpus"], "cpuset.cpus")) or self.scenario.nr_cpus
        return min(limit, cpus, self.scenario.hogs, self.scenario.nr_cpus)

    def _be_share(self, wants: dict[str, float], room: float) -> float:
        """What BE gets even while LS wants everything: its part by weight."""
        be = sum(self._weight(name) for name in wants)
        ls = sum(self._weight(name) for name in self._names[Tier.LS])
        return min(sum(wants.values()), room * be / (be + ls)) if be + ls > 0 else 0.0

    def _weight(self, name: str) -> float:
        files = self.files[name]
        return _IDLE_WEIGHT if files["cpu.idle"] == "1" else float(files["cpu.weight"])

    def _run_be(self, wants: dict[str, float], room: float) -> float:
        total = sum(wants.values())
        if total <= 0:
            return 0.0
        share = min(room / total, 1.0)
        for name, want in wants.items():
            self.usage[name] += want * share
        return total * share

    def snapshot(self, tick: int) -> Snapshot:
        now_usec = round(self.now * 1e6) + 1_000_000
        busy_usec = round(self.busy * 1e6) // _USER_HZ_USEC * _USER_HZ_USEC
        online = tuple(range(self.scenario.nr_cpus))
        host = HostSample(self.scenario.nr_cpus, online, busy_usec, 0)
        return Snapshot(tick, now_usec, now_usec, host, workloads=tuple(self._workloads()))

    def _workloads(self) -> Iterator[Workload]:
        for rule in self.rules:
            usage = round(self.usage[rule.name] * 1e6)
            sample = CgroupSample(self.ids[rule.name], rule.match[0], CpuStat(usage, usage, 0))
            watched = governors.WATCHED[rule.tier]
            files = {file: text for file, text in self.files[rule.name].items() if file in watched}
            yield Workload(rule.name, rule.tier, rule.priority, sample, files, {"populated": 1})

    def used(self, tier: Tier) -> float:
        return sum(self.usage[name] for name in self._names[tier])


class _Loop:
    """The daemon's tick without a daemon: snapshot, decide, diff, and writes that always succeed."""

    def __init__(self, host: _Host, config: Config) -> None:
        self._host = host
        self._config = config
        self._names = {cgroup_id: name for name, cgroup_id in host.ids.items()}
        self._state = governors.State()
        self._ledger: Ledger = {}
        self._prev: Snapshot | None = None

    def tick(self, number: int) -> tuple[float | None, int]:
        """The allowance, and how many limits were written."""
        now = self._host.snapshot(number)
        self._state, decision = governors.decide(self._config, self._prev, now, self._state)
        self._prev = now
        files = {Key(w.id, file): text for w in now.workloads for file, text in w.files.items()}
        at = Now(now.monotonic_usec, files)
        self._ledger, plan = diff(at, decision.desired, self._ledger, self._config.ownership)
        self._ledger = as_if_written(self._ledger, plan, files)
        for write in plan.writes:
            name = self._names[CgroupId(write.key.cgroup_id)]
            self._host.files[name][write.key.file] = write.new
        allowance = decision.allowance.cores if decision.allowance is not None else None
        return allowance, sum(write.key.file in LIMITS for write in plan.writes)


def run(scenario: Scenario, config: Config, static: Static | None = None) -> Result:
    """The whole scenario; under `static` these files stand, and nobody changes them.

    The same arguments give the same result.
    """
    host = _Host(scenario, config)
    loop = _Loop(host, config) if static is None else None
    for rule in config.workload:
        host.files[rule.name] |= (static or {}).get(rule.tier, {})
    interval = int(config.interval) / 1e6
    points: list[Point] = []
    for number in range(1, int(scenario.seconds / interval) + 1):
        allowance, wrote = loop.tick(number) if loop is not None else (None, 0)
        start, offered, ls, be = host.now, host.offered, host.used(Tier.LS), host.used(Tier.BE)
        while host.now < number * interval - 1e-9:
            host.advance()
        elapsed = host.now - start
        used = (host.used(Tier.LS) - ls) / elapsed, (host.used(Tier.BE) - be) / elapsed
        points.append(Point(start, elapsed, (host.offered - offered) / elapsed, *used, allowance, wrote))
    return _result(host, config, points)


def _result(host: _Host, config: Config, points: list[Point]) -> Result:
    scenario = host.scenario
    room = scenario.nr_cpus * (config.host.cpu_target_pct - scenario.system_pct) / 100
    left = sum(max(room - point.ls, 0.0) * point.elapsed for point in points)
    be = sum(point.be * point.elapsed for point in points)
    started = [point for point in points if point.at >= _START_SEC]
    writes = sum(point.wrote for point in started)
    minutes = sum(point.elapsed for point in started) / 60
    delays = sorted(host.delays)
    found = response(points, _edges(scenario), scenario.nr_cpus)
    return Result(
        seconds=host.now,
        ticks=len(points),
        limit_writes_per_minute=writes / minutes if minutes > 0 else 0.0,
        be_kept_pct=100 * be / left if left > 0 else 0.0,
        be_pct=100 * be / (host.now * scenario.nr_cpus),
        ls_delay_ms=1000 * sum(delays) / len(delays) if delays else 0.0,
        ls_delay_p99_ms=1000 * delays[int(0.99 * len(delays))] if delays else 0.0,
        overshoot_pct=found.overshoot_pct,
        settle_ticks=found.settle_ticks,
        yield_sec=found.yield_sec,
        recover_sec=found.recover_sec,
        trace=tuple(points),
    )


def _edges(scenario: Scenario) -> list[Edge]:
    """Every change of the schedule that lasts long enough to settle; none under a daily swing."""
    if len(scenario.steps) == 1 or scenario.swing_pct:
        return []
    edges: list[Edge] = []
    at = scenario.steps[0].seconds - scenario.phase_sec
    number = 1
    while at < scenario.seconds:
        step = scenario.steps[number % len(scenario.steps)]
        before = scenario.steps[(number - 1) % len(scenario.steps)]
        edges.append(Edge(at, min(at + step.seconds, scenario.seconds), step.ls_pct > before.ls_pct))
        at += step.seconds
        number += 1
    return edges


def _poisson(chance: random.Random, mean: float) -> int:
    if mean > _MANY:
        return max(round(chance.gauss(mean, math.sqrt(mean))), 0)
    limit, product, number = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        number += 1
    return number
