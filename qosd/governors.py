"""The governors, in the order they decide, and who owns which interface file of which tier. Pure."""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu import allowance, bandwidth, burst, cpuset, lstarget, overrun, pools, squeeze, weight, windows
from qosd.cpu.view import CpuView
from qosd.interference import baseline, heard
from qosd.interference import governor as interference
from qosd.io import decide as io
from qosd.memory import decide as memory
from qosd.memory import oom
from qosd.memory.trouble import trouble
from qosd.model import Breach, CpuMax, CpuMaxBurst, Snapshot, Tier
from qosd.plan import Desired, Reason
from qosd.schema.cpu import Enforce

OWNERS: dict[tuple[Tier, str], str] = {
    (Tier.LS, "cpu.weight"): "cpu.weight",
    (Tier.BE, "cpu.weight"): "cpu.weight",
    (Tier.BE, "cpu.idle"): "cpu.weight",
    (Tier.BE, "cpu.max"): "cpu.bandwidth",
    (Tier.BE, "cpu.max.burst"): "cpu.bandwidth",
    (Tier.BE, "cpuset.cpus"): "cpu.cpuset",
    (Tier.LS, "cpuset.cpus"): "cpu.cpuset",
    (Tier.LS, "cpu.max"): "cpu.burst",
    (Tier.LS, "cpu.max.burst"): "cpu.burst",
    (Tier.BE, "memory.oom.group"): "memory.oom",
    (Tier.LS, "io.weight"): "io.weight",
    (Tier.LS, "io.bfq.weight"): "io.weight",
    (Tier.LS, "io.latency"): "io.latency",
    (Tier.BE, "io.weight"): "io.weight",
    (Tier.BE, "io.bfq.weight"): "io.weight",
    (Tier.BE, "io.max"): "io.limits",
    (Tier.BE, "cgroup.freeze"): "interference.ladder",
    (Tier.LS, "memory.low"): "memory.protection",
    (Tier.LS, "memory.min"): "memory.protection",
    (Tier.BE, "memory.high"): "memory.limits",
}
"""One governor for each (tier, interface file): nothing is merged, so nothing can be merged wrongly."""

WATCHED: dict[Tier, tuple[str, ...]] = {
    tier: tuple(file for owned, file in OWNERS if owned is tier) for tier in Tier
}


class State(msgspec.Struct, frozen=True, gc=False):
    allowance: allowance.State = allowance.State()
    bandwidth: bandwidth.State = bandwidth.State()
    cpuset: cpuset.State = cpuset.State()
    pools: pools.State = pools.State()
    overruns: overrun.State = {}
    burst: burst.State = burst.State()
    baseline: baseline.State = baseline.State()
    memory: memory.State = memory.State()
    squeeze: squeeze.State = squeeze.State()
    io: io.State = io.State()
    interference: interference.State = interference.State()


class Decision(msgspec.Struct, frozen=True, gc=False):
    desired: tuple[Desired, ...]
    allowance: allowance.Allowance | None
    cpu: CpuView = CpuView()
    readings: tuple[baseline.Reading, ...] = ()
    """How LS does by what the probes count."""
    interference: interference.Outcome = interference.Outcome()
    memory: memory.Decision | None = None
    squeeze: float = 1.0


def decide(config: Config, prev: Snapshot | None, now: Snapshot, state: State) -> tuple[State, Decision]:
    config, opened = windows.apply(config, now)
    config, target = lstarget.apply(config, prev, now)
    baseline_state, readings = baseline.decide(config.ebpf.baseline, prev, now, state.baseline)
    signals = heard.signals(now, readings, config.ebpf.baseline.min_evidence)
    interference_state, found = interference.decide(
        config, prev, now, state.interference, signals, in_trouble=trouble(config, prev, now).both
    )
    allowance_state, granted = allowance.decide(config, prev, now, state.allowance)
    granted = lstarget.explained(windows.explained(granted, opened), target)
    squeeze_state, left = squeeze.decide(config, now, granted, state.squeeze)
    left = allowance.squeezed(config, left, found.answer.squeeze)
    pools_state, budgets, pool_views = pools.decide(config, prev, now, left, state.pools)
    bandwidth_state, limits = bandwidth.decide(
        _answering(config, left), prev, now, left, budgets, state.bandwidth
    )
    limits = squeeze.marked(config, now, left, limits)
    overruns = overrun.decide(config, prev, now, state.overruns)
    asked = cpuset.Asked(granted, budgets, overruns, found.answer.avoid_cpus)
    cpuset_state, masks = cpuset.decide(config, prev, now, asked, state.cpuset)
    burst_state, lent, bursts = burst.decide(config, prev, now, granted.usage, state.burst)
    memory_state, of_memory = memory.decide(config, prev, now, state.memory, found.answer.memory_tighten)
    io_state, ios = io.decide(config, prev, now, state.io, found.answer.io_tighten)
    desired = (
        *weight.decide(config, now),
        *_without_lifted(limits, found.answer),
        *masks,
        *lent,
        *oom.decide(config, now),
        *of_memory.desired,
        *ios,
        *found.desired,
    )
    following = State(
        allowance_state,
        bandwidth_state,
        cpuset_state,
        pools_state,
        overruns,
        burst_state,
        baseline_state,
        memory_state,
    )
    following = msgspec.structs.replace(
        following, io=io_state, interference=interference_state, squeeze=squeeze_state
    )
    view = CpuView(opened, pool_views, bursts, overrun.ineffective(now, overruns), target)
    return following, Decision(desired, left, view, readings, found, of_memory, squeeze_state.factor)


def react(
    config: Config, prev: Snapshot | None, now: Snapshot, state: State, events: tuple[Breach, ...]
) -> tuple[tuple[Desired, ...], str]:
    """What the last of these events, reported since `now`, wants written before the next tick, if anything.

    The state stays as it is: the next tick comes to the same conclusion from the events in its snapshot.
    """
    config, _ = windows.apply(config, now)
    config, _ = lstarget.apply(config, prev, now)
    known = state.allowance
    usage = known.history[-1] if known.history else None
    granted = allowance.Allowance(known.cores, usage, Reason(squeeze.RULE, "between two ticks"))
    left, outcome = squeeze.foresee(config, events, granted, state.squeeze)
    if outcome != squeeze.CUT:
        return (), outcome
    _, budgets, _ = pools.decide(config, prev, now, left, state.pools)
    _, limits = bandwidth.decide(_answering(config, left), prev, now, left, budgets, state.bandwidth)
    return squeeze.marked(config, now, left, limits), outcome


def _answering(config: Config, granted: allowance.Allowance) -> Config:
    """A squeeze is answered with cpu.max whatever enforces the allowance in calm: it is one write."""
    if granted.squeeze >= 1:
        return config
    enforced = msgspec.structs.replace(config.cpu.bandwidth, enforce=Enforce.MAX)
    return msgspec.structs.replace(config, cpu=msgspec.structs.replace(config.cpu, bandwidth=enforced))


def _without_lifted(limits: tuple[Desired, ...], answer: interference.Answer) -> tuple[Desired, ...]:
    """Without the CPU limit of the workload in which something is about to be killed."""
    return tuple(
        wanted
        for wanted in limits
        if wanted.cgroup_id != answer.lift or not isinstance(wanted.setting, CpuMax | CpuMaxBurst)
    )
