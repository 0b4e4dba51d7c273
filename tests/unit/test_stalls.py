"""Shares of time from two pressure totals: never a guess, never more than all of it."""

from __future__ import annotations

import pytest

from qosd.model import CgroupId, CgroupSample, HostSample, Pressure, Snapshot, Stall, Tier, Workload
from qosd.stalls import Waits, tier_waits, waited


def pressure(total: int) -> Pressure:
    return Pressure(Stall(0.0, 0.0, 0.0, total))


def snapshot(at_usec: int, totals: dict[int, int | None], tier: Tier = Tier.LS) -> Snapshot:
    workloads = tuple(
        Workload(
            f"w{inode}",
            tier,
            0,
            CgroupSample(
                CgroupId(inode), f"w{inode}", cpu_pressure=None if total is None else pressure(total)
            ),
            {},
        )
        for inode, total in totals.items()
    )
    return Snapshot(1, at_usec, at_usec, HostSample(2), workloads=workloads)


@pytest.mark.parametrize(
    ("before", "after", "elapsed", "share"),
    [
        (pressure(0), pressure(250_000), 1_000_000, 0.25),
        (pressure(7), pressure(7), 1_000_000, 0.0),
        (pressure(0), pressure(1_100_000), 1_000_000, 1.0),
        (pressure(9), pressure(8), 1_000_000, None),
        (None, pressure(8), 1_000_000, None),
        (pressure(8), None, 1_000_000, None),
        (pressure(8), pressure(9), 0, None),
    ],
)
def test_a_share_is_known_only_from_two_totals_that_grew(
    before: Pressure | None, after: Pressure | None, elapsed: int, share: float | None
) -> None:
    assert waited(before, after, elapsed) == share


def test_a_tier_waits_as_long_as_the_workload_that_waits_most() -> None:
    prev = snapshot(0, {1: 0, 2: 0, 3: None})
    now = snapshot(1_000_000, {1: 100_000, 2: 400_000, 3: None, 4: 900_000})

    assert tier_waits(prev, now, Tier.LS) == Waits(cpu=0.4)
    assert tier_waits(prev, now, Tier.BE) == Waits()
    assert tier_waits(None, now, Tier.LS) == Waits()
