"""What BE may use of the host's CPUs now: capacity x X - what LS and the system use, within bounds.

The formula is Baidu's and koordlet's (`cpu_suppress.go`); the asymmetry (down at once, up by a share of
capacity) is koordlet's ramp, relative to capacity because growth relative to the last value crawls up from
a small one. Pure.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu import predict
from qosd.model import Snapshot, Tier, Workload, printable
from qosd.plan import Input, Reason
from qosd.schema.cpu import CpuBandwidth, Estimate

RULE = "cpu.allowance"


class Usage(msgspec.Struct, frozen=True, gc=False):
    """CPUs in use between two snapshots; `capacity` is what the hypervisor left us of them."""

    monotonic_usec: int
    ls: float
    be: float
    system: float
    capacity: float

    @property
    def other(self) -> float:
        """Everything that is not BE: the part that BE must leave alone."""
        return self.ls + self.system


class State(msgspec.Struct, frozen=True, gc=False):
    history: tuple[Usage, ...] = ()
    cores: float | None = None
    unknown_ticks: int = 0
    learned: predict.Learned = {}


class Allowance(msgspec.Struct, frozen=True, gc=False):
    """`cores` for all of BE together, None while qosd does not know enough to limit anybody."""

    cores: float | None
    usage: Usage | None
    reason: Reason
    squeeze: float = 1.0
    """The part of it that interference or an answered breach leaves; `cores` has it in already."""


class Other(msgspec.Struct, frozen=True, gc=False):
    """What LS and the system are taken to use."""

    cores: float
    words: str
    inputs: tuple[Input, ...] = ()


def decide(config: Config, prev: Snapshot | None, now: Snapshot, state: State) -> tuple[State, Allowance]:
    usage = measure(prev, now, state.history[-1] if state.history else None)
    if usage is None:
        return _hold(config.cpu.bandwidth, state)
    bandwidth = config.cpu.bandwidth
    state, other = _estimate(config, prev, now, usage, state)
    wanted = usage.capacity * config.host.cpu_target_pct / 100 - other.cores
    cores, clamp = _limit(wanted, usage.capacity, state.cores, bandwidth)
    reason = Reason(
        RULE,
        f"BE may use {cores:.2f} CPUs: {usage.capacity:.2f} x {config.host.cpu_target_pct:g} %"
        f" - {other.cores:.2f} {other.words}" + (f" = {wanted:.2f}, {clamp}" if clamp else ""),
        (
            Input("ls", round(usage.ls, 3), "CPUs"),
            Input("system", round(usage.system, 3), "CPUs"),
            *other.inputs,
            Input("be", round(usage.be, 3), "CPUs"),
            Input("capacity", round(usage.capacity, 3), "CPUs"),
        ),
        threshold=f"host.cpu_target_pct = {config.host.cpu_target_pct:g} %",
        margin=f"{wanted - cores:+.2f} CPUs to the formula's own result",
        clamp=clamp,
    )
    state = msgspec.structs.replace(state, cores=cores, unknown_ticks=0)
    return state, Allowance(cores, usage, reason)


def _estimate(
    config: Config, prev: Snapshot | None, now: Snapshot, usage: Usage, state: State
) -> tuple[State, Other]:
    """LS's and the system's use, by the last tick and whatever else the configuration wants asked."""
    bandwidth = config.cpu.bandwidth
    used = "used by LS and system"
    match bandwidth.estimate:
        case Estimate.LAST:
            return msgspec.structs.replace(state, history=(usage,), learned={}), Other(usage.other, used)
        case Estimate.MEAN:
            since = now.monotonic_usec - bandwidth.mean
            history = (*(past for past in state.history if past.monotonic_usec > since), usage)
            mean = sum(past.other for past in history) / len(history)
            inputs = (Input("mean of ls + system", round(mean, 3), "CPUs"),)
            kept = msgspec.structs.replace(state, history=history, learned={})
            return kept, Other(max(usage.other, mean), used, inputs)
        case Estimate.PREDICTED:
            return _predict(config, prev, now, usage, state)


def _predict(
    config: Config, prev: Snapshot | None, now: Snapshot, usage: Usage, state: State
) -> tuple[State, Other]:
    settings = config.prediction
    elapsed = now.monotonic_usec - prev.monotonic_usec if prev is not None else 0
    uses = {predict.SYSTEM: usage.system}
    for workload in now.tier(Tier.LS):
        before = prev.workload(workload.id) if prev is not None else None
        uses[printable(workload.path)] = workload_cores(before, workload, elapsed, now.host.nr_cpus) or 0.0
    learned = predict.learn(settings, uses, elapsed / 1e6, now.monotonic_usec, state.learned)
    expected = predict.expect(settings, uses, now.monotonic_usec, learned)
    words = f"expected of LS and system (p{settings.percentile:g} + {settings.margin_pct:g} %)"
    if expected.cold:
        words += (
            f", the last tick for {len(expected.cold)} of {len(uses)} that are cold:"
            f" {expected.known_sec:.0f} of {settings.cold / 1e6:.0f} s learned"
        )
    inputs = (
        Input("expected ls + system", round(expected.cores, 3), "CPUs"),
        Input("cold", len(expected.cold), "workloads"),
    )
    kept = msgspec.structs.replace(state, history=(usage,), learned=learned)
    if usage.other >= expected.cores:
        return kept, Other(usage.other, f"used by LS and system, not less than what is {words}", inputs)
    return kept, Other(expected.cores, words, inputs)


def squeezed(config: Config, allowance: Allowance, factor: float) -> Allowance:
    """What interference leaves of the allowance, unless less is left already; the floor holds."""
    if factor >= allowance.squeeze or allowance.cores is None or allowance.usage is None:
        return allowance
    whole = allowance.cores / allowance.squeeze
    floor = allowance.usage.capacity * config.cpu.bandwidth.floor_pct / 100
    cores = min(max(whole * factor, floor), whole)
    reason = msgspec.structs.replace(
        allowance.reason,
        text=f"BE may use {cores:.2f} CPUs, {factor:.0%} of its allowance, since LS waits through it:"
        f" {allowance.reason.text}",
        clamp="interference",
    )
    return Allowance(cores, allowance.usage, reason, factor)


def _hold(bandwidth: CpuBandwidth, state: State) -> tuple[State, Allowance]:
    """Use is unknown: keep what is in force, and give it up when that lasts too long. Never tighten."""
    unknown_ticks = state.unknown_ticks + 1
    if state.cores is None or unknown_ticks > bandwidth.release_ticks:
        text = "CPU use is unknown; BE is not limited"
        lost = msgspec.structs.replace(state, history=(), cores=None, unknown_ticks=unknown_ticks)
        return lost, Allowance(None, None, Reason(RULE, text))
    text = f"CPU use is unknown for {unknown_ticks} ticks; the allowance of {state.cores:.2f} CPUs is held"
    held = msgspec.structs.replace(state, unknown_ticks=unknown_ticks)
    usage = state.history[-1] if state.history else None
    return held, Allowance(state.cores, usage, Reason(RULE, text, clamp="unknown input"))


def _limit(
    wanted: float, capacity: float, current: float | None, bandwidth: CpuBandwidth
) -> tuple[float, str | None]:
    """The wanted cores within floor, deadband and ramp, and which of them bound."""
    floor = capacity * bandwidth.floor_pct / 100
    clamp = None
    if wanted < floor:
        wanted, clamp = floor, f"raised to the floor of {floor:.2f}"
    wanted = min(wanted, capacity)
    if current is None:
        return wanted, clamp
    if wanted < current:
        if current - wanted <= capacity * bandwidth.deadband_down_pct / 100:
            return current, clamp or f"kept at {current:.2f} within the deadband"
        return wanted, clamp
    if wanted - current <= capacity * bandwidth.deadband_up_pct / 100 and wanted < capacity:
        return current, f"kept at {current:.2f} within the deadband"
    step = capacity * bandwidth.up_pct / 100
    if wanted > current + step:
        return current + step, f"ramped up by {step:.2f} a tick"
    return wanted, clamp


def measure(prev: Snapshot | None, now: Snapshot, last: Usage | None) -> Usage | None:
    """CPU use between two snapshots, None where a number is missing or went backwards.

    System is what is left of the host's busy time; where BE's set changed in between, its past use is not
    known and the last system value stands in.
    """
    if prev is None or prev.host.busy_usec is None or now.host.busy_usec is None:
        return None
    elapsed = now.monotonic_usec - prev.monotonic_usec
    busy = now.host.busy_usec - prev.host.busy_usec
    if elapsed <= 0 or busy < 0:
        return None
    steal = max((now.host.steal_usec or 0) - (prev.host.steal_usec or 0), 0) / elapsed
    ls = tier_cores(prev, now, Tier.LS, elapsed)
    be = tier_cores(prev, now, Tier.BE, elapsed)
    if ls is None or be is None:
        return None
    system = max(busy / elapsed - ls - be, 0.0)
    if last is not None and {w.id for w in prev.tier(Tier.BE)} != {w.id for w in now.tier(Tier.BE)}:
        system = last.system
    capacity = max(now.host.nr_cpus - steal, 0.1)
    return Usage(now.monotonic_usec, ls, be, system, capacity)


def tier_cores(prev: Snapshot, now: Snapshot, tier: Tier, elapsed_usec: int) -> float | None:
    total = 0.0
    for workload in now.tier(tier):
        cores = workload_cores(prev.workload(workload.id), workload, elapsed_usec, now.host.nr_cpus)
        if cores is None:
            return None
        total += cores
    return total


def workload_cores(before: Workload | None, after: Workload, elapsed_usec: int, nr_cpus: int) -> float | None:
    """One workload's use. A cgroup first seen now counts from its creation, if that can be so."""
    if after.sample.cpu is None:
        return None
    used = after.sample.cpu.usage_usec
    if before is not None:
        if before.sample.cpu is None:
            return None
        used -= before.sample.cpu.usage_usec
    elif used > elapsed_usec * nr_cpus:
        return None
    return used / elapsed_usec if used >= 0 else None
