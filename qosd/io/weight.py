"""The static floor of IO: shares of a disk by weight, where the disk or its scheduler weighs at all. Pure.

io.weight belongs to io.cost, io.bfq.weight to the bfq scheduler; where neither is at work on a device the
kernel takes the weights and does nothing with them (`qosctl doctor` says so).
"""

from __future__ import annotations

from collections.abc import Iterator

from qosd.config import Config
from qosd.model import IoBfqWeight, IoWeight, Snapshot, Tier, Workload
from qosd.plan import Desired, Reason

RULE = "io.weight"
_DEFAULT, _MAX, _BFQ_MAX = 100, 10_000, 1000


def decide(config: Config, now: Snapshot) -> Iterator[Desired]:
    for workload in now.workloads:
        if workload.tier is Tier.LS:
            yield from _weights(workload, config.io.weight.ls_weight, "LS comes first at the disk")
        else:
            yield from _weights(workload, config.io.weight.be_weight, "BE has a small share of the disk")


def _weights(workload: Workload, weight: int, why: str) -> Iterator[Desired]:
    reason = Reason(RULE, f"{why} where io.cost or bfq weighs it")
    settings: dict[str, IoWeight | IoBfqWeight] = {
        "io.weight": IoWeight(weight),
        "io.bfq.weight": IoBfqWeight(bfq_weight(weight)),
    }
    for file, setting in settings.items():
        if workload.setting(file) is not None:
            yield Desired(workload.id, workload.path, workload.tier, setting, reason)


def bfq_weight(weight: int) -> int:
    """1..100..10000 to bfq's 1..100..1000 as systemd does it (its BFQ_WEIGHT())."""
    if weight <= _DEFAULT:
        return weight
    return _DEFAULT + (weight - _DEFAULT) * (_BFQ_MAX - _DEFAULT) // (_MAX - _DEFAULT)
