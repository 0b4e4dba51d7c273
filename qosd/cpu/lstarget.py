"""X that an LS workload asks for: what holds for all of BE while that workload has tasks. Pure.

LS is never limited, so a target of its own says how busy the host may be beside it. As `windows.apply` does,
`apply` gives whatever decides later a configuration in which this is nothing but the targets of BE's rules.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config, WorkloadRule
from qosd.cpu.allowance import Allowance
from qosd.cpu.windows import pauses
from qosd.model import Snapshot, Tier, Workload, printable
from qosd.schema.cpu import Enforce
from qosd.schema.pools import Pool


class TargetView(msgspec.Struct, frozen=True, gc=False):
    """The lowest target that an LS workload asks for now."""

    pct: float
    workload: str
    path: str
    pool: str | None
    """The pool whose target it is; None: the workload's own."""
    whole: bool
    """Whether it stands for the host's; else the host's is lower."""


def apply(config: Config, prev: Snapshot | None, now: Snapshot) -> tuple[Config, TargetView | None]:
    """The configuration with the least X of the LS workloads that are here; a pause of BE beats it."""
    asked = _asked(config)
    if not asked or pauses(config):
        return config, None
    here = [workload for workload in now.tier(Tier.LS) if _has_tasks(prev, workload)]
    asking = [workload for workload in here if workload.name in asked]
    if not asking:
        return config, None
    lowest = min(asking, key=lambda workload: asked[workload.name][0])
    pct, pool = asked[lowest.name]
    # LS without a target of its own goes by the host's, where that binds anybody.
    binds = config.cpu.bandwidth.enforce is not Enforce.NONE or bool(config.pool)
    whole = not binds or len(asking) == len(here) or pct <= config.host.cpu_target_pct
    view = TargetView(pct, lowest.name, printable(lowest.path), pool, whole)
    return _held(config, pct, whole=whole), view


def explained(granted: Allowance, view: TargetView | None) -> Allowance:
    """The allowance with whose X it is."""
    if view is None or not view.whole:
        return granted
    reason = granted.reason
    text = f"{reason.text}; {view.pct:g} % is {words(view)}"
    threshold = reason.threshold and f"cpu_target_pct of {view.workload} = {view.pct:g} %"
    return msgspec.structs.replace(
        granted, reason=msgspec.structs.replace(reason, text=text, threshold=threshold)
    )


def words(view: TargetView) -> str:
    whose = f"the target of LS workload {view.workload}"
    of_pool = f", by its pool {view.pool}" if view.pool is not None else ""
    return f"{whose}{of_pool}, for as long as it has tasks"


def _asked(config: Config) -> dict[str, tuple[float, str | None]]:
    """By the name of an LS rule: its target, and the pool that it is of."""
    pools = {pool.name: pool.cpu_target_pct for pool in config.pool}
    asked: dict[str, tuple[float, str | None]] = {}
    for rule in config.workload:
        if rule.tier is not Tier.LS:
            continue
        of_pool = pools.get(rule.pool) if rule.pool is not None else None
        if rule.cpu_target_pct is not None:
            asked[rule.name] = rule.cpu_target_pct, None
        elif of_pool is not None:
            asked[rule.name] = of_pool, rule.pool
    return asked


def _has_tasks(prev: Snapshot | None, workload: Workload) -> bool:
    """What is not known is as it was in the tick before, and else no reason to tighten."""
    populated = workload.events.get("populated")
    if populated is None and prev is not None and (before := prev.workload(workload.id)) is not None:
        populated = before.events.get("populated")
    return populated == 1


def _held(config: Config, pct: float, *, whole: bool) -> Config:
    """No target of BE above `pct`, and one for each BE rule: it was asked for by name."""
    host = msgspec.structs.replace(config.host, cpu_target_pct=pct) if whole else config.host
    pools = tuple(_pool(pool, pct) for pool in config.pool)
    of_pool = {pool.name: pool.cpu_target_pct for pool in pools}
    rules = tuple(
        _rule(rule, pct, of_pool.get(rule.pool or "") or host.cpu_target_pct) for rule in config.workload
    )
    return msgspec.structs.replace(config, host=host, pool=pools, workload=rules)


def _pool(pool: Pool, pct: float) -> Pool:
    if pool.cpu_target_pct is None or pool.cpu_target_pct <= pct:
        return pool
    return msgspec.structs.replace(pool, cpu_target_pct=pct)


def _rule(rule: WorkloadRule, pct: float, otherwise: float) -> WorkloadRule:
    if rule.tier is not Tier.BE:
        return rule
    target = otherwise if rule.cpu_target_pct is None else min(rule.cpu_target_pct, pct)
    return msgspec.structs.replace(rule, cpu_target_pct=target)
