"""The `[interference]` section: schema, defaults, ranges. Imports nothing of qosd but its units. Pure.

Where the defaults come from: docs/interference.md.
"""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta

from qosd.schema.units import Duration, Percent, Section, within

Share = Annotated[float, Meta(gt=0, le=100)]
Ticks = Annotated[int, Meta(ge=1, le=1000)]
_HOUR = 3_600_000_000


class MaxAnswer(enum.StrEnum):
    """How far the ladder may go."""

    REPORT = "report"
    THROTTLE = "throttle"
    FREEZE = "freeze"
    KILL = "kill"


class Kill(Section, frozen=True):
    after: Duration = Duration(10_000_000)
    mem_available_pct: Share = 10.0
    victim_min_pct: Percent = 1.0
    term_grace: Duration = Duration(5_000_000)
    settle: Duration = Duration(15_000_000)
    cooldown: Duration = Duration(60_000_000)
    window: Duration = Duration(600_000_000)
    per_window: Annotated[int, Meta(ge=0, le=100)] = 5
    per_day: Annotated[int, Meta(ge=0, le=1000)] = 20


class Interference(Section, frozen=True):
    answer: MaxAnswer = MaxAnswer.REPORT
    cpu_some_pct: Share = 25.0
    memory_some_pct: Share = 10.0
    io_some_pct: Share = 30.0
    leave_pct: Percent = 50.0
    enter_ticks: Ticks = 3
    leave_ticks: Ticks = 5
    be_share_pct: Share = 20.0
    be_seen_pct: Share = 50.0
    quiet_pct: Percent = 2.0
    baseline_ticks: Ticks = 60
    dwell_up: Duration = Duration(3_000_000)
    dwell_down: Duration = Duration(10_000_000)
    squeeze_down_pct: Share = 30.0
    squeeze_up_pct: Share = 10.0
    squeeze_floor_pct: Share = 25.0
    freeze_lease: Duration = Duration(10_000_000)
    freeze_rest: Duration = Duration(10_000_000)
    flap_max: Annotated[int, Meta(ge=1, le=100)] = 4
    flap_window: Duration = Duration(120_000_000)
    flap_hold: Duration = Duration(120_000_000)
    release_ticks: Annotated[int, Meta(ge=2, le=1000)] = 30
    kill: Kill = Kill()


def check(section: Interference) -> str | None:
    """What no single field can say: the path of the bad key and why, or None."""
    kill = section.kill
    return (
        within("interference.dwell_up", section.dwell_up, 0, _HOUR, "0s to 1h")
        or within("interference.dwell_down", section.dwell_down, 0, _HOUR, "0s to 1h")
        or within("interference.freeze_lease", section.freeze_lease, 1_000_000, 60_000_000, "1s to 1min")
        or within("interference.freeze_rest", section.freeze_rest, 1_000_000, _HOUR, "1s to 1h")
        or within("interference.flap_window", section.flap_window, 1_000_000, _HOUR, "1s to 1h")
        or within("interference.flap_hold", section.flap_hold, 1_000_000, _HOUR, "1s to 1h")
        or within("interference.kill.after", kill.after, 1_000_000, _HOUR, "1s to 1h")
        or within("interference.kill.term_grace", kill.term_grace, 0, 60_000_000, "0s to 1min")
        or within("interference.kill.settle", kill.settle, 1_000_000, _HOUR, "1s to 1h")
        or within("interference.kill.cooldown", kill.cooldown, 1_000_000, _HOUR, "1s to 1h")
        or within("interference.kill.window", kill.window, 1_000_000, _HOUR, "1s to 1h")
    )
