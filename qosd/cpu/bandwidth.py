"""BE's allowance as cpu.max of the BE workloads, water-filled by priority and demand. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from qosd.config import Config
from qosd.cpu.allowance import Allowance, workload_cores
from qosd.model import CgroupId, CpuMax, CpuMaxBurst, Snapshot, Tier, Workload
from qosd.plan import Desired, Reason
from qosd.schema.cpu import Enforce
from qosd.split import Claim, split

RULE = "cpu.bandwidth"
_MIN_QUOTA_USEC = 1000  # min_cfs_quota_period in kernel/sched/core.c
_NEARLY_ALL = 0.9  # of its limit: such a workload would use more if it could


class State(msgspec.Struct, frozen=True, gc=False):
    shares: dict[CgroupId, float] = {}


def decide(
    config: Config, prev: Snapshot | None, now: Snapshot, allowance: Allowance, state: State
) -> tuple[State, tuple[Desired, ...]]:
    if config.cpu.bandwidth.enforce is not Enforce.MAX or allowance.cores is None:
        return State(), ()
    limited = [workload for workload in now.tier(Tier.BE) if workload.setting("cpu.max") is not None]
    claims = [_claim(config, prev, now, workload, state) for workload in limited]
    deadband = now.host.nr_cpus * config.cpu.bandwidth.deadband_down_pct / 100
    shares = settle(split(allowance.cores, claims), state.shares, allowance.cores, deadband)
    desired = tuple(_desired(config, limited, shares, allowance))
    return State(shares), desired


def settle(
    shares: dict[CgroupId, float], before: dict[CgroupId, float], total: float, deadband: float
) -> dict[CgroupId, float]:
    """Keep the last shares where they still fit and none moved by more than the deadband."""
    same = shares.keys() == before.keys()
    if same and sum(before.values()) <= total + 1e-9 and total - sum(before.values()) <= deadband:
        moved = max((abs(shares[key] - before[key]) for key in shares), default=0.0)
        if moved <= deadband:
            return before
    return shares


def _claim(config: Config, prev: Snapshot | None, now: Snapshot, workload: Workload, state: State) -> Claim:
    before = prev.workload(workload.id) if prev is not None else None
    elapsed = now.monotonic_usec - prev.monotonic_usec if prev is not None else 0
    used = workload_cores(before, workload, elapsed, now.host.nr_cpus) if elapsed > 0 else None
    share = state.shares.get(workload.id)
    cap = _cap(config, workload, now.host.nr_cpus)
    if used is None or share is None or used >= share * _NEARLY_ALL:
        return Claim(workload.id, workload.priority, float("inf"), cap)
    return Claim(workload.id, workload.priority, used / _NEARLY_ALL, cap)


def _cap(config: Config, workload: Workload, nr_cpus: int) -> float:
    for rule in config.workload:
        if rule.name == workload.name and rule.cpu_max_pct is not None:
            return nr_cpus * rule.cpu_max_pct / 100
    return float("inf")


def _desired(
    config: Config, workloads: list[Workload], shares: dict[CgroupId, float], allowance: Allowance
) -> Iterator[Desired]:
    period = int(config.cpu.bandwidth.period)
    for workload in workloads:
        share = shares[workload.id]
        quota = max(round(share * period), _MIN_QUOTA_USEC)
        of_all = "" if len(workloads) == 1 else f"{share:.2f} CPUs of it for {workload.name}; "
        reason = msgspec.structs.replace(
            allowance.reason, rule=f"{RULE}/{allowance.reason.rule}", text=of_all + allowance.reason.text
        )
        if workload.setting("cpu.max.burst") is not None:
            # cpu.max below cpu.max.burst is EINVAL, and a burst would hand BE what was just taken from it.
            text = "no burst above a limit that protects LS; the kernel refuses a burst above the quota"
            yield Desired(
                workload.id, workload.path, workload.tier, CpuMaxBurst(0), Reason(f"{RULE}/burst", text)
            )
        yield Desired(workload.id, workload.path, workload.tier, CpuMax(quota, period), reason)
