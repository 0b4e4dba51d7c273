"""The governors, in the order they decide, and who owns which interface file of which tier. Pure."""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu import allowance, bandwidth, cpuset, squeeze, weight
from qosd.model import Breach, Snapshot, Tier
from qosd.plan import Desired, Reason

OWNERS: dict[tuple[Tier, str], str] = {
    (Tier.LS, "cpu.weight"): "cpu.weight",
    (Tier.BE, "cpu.weight"): "cpu.weight",
    (Tier.BE, "cpu.idle"): "cpu.weight",
    (Tier.BE, "cpu.max"): "cpu.bandwidth",
    (Tier.BE, "cpu.max.burst"): "cpu.bandwidth",
    (Tier.BE, "cpuset.cpus"): "cpu.cpuset",
}
"""One governor for each (tier, interface file): nothing is merged, so nothing can be merged wrongly."""

WATCHED: dict[Tier, tuple[str, ...]] = {
    tier: tuple(file for owned, file in OWNERS if owned is tier) for tier in Tier
}


class State(msgspec.Struct, frozen=True, gc=False):
    allowance: allowance.State = allowance.State()
    bandwidth: bandwidth.State = bandwidth.State()
    cpuset: cpuset.State = cpuset.State()
    squeeze: squeeze.State = squeeze.State()


class Decision(msgspec.Struct, frozen=True, gc=False):
    desired: tuple[Desired, ...]
    allowance: allowance.Allowance | None
    squeeze: float = 1.0


def decide(config: Config, prev: Snapshot | None, now: Snapshot, state: State) -> tuple[State, Decision]:
    allowance_state, granted = allowance.decide(config, prev, now, state.allowance)
    squeeze_state, left = squeeze.decide(config, now, granted, state.squeeze)
    bandwidth_state, limits = bandwidth.decide(config, prev, now, left, state.bandwidth)
    cpuset_state, masks = cpuset.decide(config, now, granted, state.cpuset)
    desired = (*weight.decide(config, now), *limits, *masks)
    following = State(allowance_state, bandwidth_state, cpuset_state, squeeze_state)
    return following, Decision(desired, left, squeeze_state.factor)


def react(
    config: Config, prev: Snapshot | None, now: Snapshot, state: State, events: tuple[Breach, ...]
) -> tuple[tuple[Desired, ...], str]:
    """What the last of these events, reported since `now`, wants written before the next tick, if anything.

    The state stays as it is: the next tick comes to the same conclusion from the events in its snapshot.
    """
    known = state.allowance
    usage = known.history[-1] if known.history else None
    reason = Reason(squeeze.RULE, "between two ticks")
    granted = allowance.Allowance(known.cores, usage, reason)
    left, outcome = squeeze.foresee(config, events, granted, state.squeeze)
    if outcome != squeeze.CUT:
        return (), outcome
    _, limits = bandwidth.decide(config, prev, now, left, state.bandwidth)
    return limits, outcome
