"""BE's allowance as cpuset.cpus: BE on ceil(allowance) CPUs, the highest-numbered ones. Pure."""

from __future__ import annotations

import math

import msgspec

from qosd.config import Config
from qosd.cpu.allowance import Allowance
from qosd.model import CpusetCpus, Snapshot, Tier
from qosd.plan import Desired
from qosd.schema.cpu import Enforce

RULE = "cpu.cpuset"


class State(msgspec.Struct, frozen=True, gc=False):
    cpus: tuple[int, ...] = ()
    since_usec: int = 0


def decide(
    config: Config, now: Snapshot, allowance: Allowance, state: State
) -> tuple[State, tuple[Desired, ...]]:
    online = now.host.cpus_online
    if config.cpu.bandwidth.enforce is not Enforce.CPUSET or allowance.cores is None or not online:
        return State(), ()
    state = _next(state, online, math.ceil(allowance.cores), now.monotonic_usec, int(config.cpu.cpuset.dwell))
    reason = msgspec.structs.replace(allowance.reason, rule=f"{RULE}/{allowance.reason.rule}")
    return state, tuple(
        Desired(workload.id, workload.path, workload.tier, CpusetCpus(state.cpus), reason)
        for workload in now.tier(Tier.BE)
        if workload.setting("cpuset.cpus") is not None
    )


def _next(state: State, online: tuple[int, ...], count: int, now_usec: int, dwell_usec: int) -> State:
    """Shrink at once, grow after the dwell time: a mask that flaps moves tasks for nothing."""
    count = min(max(count, 1), len(online))
    kept = tuple(cpu for cpu in state.cpus if cpu in online)
    if kept == state.cpus and (
        len(kept) == count or (0 < len(kept) < count and now_usec - state.since_usec < dwell_usec)
    ):
        return state
    return State(online[-count:], now_usec)
