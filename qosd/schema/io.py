"""The `[io]` section: schema, defaults, ranges. Imports nothing of qosd but its units. Pure."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from qosd.schema.units import ByteSize, Duration, Percent, Section, Weight, within

_MIN_BPS, _MAX_BPS = 64 << 10, 1 << 40


class IoWeights(Section, frozen=True):
    be_weight: Weight = 10
    ls_weight: Weight = 1000


class IoLatencies(Section, frozen=True):
    target: Duration = Duration(0)


class IoLimits(Section, frozen=True):
    enforce: bool = False
    pressure_high_pct: Annotated[float, Meta(gt=0, le=100)] = 10.0
    pressure_low_pct: Percent = 2.0
    blame_pct: Percent = 10.0
    down_pct: Annotated[float, Meta(ge=1, le=90)] = 50.0
    up_pct: Annotated[float, Meta(gt=0, le=100)] = 5.0
    floor: ByteSize = ByteSize(4 << 20)
    floor_iops: Annotated[int, Meta(ge=10, le=1_000_000)] = 100
    release_ticks: Annotated[int, Meta(ge=2)] = 30


class Io(Section, frozen=True):
    weight: IoWeights = IoWeights()
    latency: IoLatencies = IoLatencies()
    limits: IoLimits = IoLimits()


def wants_disks(io: Io) -> bool:
    """Whether any governor sets something for a single disk, so that they must be found."""
    return io.limits.enforce or io.latency.target > 0


def check(io: Io) -> str | None:
    """What no single field can say: the path of the bad key and why, or None."""
    limits = io.limits
    if limits.pressure_low_pct >= limits.pressure_high_pct:
        return "io.limits.pressure_high_pct: must be above pressure_low_pct"
    # iolatency_set_limit() takes any target; below what a disk needs for one request BE would never run.
    return within("io.latency.target", io.latency.target, 0, 10_000_000, "0s (none) to 10s") or within(
        "io.limits.floor", limits.floor, _MIN_BPS, _MAX_BPS, "64KiB to 1TiB"
    )
