"""The `reclaim` rung: less memory.high for the BE workloads through which LS waits for memory. Pure.

One step down each tick in which it is seen again, and never below what the workload could still give back:
without swap that is its page cache, so a job of anonymous memory is held where it is and grows no further.
What a lower memory.high stalls, `memory.limits` lifts on its deadline as any other limit.
"""

from __future__ import annotations

import msgspec

from qosd.ask import Tighten
from qosd.config import Config
from qosd.memory.held import swap_room, unreclaimable
from qosd.model import CgroupId, MemoryHigh, Snapshot, Tier, Workload
from qosd.plan import Desired, Input

RULE = "memory.limits/ladder"
NEARLY_ALL = 0.9  # of its limit: such a workload would use more if it could
_MIB = 1 << 20

Ceilings = dict[CgroupId, float]
"""Bytes, by workload. Treated as a frozen value."""


def ceilings(config: Config, now: Snapshot, asked: Tighten | None, before: Ceilings) -> Ceilings:
    if asked is None:
        return {}
    found = {
        workload.id: _ceiling(config, now, workload, before.get(workload.id), hot=asked.hot)
        for workload in now.tier(Tier.BE)
        if workload.id in asked.ids
    }
    return {cgroup_id: each for cgroup_id, each in found.items() if each is not None}


def _ceiling(
    config: Config, now: Snapshot, workload: Workload, before: float | None, *, hot: bool
) -> float | None:
    """None while nothing is known; what is known no longer keeps what was."""
    current, kept, total = workload.sample.memory_current, unreclaimable(workload), now.host.mem_total
    if current is None or kept is None or total is None:
        return before
    if before is None and not hot:
        return None
    step = total * config.memory.limits.down_pct / 100 if hot else 0.0
    wanted = (before if before is not None else float(current)) - step
    out_of_reach = max(kept - swap_room(now, workload), 0) / NEARLY_ALL
    floor = min(total * config.memory.limits.floor_pct / 100, float(current))
    # A MiB more, as the limit is rounded down to one, and what is out of reach is no limit to have.
    return max(wanted, out_of_reach + _MIB, floor)


def desired(config: Config, now: Snapshot, workload: Workload, size: int, asked: Tighten) -> Desired:
    limits = config.memory.limits
    inputs = (
        Input("memory.current", round((workload.sample.memory_current or 0) / _MIB, 1), "MiB"),
        Input("not reclaimable", round((unreclaimable(workload) or 0) / _MIB, 1), "MiB"),
        Input("MemAvailable", round((now.host.mem_available or 0) / _MIB, 1), "MiB"),
    )
    reason = msgspec.structs.replace(
        asked.reason,
        rule=RULE,
        text=f"{size / _MIB:.0f} MiB for {workload.name}, {limits.down_pct:g} % of RAM less each time that"
        f" {asked.reason.text}",
        inputs=(*inputs, *asked.reason.inputs),
    )
    return Desired(workload.id, workload.path, workload.tier, MemoryHigh(size), reason)
