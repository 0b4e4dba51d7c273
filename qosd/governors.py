"""The governors, in the order they decide, and who owns which interface file of which tier. Pure."""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu import allowance, bandwidth, cpuset, weight
from qosd.interference import governor as interference
from qosd.model import CpuMax, CpuMaxBurst, Snapshot, Tier
from qosd.plan import Desired

OWNERS: dict[tuple[Tier, str], str] = {
    (Tier.LS, "cpu.weight"): "cpu.weight",
    (Tier.BE, "cpu.weight"): "cpu.weight",
    (Tier.BE, "cpu.idle"): "cpu.weight",
    (Tier.BE, "cpu.max"): "cpu.bandwidth",
    (Tier.BE, "cpu.max.burst"): "cpu.bandwidth",
    (Tier.BE, "cpuset.cpus"): "cpu.cpuset",
    (Tier.BE, "cgroup.freeze"): "interference.ladder",
}
"""One governor for each (tier, interface file): nothing is merged, so nothing can be merged wrongly."""

WATCHED: dict[Tier, tuple[str, ...]] = {
    tier: tuple(file for owned, file in OWNERS if owned is tier) for tier in Tier
}


class State(msgspec.Struct, frozen=True, gc=False):
    allowance: allowance.State = allowance.State()
    bandwidth: bandwidth.State = bandwidth.State()
    cpuset: cpuset.State = cpuset.State()
    interference: interference.State = interference.State()


class Decision(msgspec.Struct, frozen=True, gc=False):
    desired: tuple[Desired, ...]
    allowance: allowance.Allowance | None
    interference: interference.Outcome = interference.Outcome()


def decide(config: Config, prev: Snapshot | None, now: Snapshot, state: State) -> tuple[State, Decision]:
    interference_state, found = interference.decide(config, prev, now, state.interference)
    allowance_state, granted = allowance.decide(config, prev, now, state.allowance)
    granted = allowance.squeezed(config, granted, found.answer.squeeze)
    bandwidth_state, limits = bandwidth.decide(config, prev, now, granted, state.bandwidth)
    cpuset_state, masks = cpuset.decide(config, now, granted, state.cpuset)
    desired = (*weight.decide(config, now), *_without_lifted(limits, found.answer), *masks, *found.desired)
    following = State(allowance_state, bandwidth_state, cpuset_state, interference_state)
    return following, Decision(desired, granted, found)


def _without_lifted(limits: tuple[Desired, ...], answer: interference.Answer) -> tuple[Desired, ...]:
    """Without the CPU limit of the workload in which something is about to be killed."""
    return tuple(
        wanted
        for wanted in limits
        if wanted.cgroup_id != answer.lift or not isinstance(wanted.setting, CpuMax | CpuMaxBurst)
    )
