"""The governors, in the order they decide, and who owns which interface file of which tier. Pure."""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu import allowance, bandwidth, cpuset, weight
from qosd.io import latency as io_latency
from qosd.io import limits as io_limits
from qosd.io import weight as io_weight
from qosd.memory import oom
from qosd.model import Snapshot, Tier
from qosd.plan import Desired

OWNERS: dict[tuple[Tier, str], str] = {
    (Tier.LS, "cpu.weight"): "cpu.weight",
    (Tier.BE, "cpu.weight"): "cpu.weight",
    (Tier.BE, "cpu.idle"): "cpu.weight",
    (Tier.BE, "cpu.max"): "cpu.bandwidth",
    (Tier.BE, "cpu.max.burst"): "cpu.bandwidth",
    (Tier.BE, "cpuset.cpus"): "cpu.cpuset",
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
    io_limits: io_limits.State = io_limits.State()


class Decision(msgspec.Struct, frozen=True, gc=False):
    desired: tuple[Desired, ...]
    allowance: allowance.Allowance | None


def decide(config: Config, prev: Snapshot | None, now: Snapshot, state: State) -> tuple[State, Decision]:
    allowance_state, granted = allowance.decide(config, prev, now, state.allowance)
    bandwidth_state, limits = bandwidth.decide(config, prev, now, granted, state.bandwidth)
    cpuset_state, masks = cpuset.decide(config, now, granted, state.cpuset)
    io_state, io_maxes = io_limits.decide(config, prev, now, state.io_limits)
    desired = (
        *weight.decide(config, now),
        *limits,
        *masks,
        *oom.decide(config, now),
        *io_weight.decide(config, now),
        *io_latency.decide(config, now),
        *io_maxes,
    )
    state = State(allowance_state, bandwidth_state, cpuset_state, io_limits=io_state)
    return state, Decision(desired, granted)
