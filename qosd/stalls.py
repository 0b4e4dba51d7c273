"""How long tasks waited between two snapshots, from the pressure files' `total`. Pure."""

from __future__ import annotations

import msgspec

from qosd.model import CgroupSample, Pressure, Snapshot, Stall, Tier


class Waits(msgspec.Struct, frozen=True, gc=False):
    """Shares of the time (0 to 1) in which some task waited; None where the kernel does not say."""

    cpu: float | None = None
    memory: float | None = None
    io: float | None = None


def waited(
    before: Pressure | None, after: Pressure | None, elapsed_usec: int, *, full: bool = False
) -> float | None:
    """The share of the time in which some task, or all, waited.

    None where a total is missing or went backwards.
    """
    first, last = _stall(before, full=full), _stall(after, full=full)
    if first is None or last is None or elapsed_usec <= 0:
        return None
    stalled = last.total - first.total
    # PSI settles a stall when it ends or at an average's update, so a total may be ahead of the interval.
    return min(stalled / elapsed_usec, 1.0) if stalled >= 0 else None


def _stall(pressure: Pressure | None, *, full: bool) -> Stall | None:
    if pressure is None:
        return None
    return pressure.full if full else pressure.some


def cgroup_waits(before: CgroupSample, after: CgroupSample, elapsed_usec: int) -> Waits:
    return Waits(
        waited(before.cpu_pressure, after.cpu_pressure, elapsed_usec),
        waited(before.memory_pressure, after.memory_pressure, elapsed_usec),
        waited(before.io_pressure, after.io_pressure, elapsed_usec),
    )


def tier_waits(prev: Snapshot | None, now: Snapshot, tier: Tier) -> Waits:
    """The worst of the tier's workloads, for each resource: a mean would hide the one that suffers."""
    if prev is None:
        return Waits()
    elapsed = now.monotonic_usec - prev.monotonic_usec
    each = [
        cgroup_waits(before.sample, workload.sample, elapsed)
        for workload in now.tier(tier)
        if (before := prev.workload(workload.id)) is not None
    ]
    return Waits(
        max((waits.cpu for waits in each if waits.cpu is not None), default=None),
        max((waits.memory for waits in each if waits.memory is not None), default=None),
        max((waits.io for waits in each if waits.io is not None), default=None),
    )
