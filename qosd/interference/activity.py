"""Who did what between two snapshots with the CPUs, memory and IO. Pure.

This is the ground for blame where nobody saw the culprit itself: whoever did nothing cannot have caused it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from qosd.interference.signals import Kind
from qosd.model import CgroupId, DiskIo, Pressure, Snapshot, Tier, Workload

_LEAST = {Kind.CPU: 0.01, Kind.LATENCY: 0.01, Kind.MEMORY: float(1 << 20), Kind.IO: 0.001}
"""What counts as doing something: CPUs, bytes, MiB or seconds."""
_MIB = 1 << 20


class Doing(NamedTuple):
    """What one workload did, or the system (no id): CPUs, bytes of growth, MiB of IO, or seconds of wait."""

    id: CgroupId | None
    path: str
    tier: Tier | None
    amount: float


class Frame(NamedTuple):
    """The two snapshots and what else the question depends on."""

    prev: Snapshot
    now: Snapshot
    tightened: frozenset[Kind] = frozenset()
    """What qosd itself makes BE wait for: there BE's waiting says nothing."""
    scarce: bool = False
    """Memory is so short that whoever holds it is in the way, grown or not."""
    seen: Mapping[CgroupId, tuple[tuple[CgroupId, float], ...]] = MappingProxyType({})
    """By victim: whom the runq probe saw on the CPUs that it waited for."""


def doings(kind: Kind, frame: Frame) -> tuple[Doing, ...] | None:
    """Everybody's doing, the victim's included; None where it is not known."""
    match kind:
        case Kind.CPU | Kind.LATENCY:
            found = _cpu(frame.prev, frame.now)
        case Kind.MEMORY:
            found = _memory(frame)
        case Kind.IO:
            found = _io(frame)
    if found is None:
        return None
    return tuple(each for each in found if each.amount >= _LEAST[kind])


def be_share_of_capacity(prev: Snapshot, now: Snapshot) -> float | None:
    """The CPU use of all of BE as a share of all CPUs; None where it is not known."""
    doing = _cpu(prev, now)
    if doing is None:
        return None
    return sum(each.amount for each in doing if each.tier is Tier.BE) / now.host.nr_cpus


def _pairs(prev: Snapshot, now: Snapshot) -> list[tuple[Workload, Workload]] | None:
    """Each workload then and now; None when one came meanwhile, so that its past is not known."""
    pairs = [(prev.workload(workload.id), workload) for workload in now.workloads]
    known = [(before, after) for before, after in pairs if before is not None]
    return known if len(known) == len(pairs) else None


def _cpu(prev: Snapshot, now: Snapshot) -> list[Doing] | None:
    pairs = _pairs(prev, now)
    elapsed = now.monotonic_usec - prev.monotonic_usec
    if pairs is None or elapsed <= 0 or prev.host.busy_usec is None or now.host.busy_usec is None:
        return None
    doing: list[Doing] = []
    for before, after in pairs:
        if before.sample.cpu is None or after.sample.cpu is None:
            return None
        used = after.sample.cpu.usage_usec - before.sample.cpu.usage_usec
        if used < 0:
            return None
        doing.append(Doing(after.id, after.path, after.tier, used / elapsed))
    busy = (now.host.busy_usec - prev.host.busy_usec) / elapsed
    return [*doing, _system(busy, doing)]


def _memory(frame: Frame) -> list[Doing] | None:
    """Growth, if there is any. Where BE did not grow: what each holds, when scarce; else who turns it over.

    A frozen BE does not grow, and is in the way all the same.
    """
    pairs = _pairs(frame.prev, frame.now)
    sizes = [(before.sample.memory_current, after.sample.memory_current) for before, after in pairs or ()]
    if pairs is None or any(None in size for size in sizes):
        return None
    growths = [float(max((new or 0) - (old or 0), 0)) for old, new in sizes]
    grown = _doing(pairs, growths)
    growth = [*grown, _system(_taken(frame), grown)]
    least = _LEAST[Kind.MEMORY]
    if any(each.tier is Tier.BE and each.amount >= least for each in grown):
        return growth
    held = _doing(pairs, [float(new or 0) for _, new in sizes])
    if frame.scarce:
        used = (frame.now.host.mem_total or 0) - (frame.now.host.mem_available or 0)
        return [*held, _system(float(used), held)]
    if Kind.MEMORY in frame.tightened or any(each.amount >= least for each in growth):
        return growth
    waits = [_waited(before.sample.memory_pressure, after.sample.memory_pressure) for before, after in pairs]
    return _doing(pairs, [each.amount * min(wait, 1.0) for each, wait in zip(held, waits, strict=True)])


def _doing(pairs: list[tuple[Workload, Workload]], amounts: list[float]) -> list[Doing]:
    return [
        Doing(after.id, after.path, after.tier, amount)
        for (_, after), amount in zip(pairs, amounts, strict=True)
    ]


def _system(total: float, doing: list[Doing]) -> Doing:
    return Doing(None, "system", None, max(total - sum(each.amount for each in doing), 0.0))


def _taken(frame: Frame) -> float:
    """How much less MemAvailable is; not known is not taken."""
    before, after = frame.prev.host.mem_available, frame.now.host.mem_available
    return 0.0 if before is None or after is None else float(max(before - after, 0))


def _io(frame: Frame) -> list[Doing] | None:
    """MiB read and written. Without io.stat: whoever waited for IO was doing some, unless qosd made it wait.

    The host's own IO is no sum of these, so the system has none.
    """
    pairs = _pairs(frame.prev, frame.now)
    if pairs is None:
        return None
    moved = [_moved(before.sample.io, after.sample.io) for before, after in pairs]
    if any(moved):
        return _doing(pairs, moved)
    if Kind.IO in frame.tightened:
        return None
    waits = [_waited(before.sample.io_pressure, after.sample.io_pressure) for before, after in pairs]
    return _doing(pairs, waits)


def _moved(before: dict[str, DiskIo] | None, after: dict[str, DiskIo] | None) -> float:
    """A device that is new in the file counts from nothing: the cgroup had not used it."""
    none = DiskIo(0, 0, 0, 0)
    total = 0
    for device, now in (after or {}).items():
        then = (before or {}).get(device, none)
        total += max(now.rbytes - then.rbytes, 0) + max(now.wbytes - then.wbytes, 0)
    return total / _MIB if before is not None else 0.0


def _waited(before: Pressure | None, after: Pressure | None) -> float:
    """Seconds; somebody without a pressure file is not accused of anything."""
    if before is None or after is None:
        return 0.0
    return max(after.some.total - before.some.total, 0) / 1e6
