"""The `[cpu.burst]` section: LS workloads that their own cpu.max holds back. Pure."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta

from qosd.schema.units import Duration, Percent, Section, within


class BurstPolicy(enum.StrEnum):
    OFF = "off"
    BURST = "burst"
    QUOTA = "quota"
    BOTH = "both"


class CpuBurst(Section, frozen=True):
    enforce: BurstPolicy = BurstPolicy.OFF
    burst_pct: Annotated[float, Meta(gt=0, le=100)] = 100.0
    max_pct: Annotated[float, Meta(ge=100, le=1000)] = 300.0
    throttled_pct: Percent = 5.0
    up_pct: Annotated[float, Meta(gt=0, le=100)] = 20.0
    down_pct: Annotated[float, Meta(gt=0, le=100)] = 20.0
    hold_pct: Annotated[float, Meta(gt=0, le=100)] = 45.0
    room_pct: Annotated[float, Meta(gt=0, le=100)] = 50.0
    quiet: Duration = Duration(30_000_000)
    budget: Duration = Duration(300_000_000)
    save_below_pct: Annotated[float, Meta(gt=0, le=100)] = 60.0


def check(burst: CpuBurst) -> str | None:
    if burst.hold_pct > burst.room_pct:
        return f"cpu.burst.hold_pct: must not be above room_pct ({burst.room_pct:g})"
    return within("cpu.burst.quiet", burst.quiet, 1_000_000, 3_600_000_000, "1s to 1h") or within(
        "cpu.burst.budget", burst.budget, 1_000_000, 86_400_000_000, "1s to 24h"
    )
