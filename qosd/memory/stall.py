"""How long one workload waited between two snapshots, and the worst of a tier. Pure."""

from __future__ import annotations

from typing import Literal

from qosd.model import CgroupId, Snapshot, Tier
from qosd.stalls import waited

Resource = Literal["memory", "io"]


def share(
    prev: Snapshot | None, now: Snapshot, cgroup_id: CgroupId, resource: Resource, *, full: bool
) -> float | None:
    """The share of the time in which some (or all) tasks of the workload waited; None if that is unknown."""
    before = prev.workload(cgroup_id) if prev is not None else None
    after = now.workload(cgroup_id)
    if prev is None or before is None or after is None:
        return None
    first, last = before.sample, after.sample
    pair = (
        (first.memory_pressure, last.memory_pressure)
        if resource == "memory"
        else (first.io_pressure, last.io_pressure)
    )
    return waited(*pair, now.monotonic_usec - prev.monotonic_usec, full=full)


def worst(
    prev: Snapshot | None, now: Snapshot, tier: Tier, resource: Resource, *, full: bool
) -> float | None:
    """The largest share of any workload of the tier; None where none of them is known."""
    shares = [share(prev, now, workload.id, resource, full=full) for workload in now.tier(tier)]
    return max((each for each in shares if each is not None), default=None)
