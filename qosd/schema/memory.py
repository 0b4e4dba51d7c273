"""The `[memory]` section: schema, defaults, ranges. Imports nothing of qosd but its units. Pure."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta

from qosd.schema.units import ByteSize, Duration, Percent, Section, within

Share = Annotated[float, Meta(gt=0, le=100)]

_MIB = 1 << 20


class Protect(enum.StrEnum):
    AUTO = "auto"
    LOW = "low"
    MIN = "min"
    OFF = "off"


class Limit(enum.StrEnum):
    HIGH = "high"
    OFF = "off"


class WithoutSwappiness(enum.StrEnum):
    SKIP = "skip"
    CAUTIOUS = "cautious"


class Protection(Section, frozen=True):
    enforce: Protect = Protect.LOW
    margin_pct: Percent = 20.0
    room_pct: Percent = 5.0
    half_life: Duration = Duration(600_000_000)
    max_pct: Share = 50.0
    deadband_pct: Annotated[float, Meta(ge=0, le=50)] = 10.0
    min_spare_pct: Share = 10.0


class Limits(Section, frozen=True):
    enforce: Limit = Limit.OFF
    floor_pct: Annotated[float, Meta(ge=1, le=100)] = 10.0
    last_pct: Annotated[float, Meta(ge=0, le=50)] = 10.0
    down_pct: Share = 5.0
    up_pct: Share = 2.0
    deadband_pct: Annotated[float, Meta(ge=0, le=20)] = 1.0
    stall_pct: Share = 50.0
    lift_after: Duration = Duration(4_000_000)
    lift_after_swap: Duration = Duration(30_000_000)
    lift_hold: Duration = Duration(60_000_000)


class Reclaiming(Section, frozen=True):
    chunk: ByteSize = ByteSize(16 * _MIB)
    rate: ByteSize = ByteSize(128 * _MIB)
    slice: Duration = Duration(500_000)
    deadline: Duration = Duration(10_000_000)
    available_low_pct: Share | None = None
    available_high_pct: Share | None = None
    free_low_pct: Share | None = None
    free_high_pct: Share | None = None
    without_swappiness: WithoutSwappiness = WithoutSwappiness.SKIP
    probe: ByteSize = ByteSize(_MIB)
    settle: Duration = Duration(5_000_000)
    refault_pct: Percent = 1.0
    io_pressure_pct: Percent = 5.0
    ls_pressure_pct: Percent = 0.1
    watch: Duration = Duration(60_000_000)
    hold: Duration = Duration(30_000_000)
    hold_max: Duration = Duration(600_000_000)


class Trouble(Section, frozen=True):
    available_pct: Share = 5.0
    ls_full_pct: Share = 10.0
    wake_pct: Share = 20.0


class Memory(Section, frozen=True):
    stat_interval: Duration = Duration(5_000_000)
    release_ticks: Annotated[int, Meta(ge=2)] = 30
    protection: Protection = Protection()
    limits: Limits = Limits()
    reclaim: Reclaiming = Reclaiming()
    trouble: Trouble = Trouble()


def check(memory: Memory) -> str | None:
    """What no single field can say: the path of the bad key and why, or None."""
    return (
        within("memory.stat_interval", memory.stat_interval, 1_000_000, 60_000_000, "1s to 1min")
        or within(
            "memory.protection.half_life",
            memory.protection.half_life,
            10_000_000,
            86_400_000_000,
            "10s to 24h",
        )
        or _limits(memory.limits)
        or _reclaim(memory.reclaim)
        or _pair("available", memory.reclaim.available_low_pct, memory.reclaim.available_high_pct)
        or _pair("free", memory.reclaim.free_low_pct, memory.reclaim.free_high_pct)
    )


def _limits(limits: Limits) -> str | None:
    # mem_cgroup_handle_over_high() sleeps up to 2 s at a time: a deadline below that would see one sleep.
    return (
        within("memory.limits.lift_after", limits.lift_after, 2_000_000, 10_000_000, "2s to 10s")
        or within(
            "memory.limits.lift_after_swap", limits.lift_after_swap, 2_000_000, 600_000_000, "2s to 10min"
        )
        or within("memory.limits.lift_hold", limits.lift_hold, 1_000_000, 3_600_000_000, "1s to 1h")
    )


def _reclaim(reclaim: Reclaiming) -> str | None:
    key = "memory.reclaim"
    return (
        within(f"{key}.chunk", reclaim.chunk, _MIB, 256 * _MIB, "1MiB to 256MiB")
        or within(f"{key}.rate", reclaim.rate, reclaim.chunk, 1 << 40, "one chunk to 1TiB (a second)")
        or within(f"{key}.slice", reclaim.slice, 10_000, 5_000_000, "10ms to 5s")
        or within(f"{key}.deadline", reclaim.deadline, 1_000_000, 600_000_000, "1s to 10min")
        or within(f"{key}.probe", reclaim.probe, _MIB, reclaim.chunk, "1MiB to one chunk")
        or within(f"{key}.settle", reclaim.settle, 1_000_000, 3_600_000_000, "1s to 1h")
        or within(f"{key}.watch", reclaim.watch, 1_000_000, 3_600_000_000, "1s to 1h")
        or within(f"{key}.hold", reclaim.hold, 1_000_000, 3_600_000_000, "1s to 1h")
        or within(f"{key}.hold_max", reclaim.hold_max, reclaim.hold, 86_400_000_000, "hold to 24h")
    )


def _pair(name: str, low: float | None, high: float | None) -> str | None:
    if high is not None and low is None:
        return f"memory.reclaim.{name}_high_pct: means nothing without {name}_low_pct"
    if low is not None and high is not None and high < low:
        return f"memory.reclaim.{name}_high_pct: must not be below {name}_low_pct"
    return None
