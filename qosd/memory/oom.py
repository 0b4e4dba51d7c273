"""memory.oom.group of BE: what the kernel kills a task of for want of memory, it kills as a whole. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from qosd.config import Config
from qosd.model import MemoryOomGroup, Snapshot, Tier
from qosd.plan import Desired, Reason

RULE = "memory.oom"


def decide(config: Config, now: Snapshot) -> Iterator[Desired]:
    whole = {rule.name for rule in config.workload if rule.oom_group}
    reason = Reason(RULE, "a job of several processes is of no use without one of them (oom_group)")
    for workload in now.tier(Tier.BE):
        if workload.name in whole and workload.setting("memory.oom.group") is not None:
            yield Desired(workload.id, workload.path, workload.tier, MemoryOomGroup(True), reason)
