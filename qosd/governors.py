"""The governors, in the order they decide, and who owns which interface file of which tier. Pure."""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu import allowance, bandwidth, burst, cpuset, overrun, pools, squeeze, weight, windows
from qosd.cpu.view import CpuView
from qosd.interference import baseline
from qosd.io import decide as io
from qosd.memory import oom
from qosd.model import Breach, Snapshot, Tier
from qosd.plan import Desired, Reason

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
    squeeze: squeeze.State = squeeze.State()
    io: io.State = io.State()


class Decision(msgspec.Struct, frozen=True, gc=False):
    desired: tuple[Desired, ...]
    allowance: allowance.Allowance | None
    cpu: CpuView = CpuView()
    readings: tuple[baseline.Reading, ...] = ()
    """How LS does by what the probes count."""
    squeeze: float = 1.0


def decide(config: Config, prev: Snapshot | None, now: Snapshot, state: State) -> tuple[State, Decision]:
    config, opened = windows.apply(config, now)
    allowance_state, granted = allowance.decide(config, prev, now, state.allowance)
    granted = windows.explained(granted, opened)
    squeeze_state, left = squeeze.decide(config, now, granted, state.squeeze)
    pools_state, budgets, pool_views = pools.decide(config, prev, now, left, state.pools)
    dealt = bandwidth.decide(squeeze.enforced(config, left), prev, now, left, budgets, state.bandwidth)
    bandwidth_state, limits = dealt[0], squeeze.marked(config, now, left, dealt[1])
    overruns = overrun.decide(config, prev, now, state.overruns)
    asked = cpuset.Asked(granted, budgets, overruns)
    cpuset_state, masks = cpuset.decide(config, prev, now, asked, state.cpuset)
    burst_state, lent, bursts = burst.decide(config, prev, now, granted.usage, state.burst)
    baseline_state, readings = baseline.decide(config.ebpf.baseline, prev, now, state.baseline)
    io_state, ios = io.decide(config, prev, now, state.io)
    desired = (*weight.decide(config, now), *limits, *masks, *lent, *oom.decide(config, now), *ios)
    following = State(
        allowance_state, bandwidth_state, cpuset_state, pools_state, overruns, burst_state, baseline_state
    )
    following = msgspec.structs.replace(following, io=io_state, squeeze=squeeze_state)
    view = CpuView(opened, pool_views, bursts, overrun.ineffective(now, overruns))
    return following, Decision(desired, left, view, readings, squeeze_state.factor)


def react(
    config: Config, prev: Snapshot | None, now: Snapshot, state: State, events: tuple[Breach, ...]
) -> tuple[tuple[Desired, ...], str]:
    """What the last of these events, reported since `now`, wants written before the next tick, if anything.

    The state stays as it is: the next tick comes to the same conclusion from the events in its snapshot.
    """
    config, _ = windows.apply(config, now)
    known = state.allowance
    usage = known.history[-1] if known.history else None
    granted = allowance.Allowance(known.cores, usage, Reason(squeeze.RULE, "between two ticks"))
    left, outcome = squeeze.foresee(config, events, granted, state.squeeze)
    if outcome != squeeze.CUT:
        return (), outcome
    _, budgets, _ = pools.decide(config, prev, now, left, state.pools)
    _, limits = bandwidth.decide(squeeze.enforced(config, left), prev, now, left, budgets, state.bandwidth)
    return squeeze.marked(config, now, left, limits), outcome
