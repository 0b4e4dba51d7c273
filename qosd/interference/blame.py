"""The blame test: whether BE causes what an LS workload suffers, or it itself, other LS, or the system. Pure.

Nothing is ever answered against BE that BE did not do in that very interval.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

from qosd.interference import own
from qosd.interference.activity import Doing, Frame, doings
from qosd.interference.signals import Kind, Signal
from qosd.model import CgroupId, Tier, Workload, printable
from qosd.plan import Input

_INFERRED = 0.5  # being active at the same time is less than having been seen
_COLD = 0.5
_WORST = 5


class Cause(enum.StrEnum):
    BE = "be"
    SELF = "self"
    LS = "ls"
    SYSTEM = "system"
    UNKNOWN = "unknown"


class Culprit(msgspec.Struct, frozen=True, gc=False):
    id: CgroupId | None
    path: str
    tier: Tier | None
    share: float


Doings = tuple[Doing, ...]


class Blame(msgspec.Struct, frozen=True, gc=False):
    cause: Cause
    confidence: float
    """The share of the cause in what was done; halved if that is all there is, and again without baseline."""
    text: str
    culprits: tuple[Culprit, ...] = ()
    """The largest first."""
    evidence: tuple[Input, ...] = ()
    seen: Doings = ()
    """Who was seen to cause this reading alone; empty: nobody saw it."""


class Shares(NamedTuple):
    """From which share on BE is to blame, in per cent."""

    inferred: float
    """Of what was done: if there would be no breach without it."""
    seen: float
    """Of what was seen to cause it."""


def judge(signal: Signal, frame: Frame, shares: Shares, earlier: tuple[Doings, ...] = ()) -> Blame:
    """`earlier`: who was seen to cause the readings before this one, if they were at the threshold too."""
    before, after = frame.prev.workload(signal.victim), frame.now.workload(signal.victim)
    if before is None or after is None:
        return Blame(Cause.UNKNOWN, 0.0, "the victim was not there for the whole interval")
    limit = _own_limit(signal.kind, frame, before, after)
    if limit is not None:
        text = f"it waits for its own limit: {limit.name} rose by {limit.value:g} {limit.unit}"
        return Blame(Cause.SELF, 1.0, text, evidence=(limit,))
    named = _named(signal, frame)
    if named:
        blame = _of(signal, _together((*earlier, named)), shares, seen=True)
        return msgspec.structs.replace(blame, seen=named)
    doing = doings(signal.kind, frame)
    if doing is None:
        return Blame(Cause.UNKNOWN, 0.0, "who did what in that interval is not known")
    blame = _of(signal, doing, shares, seen=False)
    return msgspec.structs.replace(blame, confidence=round(blame.confidence * _INFERRED, 3))


def _own_limit(kind: Kind, frame: Frame, before: Workload, after: Workload) -> Input | None:
    match kind:
        case Kind.MEMORY:
            return own.memory(before, after)
        case Kind.IO:
            return None
        case Kind.CPU | Kind.LATENCY:
            return own.cpu(frame.prev, frame.now, after.path)


def _named(signal: Signal, frame: Frame) -> Doings:
    """The culprits that were seen: whoever is in no workload is the system.

    The runq probe has seen who had the CPUs, whichever signal says that the victim waited for one.
    """
    named = []
    seen = frame.seen.get(signal.victim, ()) if signal.kind is Kind.CPU else ()
    for cgroup_id, share in signal.culprits or seen:
        workload = frame.now.workload(cgroup_id)
        if share > 0:
            tier = workload.tier if workload is not None else None
            path = workload.path if workload is not None else "system"
            named.append(Doing(cgroup_id if workload is not None else None, path, tier, share))
    return tuple(named)


def _together(readings: tuple[Doings, ...]) -> Doings:
    """One tick's waits are few, and who had them is chance: all readings that make a verdict tell who did."""
    amounts: dict[CgroupId | None, Doing] = {}
    for each in (one for reading in readings for one in reading):
        known = amounts.get(each.id)
        amounts[each.id] = each._replace(amount=each.amount + (known.amount if known else 0.0))
    return tuple(amounts.values())


def _of(signal: Signal, doing: Doings, shares: Shares, *, seen: bool) -> Blame:
    total = sum(each.amount for each in doing)
    if total <= 0:
        return Blame(Cause.UNKNOWN, 0.0, f"nobody did anything with {_resource(signal.kind)}")
    parts = dict.fromkeys((Cause.BE, Cause.SELF, Cause.LS, Cause.SYSTEM), 0.0)
    for each in doing:
        parts[_cause(each, signal.victim)] += each.amount / total
    judged = _by_what_was_seen if seen else _by_what_was_done
    cause = judged(signal, parts, shares)
    confidence = parts[cause] * (_COLD if signal.cold else 1.0)
    what = _SEEN if seen else f"did {{:.0%}} of what was done with {_resource(signal.kind)}"
    text = f"{_WHO[cause]} {what.format(parts[cause])}"
    return Blame(cause, round(confidence, 3), text, _culprits(signal, doing, total))


def _by_what_was_seen(_signal: Signal, parts: dict[Cause, float], shares: Shares) -> Cause:
    """Whoever had more than others, and BE from its share on: it does not pay for what others do as well."""
    if parts[Cause.BE] * 100 >= shares.seen:
        return Cause.BE
    return max((Cause.SELF, Cause.LS, Cause.SYSTEM), key=lambda each: parts[each])


def _by_what_was_done(signal: Signal, parts: dict[Cause, float], shares: Shares) -> Cause:
    # Of memory, which does not come back by waiting, BE must have the largest part.
    part = parts[Cause.BE]
    if signal.kind is not Kind.MEMORY and part * 100 >= shares.inferred and _would_end(signal, part):
        return Cause.BE
    return max(parts, key=lambda each: parts[each])


def _would_end(signal: Signal, share: float) -> bool:
    """Whether there would be no breach without this part; else it is theirs who have most of it."""
    return signal.value * (1 - share) < signal.threshold


def _cause(each: Doing, victim: CgroupId) -> Cause:
    if each.id == victim:
        return Cause.SELF
    if each.tier is None:
        return Cause.SYSTEM
    return Cause.BE if each.tier is Tier.BE else Cause.LS


def _culprits(signal: Signal, doing: tuple[Doing, ...], total: float) -> tuple[Culprit, ...]:
    others = sorted((each for each in doing if each.id != signal.victim), key=lambda each: -each.amount)
    return tuple(
        Culprit(each.id, printable(each.path), each.tier, round(each.amount / total, 4))
        for each in others[:_WORST]
    )


def _resource(kind: Kind) -> str:
    return {Kind.CPU: "the CPUs", Kind.LATENCY: "the CPUs", Kind.MEMORY: "memory", Kind.IO: "IO"}[kind]


_SEEN = "had {:.0%} of the CPU time that it waited for on top of the usual"
_WHO = {
    Cause.BE: "BE",
    Cause.SELF: "it itself",
    Cause.LS: "other LS workloads",
    Cause.SYSTEM: "the system",
}
