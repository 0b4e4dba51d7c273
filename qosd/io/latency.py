"""io.latency of LS: while a request of LS takes longer than the target, siblings get fewer at a time. Pure.

The kernel holds back only groups beside the one with the target (block/blk-iolatency.c), so it helps where
LS and BE are siblings, as ls.slice and be.slice are.
"""

from __future__ import annotations

from collections.abc import Iterator

from qosd.config import Config
from qosd.model import IoLatency, Snapshot, Tier
from qosd.plan import Desired, Reason
from qosd.schema.units import Duration

RULE = "io.latency"


def decide(config: Config, now: Snapshot) -> Iterator[Desired]:
    target = config.io.latency.target
    if target == Duration(0):
        return
    reason = Reason(
        RULE,
        "siblings of LS give way at the disk while its requests take longer than the target",
        threshold=f"io.latency.target = {target / 1000:g} ms",
    )
    for workload in now.tier(Tier.LS):
        if workload.setting("io.latency") is None:
            continue
        for device in now.disks:
            yield Desired(workload.id, workload.path, workload.tier, IoLatency(device, int(target)), reason)
