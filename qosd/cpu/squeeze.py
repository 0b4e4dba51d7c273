"""The answer to a proven breach: BE's allowance times a factor that falls at once and comes back slowly.

Multiplicative down, additive up, as TCP does it (AIMD): of two errors, BE having too much costs LS latency
now, BE having too little costs a second of its work. The hold before the way up grows with each cut that
comes too soon after the last and shrinks again in calm (sideloader holds 10 s, 10 more each time, up to 30).

The engine runs the same functions between two ticks (`foresee`) that the next tick runs on the recorded
events (`decide`), so a replay of the snapshots comes to the same decisions. Pure.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu.allowance import Allowance
from qosd.cpu.bound import is_limited
from qosd.model import Breach, Snapshot, Tier
from qosd.plan import Desired, Input
from qosd.schema.fast import Fast

RULE = "cpu.squeeze"
CUT = "cut"
_CALM = 1e-9


class State(msgspec.Struct, frozen=True, gc=False):
    factor: float = 1.0
    cut_usec: int | None = None
    """When the last cut was made; None before the first."""
    hold_usec: int = 0
    at_usec: int = 0
    """The last tick."""
    cores: float | None = None
    """The allowance of the last tick, unsqueezed: what a cut between ticks takes its share of."""
    floor: float = 0.0
    cause: Breach | None = None
    """The last breach that led to a cut."""


def judge(fast: Fast, event: Breach) -> str:
    """Whether BE may be to blame: `cut`, or why not. What is not known is not blamed on anybody.

    A task held back by its own cpu.max waits for a CPU as well, and PSI counts it (kubernetes/enhancements
    #5062): without this test, LS throttling itself would cost BE its share.
    """
    if event.throttled_usec is None or event.be_cores is None:
        return "unknown"
    if event.throttled_usec > fast.self_throttled:
        return "self-throttled"
    if event.be_cores * 100 < fast.be_ran_pct or event.be_cores <= 0:
        return "be-idle"
    return CUT


def tighten(fast: Fast, event: Breach, state: State) -> tuple[State, str]:
    """One event: the state after it, and what it led to."""
    outcome = judge(fast, event)
    if outcome != CUT:
        return state, outcome
    if state.cores is None or event.be_cores is None:
        return state, "unknown"
    if state.cut_usec is not None and event.at_usec - state.cut_usec < fast.dwell:
        return state, "dwell"
    # A share of what BE may use means nothing to a BE that uses less than that.
    held = min(state.cores * state.factor, event.be_cores)
    floor = min(state.floor, state.cores)
    factor = max(held * fast.keep_pct / 100, floor) / state.cores
    if factor >= state.factor:
        return state, "floor"
    longer = state.hold_usec * 2 if state.factor < 1 else state.hold_usec
    hold = min(max(longer, int(fast.hold)), int(fast.hold_max))
    cut = msgspec.structs.replace(state, factor=factor, cut_usec=event.at_usec, hold_usec=hold, cause=event)
    return cut, CUT


def foresee(
    config: Config, events: tuple[Breach, ...], granted: Allowance, state: State
) -> tuple[Allowance, str]:
    """What the next tick will make of these events: the allowance now, and the last event's outcome."""
    outcome = "unknown"
    for event in events:
        state, outcome = tighten(config.fast, event, state)
    return _applied(granted, state), outcome


def decide(config: Config, now: Snapshot, granted: Allowance, state: State) -> tuple[State, Allowance]:
    """The allowance with the squeeze on it; `now.events` first, then the way back."""
    for event in now.events:
        state, _ = tighten(config.fast, event, state)
    state = _relax(config.fast, now.monotonic_usec, state)
    state = msgspec.structs.replace(
        state,
        at_usec=now.monotonic_usec,
        cores=granted.cores,
        floor=now.host.nr_cpus * config.cpu.bandwidth.floor_pct / 100,
    )
    return state, _applied(granted, state)


def marked(
    config: Config, now: Snapshot, left: Allowance, limits: tuple[Desired, ...]
) -> tuple[Desired, ...]:
    """The limits; those that are there for the squeeze alone only ever tighten.

    Where qosd has no limit in calm, one that stands is an operator's, and a breach is no reason to widen it.
    """
    if left.squeeze >= 1:
        return limits
    calm = {workload.id for workload in now.tier(Tier.BE) if is_limited(config, workload)}
    return tuple(
        each if each.cgroup_id in calm else msgspec.structs.replace(each, tighten_only=True)
        for each in limits
    )


def _relax(fast: Fast, now_usec: int, state: State) -> State:
    if state.cut_usec is None:
        return state
    free_from = max(state.at_usec, state.cut_usec + state.hold_usec)
    if state.factor < 1:
        seconds = max(now_usec - free_from, 0) / 1e6
        factor = state.factor + fast.up_pct / 100 * seconds
        return msgspec.structs.replace(state, factor=factor if factor < 1 - _CALM else 1.0)
    calm = min(max(now_usec - state.at_usec, 0) / max(int(fast.hold_max), 1), 64.0)
    return msgspec.structs.replace(state, hold_usec=int(state.hold_usec * 0.5**calm), cause=None)


def _applied(granted: Allowance, state: State) -> Allowance:
    if granted.cores is None or state.factor >= 1:
        return granted
    cores = max(granted.cores * state.factor, min(state.floor, granted.cores))
    reason = msgspec.structs.replace(
        granted.reason,
        text=f"BE may use {cores:.2f} CPUs: {state.factor:.0%} of its allowance of {granted.cores:.2f},"
        f" because {_cause(state.cause)}; {granted.reason.text}",
        inputs=(*granted.reason.inputs, Input("squeeze", round(state.factor, 3), "of the allowance")),
        clamp="squeeze",
    )
    return msgspec.structs.replace(granted, cores=cores, reason=reason, squeeze=state.factor)


def _cause(event: Breach | None) -> str:
    if event is None:
        return "of an earlier breach"
    return (
        f"{event.signal} of LS cgroup {event.victim} was {event.value:g} (limit {event.threshold:g})"
        f" while BE used {event.be_cores or 0:.2f} CPUs and LS was not held by limits of its own"
    )
