"""Whose cpu.max is qosd's to set, and whether X has a say in it. Pure.

With `enforce = "none"` BE has no limit in calm; what an operator asked for by name holds all the same: a
target or a limit of a workload's own, pools, and a window that pauses BE.
"""

from __future__ import annotations

from qosd.config import Config, WorkloadRule
from qosd.cpu.windows import pauses
from qosd.model import Workload
from qosd.schema.cpu import Enforce


def rule_of(config: Config, workload: Workload) -> WorkloadRule | None:
    return next((rule for rule in config.workload if rule.name == workload.name), None)


def is_limited(config: Config, workload: Workload) -> bool:
    """Whether it has a cpu.max of ours in calm."""
    rule = rule_of(config, workload)
    return has_target(config, workload) or (rule is not None and rule.cpu_max_pct is not None)


def has_target(config: Config, workload: Workload) -> bool:
    """Whether it is held to what some X leaves, and not only to a limit of its own."""
    if config.cpu.bandwidth.enforce is Enforce.MAX or pauses(config):
        return True
    if config.pool and config.cpu.bandwidth.enforce is Enforce.NONE:
        return True
    rule = rule_of(config, workload)
    if rule is None:
        return False
    pool = next((pool for pool in config.pool if pool.name == rule.pool), None)
    return rule.cpu_target_pct is not None or (pool is not None and pool.cpu_target_pct is not None)
