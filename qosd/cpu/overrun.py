"""BE that runs on past its cpu.max: real-time tasks are not under it. Pure.

The bandwidth controller of cpu.max throttles fair-class tasks only (kernel/sched/fair.c), so a SCHED_FIFO
task in BE takes its CPU whatever the limit says. Where that is seen, the limit is said to be ineffective and
the workload is kept to few CPUs instead: affinity binds every class.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu.allowance import workload_cores
from qosd.cpu.bound import is_limited
from qosd.cpu.limit import limit_cores
from qosd.model import CgroupId, Snapshot, Tier, printable

_TICKS = 3
_RATIO = 1.5  # far beyond what slices and a late tick can explain
_LEAST_CORES = 0.25
_FORGET_TICKS = 60


class Overrun(msgspec.Struct, frozen=True, gc=False):
    limit: float
    use: float
    ticks: int = 0
    """Seen so many ticks running."""
    quiet_ticks: int = 0

    @property
    def proven(self) -> bool:
        return self.ticks >= _TICKS


class OverrunView(msgspec.Struct, frozen=True, gc=False):
    workload: str
    path: str
    limit_cores: float
    use_cores: float


State = dict[CgroupId, Overrun]
"""Treated as a frozen value."""


def decide(config: Config, prev: Snapshot | None, now: Snapshot, state: State) -> State:
    """For workloads whose limit is qosd's: what does not keep to an administrator's is theirs to see to."""
    following: State = {}
    for workload in now.tier(Tier.BE):
        if not is_limited(config, workload):
            continue
        before = prev.workload(workload.id) if prev is not None else None
        if prev is None or before is None or now.monotonic_usec <= prev.monotonic_usec:
            if workload.id in state:
                following[workload.id] = state[workload.id]
            continue
        elapsed = now.monotonic_usec - prev.monotonic_usec
        use = workload_cores(before, workload, elapsed, now.host.nr_cpus)
        limits = (limit_cores(before), limit_cores(workload))
        overrun = _follow(state.get(workload.id), use, limits)
        if overrun is not None:
            following[workload.id] = overrun
    return following


def _follow(
    before: Overrun | None, use: float | None, limits: tuple[float | None, float | None]
) -> Overrun | None:
    """A limit that changed meanwhile, or is not known, proves nothing either way."""
    standing = max((limit for limit in limits if limit is not None), default=None)
    if use is None or standing is None or None in limits:
        return before
    if use > standing * _RATIO and use - standing > _LEAST_CORES:
        return Overrun(standing, use, (before.ticks if before is not None else 0) + 1)
    if before is None or not before.proven or before.quiet_ticks >= _FORGET_TICKS:
        return None
    return msgspec.structs.replace(before, quiet_ticks=before.quiet_ticks + 1)


def ineffective(now: Snapshot, state: State) -> tuple[OverrunView, ...]:
    """The workloads whose cpu.max was seen not to hold them."""
    return tuple(
        OverrunView(workload.name, printable(workload.path), seen.limit, seen.use)
        for workload in now.tier(Tier.BE)
        if (seen := state.get(workload.id)) is not None and seen.proven
    )
