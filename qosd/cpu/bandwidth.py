"""BE's allowance as cpu.max of the BE workloads, water-filled by priority and demand. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from qosd.config import Config
from qosd.cpu.allowance import Allowance, workload_cores
from qosd.cpu.bound import has_target, is_limited
from qosd.cpu.pools import Budget
from qosd.cpu.share import divide, sharing
from qosd.model import CgroupId, CpuMax, CpuMaxBurst, Snapshot, Tier, Workload
from qosd.plan import Desired, Reason
from qosd.split import Claim, split

RULE = "cpu.bandwidth"
_MIN_QUOTA_USEC = 1000  # min_cfs_quota_period in kernel/sched/core.c
_NEARLY_ALL = 0.9  # of its limit: such a workload would use more if it could
_DOUBLE = 2.0  # what it is then taken to want: all there is would starve the others until the next tick
_HARDLY = 0.5  # of its demand: between this and nearly all, demand is left as it was, or it would swing
_USUAL = 0.7  # of its demand, once that is found too large


class State(msgspec.Struct, frozen=True, gc=False):
    shares: dict[CgroupId, float] = {}
    demands: dict[CgroupId, float] = {}


def decide(
    config: Config,
    prev: Snapshot | None,
    now: Snapshot,
    allowance: Allowance,
    budgets: tuple[Budget, ...],
    state: State,
) -> tuple[State, tuple[Desired, ...]]:
    if allowance.cores is None:
        return State(), ()
    limited = [
        workload
        for workload in now.tier(Tier.BE)
        if workload.setting("cpu.max") is not None and is_limited(config, workload)
    ]
    claims = [_claim(config, prev, now, workload, state) for workload in limited]
    deadband = now.host.nr_cpus * config.cpu.bandwidth.deadband_down_pct / 100
    shares = divide(sharing(config, now, allowance, budgets, limited), claims, split)
    shares = settle(shares, state.shares, sum(shares.values()), deadband)
    pool_of = {cgroup_id: budget for budget in budgets for cgroup_id in budget.ids}
    desired = (*_desired(config, limited, shares, allowance, pool_of), *_impossible(config, now, allowance))
    return State(shares, {claim.id: claim.demand for claim in claims}), desired


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
    demand = _demand(used, share, state.demands.get(workload.id, float("inf")))
    return Claim(workload.id, workload.priority, demand, _cap(config, workload, now.host.nr_cpus))


def _demand(used: float | None, share: float | None, before: float) -> float:
    """What a workload would use if it could; without a limit of ours, or not known, as before."""
    if used is None or share is None:
        return before
    if used >= share * _NEARLY_ALL:
        return max(used * _DOUBLE, before if math.isfinite(before) else 0.0)
    if used < before * _HARDLY or used > before * _NEARLY_ALL:
        return used / _USUAL
    return before


def _cap(config: Config, workload: Workload, nr_cpus: int) -> float:
    for rule in config.workload:
        if rule.name == workload.name and rule.cpu_max_pct is not None:
            return nr_cpus * rule.cpu_max_pct / 100
    return float("inf")


def _desired(
    config: Config,
    workloads: list[Workload],
    shares: dict[CgroupId, float],
    allowance: Allowance,
    pool_of: dict[CgroupId, Budget],
) -> Iterator[Desired]:
    period = int(config.cpu.bandwidth.period)
    for workload in workloads:
        share = shares[workload.id]
        quota = max(round(share * period), _MIN_QUOTA_USEC)
        if not has_target(config, workload):
            text = f"{workload.name} may use {share:.2f} CPUs: cpu_max_pct of its rule, whatever is free"
            reason = Reason(f"{RULE}/own", text)
            yield from _with_burst(workload, CpuMax(quota, period), reason)
            continue
        of_all = "" if len(workloads) == 1 else f"{share:.2f} CPUs of it for {workload.name}; "
        budget = pool_of.get(workload.id)
        reason = msgspec.structs.replace(
            allowance.reason,
            rule=f"{RULE}/{allowance.reason.rule}",
            text=(of_all if budget is None else _pool_text(workload, budget, share)) + allowance.reason.text,
        )
        yield from _with_burst(workload, CpuMax(quota, period), reason)


def _impossible(config: Config, now: Snapshot, allowance: Allowance) -> Iterator[Desired]:
    """Where the cpu controller is not on, the wish is shown as absent: silence would look like consent."""
    period = int(config.cpu.bandwidth.period)
    for workload in now.tier(Tier.BE):
        if workload.setting("cpu.max") is None and is_limited(config, workload):
            cores = min(_cap(config, workload, now.host.nr_cpus), allowance.cores or 0.0)
            text = f"{workload.name} cannot be limited here: the cpu controller is not on for this cgroup"
            limit = CpuMax(max(round(cores * period), _MIN_QUOTA_USEC), period)
            yield Desired(workload.id, workload.path, workload.tier, limit, Reason(f"{RULE}/absent", text))


def _with_burst(workload: Workload, limit: CpuMax, reason: Reason) -> Iterator[Desired]:
    if workload.setting("cpu.max.burst") is not None:
        # cpu.max below cpu.max.burst is EINVAL, and a burst would hand BE what was just taken from it.
        text = "no burst above a limit that protects LS; the kernel refuses a burst above the quota"
        yield Desired(
            workload.id, workload.path, workload.tier, CpuMaxBurst(0), Reason(f"{RULE}/burst", text)
        )
    yield Desired(workload.id, workload.path, workload.tier, limit, reason)


def _pool_text(workload: Workload, budget: Budget, share: float) -> str:
    cap = budget.caps.get(workload.id)
    held = "" if cap is None else f", held to {cap:.2f} CPUs because the pool is above its band"
    return f"{workload.name} may use {share:.2f} CPUs of pool {budget.name}: {budget.text}{held}; "
