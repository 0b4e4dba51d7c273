"""The `[fast]` section: what is done between two ticks, and how it is taken back. Pure."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from qosd.schema.units import Duration, Percent, Section, within


class Fast(Section, frozen=True):
    max_triggers: Annotated[int, Meta(ge=0, le=1024)] = 64
    window: Duration = Duration(100_000)
    threshold_pct: Annotated[float, Meta(gt=0, le=100)] = 50.0
    self_throttled: Duration = Duration(1_000)
    be_ran_pct: Percent = 1.0
    cut_idle: bool = False
    probe_waits: bool = False
    keep_pct: Annotated[float, Meta(gt=0, le=95)] = 50.0
    dwell: Duration = Duration(250_000)
    hold: Duration = Duration(1_000_000)
    hold_max: Duration = Duration(10_000_000)
    up_pct: Annotated[float, Meta(gt=0, le=1000)] = 50.0


def check(fast: Fast) -> str | None:
    """What no single field can say: the path of the bad key and why, or None."""
    # Kernel limits: a PSI trigger's window is at most 10 s (WINDOW_MAX_US in kernel/sched/psi.c), and is
    # looked at ten times; a millisecond each is as short as is of use.
    return (
        within("fast.window", fast.window, 10_000, 10_000_000, "10ms to 10s")
        or within("fast.self_throttled", fast.self_throttled, 0, 10_000_000, "0s to 10s")
        or within("fast.dwell", fast.dwell, 0, 60_000_000, "0s to 1min")
        or within("fast.hold", fast.hold, 0, 600_000_000, "0s to 10min")
        or within("fast.hold_max", fast.hold_max, fast.hold, 3_600_000_000, "fast.hold to 1h")
    )
