"""The governors, in the order they decide, and who owns which interface file of which tier. Pure."""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu import allowance, bandwidth, cpuset, weight
from qosd.interference import baseline
from qosd.model import Snapshot, Tier
from qosd.plan import Desired

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
    baseline: baseline.State = baseline.State()


class Decision(msgspec.Struct, frozen=True, gc=False):
    desired: tuple[Desired, ...]
    allowance: allowance.Allowance | None
    readings: tuple[baseline.Reading, ...] = ()
    """How LS does by what the probes count."""


def decide(config: Config, prev: Snapshot | None, now: Snapshot, state: State) -> tuple[State, Decision]:
    allowance_state, granted = allowance.decide(config, prev, now, state.allowance)
    bandwidth_state, limits = bandwidth.decide(config, prev, now, granted, state.bandwidth)
    cpuset_state, masks = cpuset.decide(config, now, granted, state.cpuset)
    baseline_state, readings = baseline.decide(config.ebpf.baseline, prev, now, state.baseline)
    desired = (*weight.decide(config, now), *limits, *masks)
    following = State(allowance_state, bandwidth_state, cpuset_state, baseline_state)
    return following, Decision(desired, granted, readings)
