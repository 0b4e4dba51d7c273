"""One segment: one mode under one load for some seconds, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Iterator

from bench.sched.groups import Groups
from bench.sched.load import Hogs, Load, Programs, Request, Service
from bench.sched.modes import Controller, Mode
from qosd.procfs import HostCpu, parse_stat
from qosd.response import Point

_LEAD_SEC = 0.2
_FIRST_TICKS = (0.0, 0.5, 1.0, 1.5)
"""A controller is taken to have run before: it looks more often at first, within the warm-up."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    load: Load
    warmup_sec: float
    slo_usec: int
    hogs: int
    look_sec: float = 0.0
    """How often to look on the way; never, unless told."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Latencies in milliseconds, shares of the machine in per cent."""

    mode: str
    p50: float
    p99: float
    p999: float
    over_slo_pct: float
    excess_usec: float
    """Mean over all requests of the time beyond the SLO."""
    ls_pct: float
    be_pct: float
    """BE work, as the share of the machine that it would take undisturbed."""
    system_pct: float
    steal_pct: float
    kept_pct: float
    """BE work as a share of what LS and system left."""
    emu_pct: float
    throttled_pct: float
    """Share of periods in which BE was throttled."""
    writes: int
    requests: int
    slow_queue_ms: float
    """Of the slowest 1 % of requests, what made up their latency, on average: waiting for a worker,"""
    slow_wake_ms: float
    """a worker that was free and woke late,"""
    slow_stretch_ms: float
    """and work that took longer than it does undisturbed."""
    stacked_pct: float
    """Share of requests whose work overlapped another's on the same CPU: LS in LS's own way."""


@dataclasses.dataclass(frozen=True)
class _Mark:
    at_ns: int
    busy: int
    steal: int
    ls: int
    be: int
    work: int
    periods: int
    throttled: int
    limit: float | None


@dataclasses.dataclass(frozen=True)
class Segment:
    outcome: Outcome
    points: list[Point]
    """The whole of it in steps, for an experiment that asks for them."""


def run(programs: Programs, groups: Groups, mode: Mode, experiment: Experiment) -> Segment:
    groups.reset()
    load = experiment.load
    with contextlib.ExitStack() as stack:
        controller = mode.apply(groups)
        if controller is not None:
            stack.callback(controller.close)
        hogs = stack.enter_context(contextlib.closing(Hogs(programs, groups, experiment.hogs)))
        if mode.frozen:
            hogs.freeze()
        start_ns = time.monotonic_ns() + round(_LEAD_SEC * 1e9)
        service = stack.enter_context(contextlib.closing(Service(programs, groups, load, start_ns)))
        marks, looks = _drive(groups, hogs, controller, start_ns, experiment)
        requests = service.requests()
        if controller is None and (foreign := groups.foreign()):
            raise RuntimeError(f"{mode.label}: somebody else wrote: {', '.join(foreign)}")
    writes = controller.writes if controller is not None else 0
    warm = [request for request in requests if request.intended >= experiment.warmup_sec * 1e9]
    return Segment(_outcome(mode.label, warm, marks, writes, experiment), list(_points(looks, start_ns)))


def _drive(
    groups: Groups, hogs: Hogs, controller: Controller | None, start_ns: int, experiment: Experiment
) -> tuple[tuple[_Mark, _Mark], list[_Mark]]:
    """Tick the controller until the end; how things stood after the warm-up, at the end, and on the way."""
    marks: list[_Mark] = []
    looks: list[_Mark] = []
    for at, what in sorted(_due(experiment, controller)):
        time.sleep(max((start_ns - time.monotonic_ns()) / 1e9 + at, 0))
        if what == "tick" and controller is not None:
            controller.tick()
        elif what != "tick":
            (marks if what == "mark" else looks).append(_mark(groups, hogs))
    return (marks[0], marks[1]), looks


def _due(experiment: Experiment, controller: Controller | None) -> list[tuple[float, str]]:
    duration = experiment.load.duration_ms / 1000
    due = [(experiment.warmup_sec, "mark"), (duration, "mark")]
    if controller is not None:
        ticks = list(_FIRST_TICKS)
        while ticks[-1] + controller.interval < duration:
            ticks.append(ticks[-1] + controller.interval)
        due += [(at, "tick") for at in ticks]
    if experiment.look_sec:
        due += [
            (number * experiment.look_sec, "look") for number in range(int(duration / experiment.look_sec))
        ]
    return due


