"""Time windows: the configuration as it is at this minute. Pure: the Snapshot says what the clocks show.

Whatever decides on X and on BE's floor is given the configuration that `apply` returns, and needs not know
that there are windows. Nothing is remembered, so a clock that jumps is right again at the next tick.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu.allowance import Allowance
from qosd.model import Snapshot
from qosd.schema.cpu import Enforce
from qosd.schema.windows import MINUTES_PER_DAY, Window, minutes_left

_MINUTES_PER_HOUR = 60
_NOTHING_PCT = 1e-6  # a target that no host is below: BE is left its floor


class WindowView(msgspec.Struct, frozen=True, gc=False):
    """An open window."""

    name: str
    zone: str
    left_minutes: int
    """Until it closes, by the clock on the wall."""
    changes: str


def apply(config: Config, now: Snapshot) -> tuple[Config, tuple[WindowView, ...]]:
    """The configuration in force now, and the open windows. The first window that sets a key holds."""
    found = [
        (window, left)
        for window in config.window
        if (minute := now.local_minutes.get(window.zone)) is not None
        and (left := minutes_left(window, minute)) is not None
    ]
    if not found:
        return config, ()
    windows = [window for window, _ in found]
    target = next((w.cpu_target_pct for w in windows if w.cpu_target_pct is not None), None)
    floor = next((w.floor_pct for w in windows if w.floor_pct is not None), None)
    if any(window.pause_be for window in windows):
        target = _NOTHING_PCT
    if target is not None:
        config = msgspec.structs.replace(
            config, host=msgspec.structs.replace(config.host, cpu_target_pct=target)
        )
    if floor is not None:
        bandwidth = msgspec.structs.replace(config.cpu.bandwidth, floor_pct=floor)
        config = msgspec.structs.replace(config, cpu=msgspec.structs.replace(config.cpu, bandwidth=bandwidth))
    binds = config.cpu.bandwidth.enforce is not Enforce.NONE or bool(config.pool)
    return config, tuple(WindowView(w.name, w.zone, left, _changes(w, binds=binds)) for w, left in found)


def pauses(config: Config) -> bool:
    """Whether a configuration that `apply` returned leaves BE nothing but its floor."""
    return config.host.cpu_target_pct <= _NOTHING_PCT


def explained(granted: Allowance, opened: tuple[WindowView, ...]) -> Allowance:
    """The allowance with the windows that had a say in it."""
    if not opened:
        return granted
    said = "; ".join(
        f"window {view.name} is open for {duration(view.left_minutes)} more: {view.changes}"
        for view in opened
    )
    paused = any("paused" in view.changes for view in opened)
    reason = granted.reason
    text = f"{reason.text}; {said}" if not paused else f"BE is paused but for its floor; {said}"
    threshold = reason.threshold if not paused else "host.cpu_target_pct has no say while BE is paused"
    return msgspec.structs.replace(
        granted, reason=msgspec.structs.replace(reason, text=text, threshold=threshold)
    )


def duration(minutes: int) -> str:
    """`6 h 05 min`."""
    if minutes >= MINUTES_PER_DAY:
        return f"{minutes // MINUTES_PER_DAY} d {minutes % MINUTES_PER_DAY // _MINUTES_PER_HOUR} h"
    hours, rest = divmod(minutes, _MINUTES_PER_HOUR)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"


def _changes(window: Window, *, binds: bool) -> str:
    parts = []
    if window.pause_be:
        parts.append("BE is paused")
    elif window.cpu_target_pct is not None:
        nobody = "" if binds else ", which holds nobody: enforce is none"
        parts.append(f"target {window.cpu_target_pct:g} %{nobody}")
    if window.floor_pct is not None:
        parts.append(f"floor {window.floor_pct:g} %")
    return ", ".join(parts)
