"""Who in a pool gives way when the pool is above its band and can get no more: its own cpu.max. Pure.

The biggest user of the lowest priority is held to what brings the pool back to the top of its band. While
the pool stays below the middle of the band, each check gives the last one some of it back.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from qosd.model import CgroupId

_LEAST_OF_SIZE = 0.05  # nobody is cut to less of its pool: it must be able to finish
_NOISE_OF_SIZE = 0.02  # a quota is met to about a per cent
_BACK = 1.5  # each check gives half as much again, until its share does not bind any more
_DELAY_TICKS = 2  # one tick above the band may be noise


class Load(NamedTuple):
    use: float | None
    size: float
    band: tuple[float, float]
    short: bool
    """It wanted more than it has."""


class State(msgspec.Struct, frozen=True, gc=False):
    caps: dict[CgroupId, float] = {}
    """In the order in which they were degraded."""
    over_ticks: int = 0
    checked_usec: int = 0


Member = tuple[CgroupId, int, float | None]
"""Id, priority, use."""


def decide(load: Load, members: tuple[Member, ...], now_usec: int, check_usec: int, before: State) -> State:
    here = {cgroup_id for cgroup_id, _, _ in members}
    caps = {cgroup_id: cap for cgroup_id, cap in before.caps.items() if cgroup_id in here}
    if load.use is None:
        return msgspec.structs.replace(before, caps=caps)
    low, high = load.band
    over = load.use - load.size * high / 100
    if over > load.size * _NOISE_OF_SIZE and load.short:
        ticks = before.over_ticks + 1
        if ticks >= _DELAY_TICKS:
            return State(_cut(members, caps, over, load.size), 0, now_usec)
        return State(caps, ticks, before.checked_usec)
    middle = load.size * (low + high) / 200
    due = now_usec - before.checked_usec >= check_usec
    if not caps or load.use > middle or not due:
        return State(caps, 0, before.checked_usec)
    return State(_lift(caps, load.size), 0, now_usec)


def _cut(
    members: tuple[Member, ...], caps: dict[CgroupId, float], over: float, size: float
) -> dict[CgroupId, float]:
    """Hold the biggest user of the lowest priority that still has something to give."""
    least = size * _LEAST_OF_SIZE
    ranked = sorted(members, key=lambda member: (-member[1], -(member[2] or 0.0)))
    for cgroup_id, _, use in ranked:
        if use is not None and use > least * 2:
            others = {key: cap for key, cap in caps.items() if key != cgroup_id}
            return {**others, cgroup_id: max(use - over, least)}
    return caps


def _lift(caps: dict[CgroupId, float], size: float) -> dict[CgroupId, float]:
    """The last one degraded is the first to get something back."""
    last = list(caps)[-1]
    following = {**caps, last: caps[last] * _BACK}
    if following[last] >= size:
        del following[last]
    return following
