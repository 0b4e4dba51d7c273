"""X of a workload, and what BE may use at another X than the host's: the finest that is set wins. Pure."""

from __future__ import annotations

from qosd.config import Config
from qosd.cpu.allowance import Allowance
from qosd.cpu.windows import pauses
from qosd.model import Snapshot, Workload


def target_pct(config: Config, workload: Workload) -> float:
    """The workload's own X, else its pool's, else the host's (or an open window's). A pause beats all."""
    rule = next((rule for rule in config.workload if rule.name == workload.name), None)
    if rule is None:
        return config.host.cpu_target_pct
    pool = next((pool for pool in config.pool if pool.name == rule.pool), None)
    of_pool = pool.cpu_target_pct if pool is not None else None
    return or_the_hosts(config, rule.cpu_target_pct if rule.cpu_target_pct is not None else of_pool)


def or_the_hosts(config: Config, pct: float | None) -> float:
    return config.host.cpu_target_pct if pct is None or pauses(config) else pct


def room(config: Config, now: Snapshot, granted: Allowance, pct: float) -> float:
    """What BE may use below a target of `pct`, where `granted` is what it may use below the host's.

    The formula at this target, in the proportion that the allowance has to its own formula: so deadband, ramp
    and whatever else holds the allowance back hold here as well.
    """
    assert granted.cores is not None  # noqa: S101 - nobody asks while BE is not limited
    if pct == config.host.cpu_target_pct:
        return granted.cores
    usage = granted.usage
    capacity = usage.capacity if usage is not None else float(now.host.nr_cpus)
    other = usage.other if usage is not None else 0.0
    floor = capacity * config.cpu.bandwidth.floor_pct / 100

    def formula(target: float) -> float:
        return min(max(capacity * target / 100 - other, floor), capacity)

    held = granted.cores / formula(config.host.cpu_target_pct)
    return min(max(formula(pct) * held, floor), capacity)
