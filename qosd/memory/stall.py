"""How long a workload waited between two snapshots, from PSI's totals. Pure."""

from __future__ import annotations

from typing import Literal

from qosd.model import CgroupId, Pressure, Snapshot, Tier

Resource = Literal["memory", "io"]


def share(
    prev: Snapshot | None, now: Snapshot, cgroup_id: CgroupId, resource: Resource, *, full: bool
) -> float | None:
    """The share of the time in which some (or all) tasks of the workload waited; None if that is unknown."""
    before = prev.workload(cgroup_id) if prev is not None else None
    after = now.workload(cgroup_id)
    if prev is None or before is None or after is None:
        return None
    elapsed = now.monotonic_usec - prev.monotonic_usec
    if resource == "memory":
        pair = (before.sample.memory_pressure, after.sample.memory_pressure)
    else:
        pair = (before.sample.io_pressure, after.sample.io_pressure)
    first, last = (_total(pressure, full=full) for pressure in pair)
    if first is None or last is None or elapsed <= 0 or last < first:
        return None
    return (last - first) / elapsed


def _total(pressure: Pressure | None, *, full: bool) -> int | None:
    if pressure is None:
        return None
    stall = pressure.full if full else pressure.some
    return stall.total if stall is not None else None


def worst(
    prev: Snapshot | None, now: Snapshot, tier: Tier, resource: Resource, *, full: bool
) -> float | None:
    """The largest share of any workload of the tier; None where none of them is known."""
    shares = [share(prev, now, workload.id, resource, full=full) for workload in now.tier(tier)]
    return max((each for each in shares if each is not None), default=None)
