"""The last of RAM is not BE's: the memory.high of a workload that is not limited otherwise. Pure.

A job that only swap could make smaller, and one that its limit has stalled, are let go. On a host that has
nothing left that is no favour: LS then waits for the OOM killer, and that job is its first choice. So it may
grow until `memory.limits.last_pct` of RAM are available besides LS's page cache, and no further: it sleeps in
mem_cgroup_handle_over_high(), which a fatal signal ends, and gains 256 KiB (MEMCG_CHARGE_BATCH) a sleep. The
line is there before the job is, as what it holds and what is available add up to the same while it grows.
"""

from __future__ import annotations

from qosd.config import Config
from qosd.memory import baseline
from qosd.memory.trouble import trouble
from qosd.model import Snapshot, Workload

FILE = "memory.high"
_MIB = 1 << 20


def line(
    config: Config, now: Snapshot, workload: Workload, share: float | None, before: int | None
) -> int | None:
    """What it may hold at most, None where it is let go altogether.

    `share`: its part of all but the last; `before`: its line so far.
    """
    current = workload.sample.memory_current
    # When it is nearly gone all the same, the OOM killer's choice is sooner over than a job that creeps on.
    if share is None or current is None or trouble(config, None, now).short is not False:
        return None
    # Never below what it holds, but what it gained beyond its line is not given to it.
    held = current if before is None else min(current, before)
    size = int(max(share, held)) // _MIB * _MIB
    small = (now.host.mem_total or 0) * config.memory.limits.deadband_pct / 100
    if before is not None and abs(size - before) <= small:
        size = before
    others = baseline.of_others(now, workload, FILE)
    return None if others is not None and size >= others else size


def say(size: int, why: str) -> str:
    return f"{why}; it may hold {size // _MIB} MiB, as the last of RAM is not BE's"
