"""The blame test: whether BE causes what an LS workload suffers, or it itself, other LS, or the system. Pure.

Nothing is ever answered against BE that BE did not do in that very interval.
"""

from __future__ import annotations

import enum

import msgspec

from qosd.interference import heard
from qosd.interference.activity import Doing, Frame, doings
from qosd.interference.signals import Kind, Signal
from qosd.model import CgroupId, CpuStat, Snapshot, Tier, Workload, printable
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


class Blame(msgspec.Struct, frozen=True, gc=False):
    cause: Cause
    confidence: float
    """The share of the cause in what was done; halved if that is all there is, and again without baseline."""
    text: str
    culprits: tuple[Culprit, ...] = ()
    """The largest first."""
    evidence: tuple[Input, ...] = ()


def judge(signal: Signal, frame: Frame, be_share_pct: float) -> Blame:
    before, after = frame.prev.workload(signal.victim), frame.now.workload(signal.victim)
    if before is None or after is None:
        return Blame(Cause.UNKNOWN, 0.0, "the victim was not there for the whole interval")
    own = own_limit(signal.kind, frame, before, after)
    if own is not None:
        text = f"it waits for its own limit: {own.name} rose by {own.value:g} {own.unit}"
        return Blame(Cause.SELF, 1.0, text, evidence=(own,))
    named = _named(signal, frame.now)
    doing = named or doings(signal.kind, frame)
    if doing is None:
        return Blame(Cause.UNKNOWN, 0.0, "who did what in that interval is not known")
    blame = _of(signal, doing, be_share_pct)
    return (
        blame if named else msgspec.structs.replace(blame, confidence=round(blame.confidence * _INFERRED, 3))
    )


def own_limit(kind: Kind, frame: Frame, before: Workload, after: Workload) -> Input | None:
    """The counter that says that the victim ran into a limit of its own, and by how much it rose.

    A throttled cgroup shows as cpu pressure, and memory.high of its own as memory pressure. cpu.stat counts
    a cgroup's own quota only, so the cgroups below are asked too; memory.events sums them up itself.
    """
    if kind is Kind.MEMORY:
        return _own_memory(before, after)
    if kind is Kind.IO:
        return None
    then, since = _limits(after.path, frame.prev), _limits(after.path, frame.now)
    # Cold cgroups are read in turns: only who was read both times can have risen.
    both = [(then[cgroup_id], stat) for cgroup_id, stat in since.items() if cgroup_id in then]
    throttled = sum(max((b.throttled_usec or 0) - (a.throttled_usec or 0), 0) for a, b in both)
    if throttled > 0:
        return Input("throttled_usec", float(throttled), "us")
    # Held over several periods in one go it has nothing in throttled_usec until that ends: qosd/held.py.
    ends = sum(max((b.nr_throttled or 0) - (a.nr_throttled or 0), 0) for a, b in both)
    return Input("nr_throttled", float(ends), "periods") if ends > 0 else None


def _own_memory(before: Workload, after: Workload) -> Input | None:
    for name in ("high", "max"):
        rose = after.memory_events.get(name, 0) - before.memory_events.get(name, 0)
        if rose > 0:
            return Input(f"memory.events {name}", float(rose), "times")
    return None


def _limits(path: str, snapshot: Snapshot) -> dict[CgroupId, CpuStat]:
    samples = [workload.sample for workload in snapshot.workloads if workload.path == path]
    samples += [below for below in snapshot.descendants if below.path.startswith(path + "/")]
    return {sample.id: sample.cpu for sample in samples if sample.cpu is not None}


def _named(signal: Signal, now: Snapshot) -> tuple[Doing, ...]:
    """The culprits that were seen: whoever is in no workload is the system.

    The runq probe has seen who had the CPUs, whichever signal says that the victim waited for one.
    """
    named = []
    for cgroup_id, share in signal.culprits or _seen(signal, now):
        workload = now.workload(cgroup_id)
        if share > 0:
            tier = workload.tier if workload is not None else None
            path = workload.path if workload is not None else "system"
            named.append(Doing(cgroup_id if workload is not None else None, path, tier, share))
    return tuple(named)


def _seen(signal: Signal, now: Snapshot) -> tuple[tuple[CgroupId, float], ...]:
    if signal.kind is not Kind.CPU:
        return ()
    return heard.culprits(next((each for each in now.probed if each.id == signal.victim), None))


def _of(signal: Signal, doing: tuple[Doing, ...], be_share_pct: float) -> Blame:
    total = sum(each.amount for each in doing)
    if total <= 0:
        return Blame(Cause.UNKNOWN, 0.0, f"nobody did anything with {_resource(signal.kind)}")
    shares = dict.fromkeys((Cause.BE, Cause.SELF, Cause.LS, Cause.SYSTEM), 0.0)
    for each in doing:
        shares[_cause(each, signal.victim)] += each.amount / total
    cause = max(shares, key=lambda each: shares[each])
    # Of memory, which does not come back by waiting, BE must have the largest part.
    part = shares[Cause.BE]
    if signal.kind is not Kind.MEMORY and part * 100 >= be_share_pct and _would_end(signal, part):
        cause = Cause.BE
    confidence = shares[cause] * (_COLD if signal.cold else 1.0)
    text = f"{_WHO[cause]} did {shares[cause]:.0%} of what was done with {_resource(signal.kind)}"
    return Blame(cause, round(confidence, 3), text, _culprits(signal, doing, total))


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


_WHO = {
    Cause.BE: "BE",
    Cause.SELF: "it itself",
    Cause.LS: "other LS workloads",
    Cause.SYSTEM: "the system",
}
