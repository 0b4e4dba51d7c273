"""What the tiers do at each disk and how long LS waits for it, from two snapshots. Pure."""

from __future__ import annotations

import msgspec

from qosd.model import CgroupId, DiskIo, Snapshot, Tier, Workload
from qosd.stalls import waited


class Rates(msgspec.Struct, frozen=True, gc=False):
    """Bytes and requests a second, in the kernel's order of io.max."""

    rbps: float = 0.0
    wbps: float = 0.0
    riops: float = 0.0
    wiops: float = 0.0

    def values(self) -> tuple[float, float, float, float]:
        return (self.rbps, self.wbps, self.riops, self.wiops)

    @property
    def bps(self) -> float:
        return self.rbps + self.wbps

    @property
    def iops(self) -> float:
        return self.riops + self.wiops


class Sufferer(msgspec.Struct, frozen=True, gc=False):
    """The LS workload that waits longest for IO."""

    workload: Workload
    pct: float
    """The share of the tick in which some of its tasks waited."""

    @property
    def devices(self) -> frozenset[str]:
        return frozenset(self.workload.sample.io or ())


def elapsed_usec(prev: Snapshot | None, now: Snapshot) -> int | None:
    if prev is None or now.monotonic_usec <= prev.monotonic_usec:
        return None
    return now.monotonic_usec - prev.monotonic_usec


def sufferer(
    prev: Snapshot | None, now: Snapshot, among: frozenset[CgroupId] | None = None
) -> Sufferer | None:
    """None while no LS workload's io pressure is known; `among`: of these alone."""
    found: Sufferer | None = None
    for workload in now.tier(Tier.LS):
        if among is not None and workload.id not in among:
            continue
        pct = waited_pct(prev, now, workload)
        if pct is not None and (found is None or pct > found.pct):
            found = Sufferer(workload, pct)
    return found


def waited_pct(prev: Snapshot | None, now: Snapshot, workload: Workload) -> float | None:
    """From `total`: the kernel's averages lag by seconds."""
    before = prev.workload(workload.id) if prev is not None else None
    elapsed = elapsed_usec(prev, now)
    if before is None or elapsed is None:
        return None
    share = waited(before.sample.io_pressure, workload.sample.io_pressure, elapsed)
    return None if share is None else share * 100


def rates(prev: Snapshot | None, now: Snapshot, workload: Workload, device: str) -> Rates | None:
    """None while unknown. A device that was not in io.stat yet is one that had done nothing."""
    before = prev.workload(workload.id) if prev is not None else None
    elapsed = elapsed_usec(prev, now)
    if before is None or elapsed is None or before.sample.io is None or workload.sample.io is None:
        return None
    new = workload.sample.io.get(device)
    if new is None:
        return Rates()
    old = before.sample.io.get(device, DiskIo(0, 0, 0, 0))
    deltas = (
        new.rbytes - old.rbytes,
        new.wbytes - old.wbytes,
        new.rios - old.rios,
        new.wios - old.wios,
    )
    return None if min(deltas) < 0 else Rates(*(delta * 1e6 / elapsed for delta in deltas))


def tier_rates(prev: Snapshot | None, now: Snapshot, tier: Tier, device: str) -> Rates | None:
    """All of a tier together, None while any of it is unknown."""
    total = [0.0, 0.0, 0.0, 0.0]
    for workload in now.tier(tier):
        one = rates(prev, now, workload, device)
        if one is None:
            return None
        total = [sum(pair) for pair in zip(total, one.values(), strict=True)]
    return Rates(*total)
