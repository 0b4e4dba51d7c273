"""The static floor: BE gives way at every wake-up (cpu.idle, or the least weight), LS has a high weight.

It needs no control loop and survives our death. cpu.idle locks cpu.weight (EINVAL), which breaks other
owners (koordinator #2732, runc #4143), so by default it is used on be.slice and below only. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from qosd.config import Config
from qosd.model import CpuIdle, CpuWeight, Snapshot, Tier, Workload
from qosd.plan import Desired, Reason
from qosd.schema.cpu import CpuWeights, IdlePolicy

RULE = "cpu.weight"
OWN_SLICE = "be.slice"


def decide(config: Config, now: Snapshot) -> Iterator[Desired]:
    weights = config.cpu.weight
    for workload in now.workloads:
        if workload.tier is Tier.LS:
            yield _weight(workload, weights.ls_weight, "LS runs before everything of default weight")
        elif _idles(weights, workload):
            reason = Reason(RULE, "BE runs only when no LS or system task wants the CPU (SCHED_IDLE group)")
            yield Desired(workload.id, workload.path, workload.tier, CpuIdle(True), reason)
        elif workload.setting("cpu.idle") != "1":
            # A group that somebody else made idle refuses a weight, and needs none.
            yield _weight(workload, *_be_weight(config, workload))


def _be_weight(config: Config, workload: Workload) -> tuple[int, str]:
    """Its pool's weight where the pool has one."""
    pool_of = {rule.name: rule.pool for rule in config.workload}
    for pool in config.pool:
        if pool.weight is not None and pool.name == pool_of.get(workload.name):
            return pool.weight, f"the weight of pool {pool.name}"
    return config.cpu.weight.be_weight, "BE has the least weight there is"


def _idles(weights: CpuWeights, workload: Workload) -> bool:
    if workload.setting("cpu.idle") is None:
        return False
    match weights.be_idle:
        case IdlePolicy.ALWAYS:
            return True
        case IdlePolicy.SLICE:
            return workload.path == OWN_SLICE or workload.path.startswith(OWN_SLICE + "/")
        case IdlePolicy.NEVER:
            return False


def _weight(workload: Workload, weight: int, why: str) -> Desired:
    return Desired(workload.id, workload.path, workload.tier, CpuWeight(weight), Reason(RULE, why))