def _points(looks: list[_Mark], start_ns: int) -> Iterator[Point]:
    """Each at its end: what is said to have happened has happened by then."""
    for before, after in itertools.pairwise(looks):
        elapsed = (after.at_ns - before.at_ns) / 1000
        ls, be = (after.ls - before.ls) / elapsed, (after.be - before.be) / elapsed
        wrote = int(after.limit != before.limit)
        yield Point((after.at_ns - start_ns) / 1e9, elapsed / 1e6, ls, ls, be, after.limit, wrote)


def busy_pct(seconds: float) -> float:
    """How busy the whole machine is, watched for some time."""
    before, start = _host(), time.monotonic()
    time.sleep(seconds)
    after = _host()
    elapsed = (time.monotonic() - start) * 1e6
    busy = after.busy_usec - before.busy_usec + after.steal_usec - before.steal_usec
    return 100 * busy / elapsed / after.nr_cpus


def _host() -> HostCpu:
    with open("/proc/stat", "rb") as file:
        return parse_stat(file.read(65536), os.sysconf("SC_CLK_TCK"))


def _mark(groups: Groups, hogs: Hogs) -> _Mark:
    cpu = _host()
    ls, be = groups.ls.usage_usec(), groups.be.usage_usec()
    periods, throttled, _ = groups.be.throttled()
    now = time.monotonic_ns()
    work, limit = hogs.work_usec(), groups.be.limit()
    return _Mark(now, cpu.busy_usec, cpu.steal_usec, ls, be, work, periods, throttled, limit)


def _outcome(
    label: str, requests: list[Request], marks: tuple[_Mark, _Mark], writes: int, experiment: Experiment
) -> Outcome:
    before, after = marks
    nr_cpus = experiment.load.nr_cpus
    whole = (after.at_ns - before.at_ns) / 1000 * nr_cpus
    ls = (after.ls - before.ls) / whole
    be = (after.be - before.be) / whole
    work = (after.work - before.work) / whole
    system = max((after.busy - before.busy) / whole - ls - be, 0.0)
    latencies = sorted(request.latency for request in requests)
    slo = experiment.slo_usec * 1000
    excess = sum(max(latency - slo, 0) for latency in latencies) / len(latencies) / 1000
    periods = after.periods - before.periods
    done = len(requests) * experiment.load.work_usec / whole
    return Outcome(
        label,
        p50=_quantile(latencies, 0.5),
        p99=_quantile(latencies, 0.99),
        p999=_quantile(latencies, 0.999),
        over_slo_pct=100 * sum(latency > slo for latency in latencies) / len(latencies),
        excess_usec=excess,
        ls_pct=100 * ls,
        be_pct=100 * work,
        system_pct=100 * system,
        steal_pct=100 * (after.steal - before.steal) / whole,
        kept_pct=100 * work / max(1 - ls - system, 0.01),
        emu_pct=100 * (done + work),
        throttled_pct=100 * (after.throttled - before.throttled) / periods if periods else 0.0,
        writes=writes,
        requests=len(requests),
        stacked_pct=_stacked_pct(requests),
        **_slowest(requests, experiment.load.work_usec * 1000),
    )


def _slowest(requests: list[Request], work: int) -> dict[str, float]:
    """Where the slowest 1 % spent their time."""
    slow = sorted(requests, key=lambda request: request.latency)[-max(len(requests) // 100, 1) :]
    queue = sum(request.latency - request.service - request.wake for request in slow)
    wake = sum(request.wake for request in slow)
    stretch = sum(max(request.service - work, 0) for request in slow)
    names = ("slow_queue_ms", "slow_wake_ms", "slow_stretch_ms")
    return {name: total / len(slow) / 1e6 for name, total in zip(names, (queue, wake, stretch), strict=True)}


def _stacked_pct(requests: list[Request]) -> float:
    """By overlap on the CPU where each began, also for one that was moved later."""
    until: dict[int, int] = {}
    stacked = 0
    begun = sorted((r.intended + r.latency - r.service, r.intended + r.latency, r.cpu) for r in requests)
    for begin, end, cpu in begun:
        stacked += until.get(cpu, 0) > begin
        until[cpu] = max(until.get(cpu, 0), end)
    return 100 * stacked / len(requests)


def _quantile(ordered: list[int], share: float) -> float:
    """In milliseconds; the smallest latency that `share` of the requests do not exceed."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] / 1e6
