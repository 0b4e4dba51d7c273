"""Governor of the BE ceiling: what the target leaves of a link after LS and the system took theirs.

    ceiling = link * egress_target - LS egress        LS egress: the most of any tick in the last hold_sec

Down at once, up only after LS has stayed lower for that long and by at most a share of the link per second,
never below the floor, never for the sake of a few per cent. Rates that wander are followed at their upper
edge, so that they move nothing. HTB serves LS first whatever the ceiling says; the ceiling keeps the link
from filling up at all, so that LS does not wait behind BE packets that the device has already taken.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from qosd.net import split
from qosd.net.config import Net, parse_dscp
from qosd.net.device import workload_class
from qosd.net.model import Leaf, NetSample, Shape, UplinkSample
from qosd.plan import Input, Reason

_RULE = "net.shaping/ceiling"

Peaks = tuple[tuple[int, float], ...]
"""(usec, LS's bit/s), oldest first, each higher than all that came after it."""


class LinkState(msgspec.Struct, frozen=True, gc=False):
    ceil_bps: int
    split: split.Split = split.Split()
    peaks: Peaks = ()
    unknown_ticks: int = 0


State = dict[int, LinkState]
"""By ifindex; treated as a frozen value: every step returns a new one."""

INITIAL: State = {}


class _Bounds(NamedTuple):
    target: int
    floor: int
    deadband: int


def decide(
    config: Net,
    prev: NetSample | None,
    now: NetSample,
    state: State,
    limits: tuple[tuple[str, int], ...] = (),
) -> tuple[State, tuple[Shape, ...]]:
    """The shape wanted on every uplink; `limits` are (workload, egress_max in bit/s) of BE workloads."""
    leaves = tuple(Leaf(name, workload_class(i), rate) for i, (name, rate) in enumerate(limits))
    following: State = {}
    shapes = []
    for uplink in now.uplinks:
        held = _held(config, state, uplink)
        tick = split.tick_of(prev, now, uplink, held.ceil_bps)
        following[uplink.link.ifindex], reason = _decide_link(config, tick, held)
        ceil = following[uplink.link.ifindex].ceil_bps
        shapes.append(_shape(config, uplink, ceil, reason, leaves))
    return following, tuple(shapes)


def wants_classes(config: Net, prev: NetSample | None, now: NetSample, state: State) -> frozenset[int]:
    """On which uplinks the classes have to be read in this tick."""
    wanted = set()
    for uplink in now.uplinks:
        held = _held(config, state, uplink)
        tick = split.tick_of(prev, now, uplink, held.ceil_bps)
        if split.wants_reading(held.split, tick, _limits(bounds(config, uplink.speed_bps), held)):
            wanted.add(uplink.link.ifindex)
    return frozenset(wanted)


def bounds(config: Net, speed_bps: int) -> _Bounds:
    return _Bounds(
        target=int(speed_bps * config.egress_target_pct / 100),
        floor=int(speed_bps * config.be_floor_pct / 100),
        deadband=int(speed_bps * config.deadband_pct / 100),
    )


def _held(config: Net, state: State, uplink: UplinkSample) -> LinkState:
    return state.get(uplink.link.ifindex, LinkState(bounds(config, uplink.speed_bps).target))


def _limits(limit: _Bounds, held: LinkState) -> split.Limits:
    """At the floor it makes no difference any more how full the link is."""
    full = limit.target + limit.deadband if held.ceil_bps > limit.floor else float("inf")
    return split.Limits(full, limit.deadband)


def _decide_link(config: Net, tick: split.Tick, held: LinkState) -> tuple[LinkState, Reason]:
    speed = tick.uplink.speed_bps
    limit = bounds(config, speed)
    following, egress = split.follow(held.split, tick, _limits(limit, held))
    held = msgspec.structs.replace(held, split=following)
    if egress is None:
        return _without_egress(config, held, limit)
    peaks = _with_peak(held.peaks, tick.usec, egress.ls_bps, int(config.hold_sec * 1e6))
    used = peaks[0][1]
    rise = speed * config.up_pct / 100 * tick.span
    ceil, clamp = _next_ceiling(held.ceil_bps, limit.target - used, limit, rise)
    return LinkState(ceil, following, peaks), Reason(
        rule=_RULE,
        text=f"BE may send {_words(ceil)} of {_words(speed)}: LS and system use {_words(used)}",
        inputs=(
            Input("link", speed, "bit/s"),
            Input("ls_egress", round(egress.ls_bps), "bit/s"),
            Input("ls_egress_peak", round(used), "bit/s", (tick.usec - peaks[0][0]) // 1000),
            Input("total_egress", round(egress.total_bps), "bit/s"),
        ),
        threshold=f"egress_target_pct = {config.egress_target_pct:g}",
        margin=_words(limit.target - used),
        clamp=clamp,
    )


def _with_peak(peaks: Peaks, usec: int, bps: float, hold_usec: int) -> Peaks:
    return (*(peak for peak in peaks if peak[0] > usec - hold_usec and peak[1] > bps), (usec, bps))


def _without_egress(config: Net, held: LinkState, limit: _Bounds) -> tuple[LinkState, Reason]:
    """Unknown is not 0: hold what stands, and after long enough go back to the static ceiling."""
    unknown = held.unknown_ticks + 1
    released = unknown > config.release_ticks
    ceil = limit.target if released else held.ceil_bps
    return msgspec.structs.replace(held, ceil_bps=ceil, unknown_ticks=unknown), Reason(
        rule="net.shaping/release" if released else "net.shaping/hold",
        text=f"LS egress is unknown for {unknown} ticks; BE may send {_words(ceil)}",
        threshold=f"release_ticks = {config.release_ticks}",
    )


def _next_ceiling(old: int, allowance: float, limit: _Bounds, rise: float) -> tuple[int, str | None]:
    if allowance <= limit.floor:
        return limit.floor, "floor"
    wanted = min(int(allowance), limit.target)
    if wanted > old + rise:
        return int(old + rise), "ramp"
    at_an_end = wanted == limit.target and wanted != old
    if abs(wanted - old) <= limit.deadband and not at_an_end and old <= limit.target:
        return old, "deadband"
    return wanted, None


def _shape(
    config: Net, uplink: UplinkSample, ceil_bps: int, reason: Reason, leaves: tuple[Leaf, ...]
) -> Shape:
    return Shape(
        ifindex=uplink.link.ifindex,
        name=uplink.link.name,
        speed_bps=uplink.speed_bps,
        floor_bps=bounds(config, uplink.speed_bps).floor,
        ceil_bps=ceil_bps,
        reason=reason,
        leaves=leaves,
        dscp_be=None if config.dscp_be is None else parse_dscp(config.dscp_be),
        dscp_ls=None if config.dscp_ls is None else parse_dscp(config.dscp_ls),
    )


def _words(bps: float) -> str:
    if bps >= 10**9:
        return f"{bps / 10**9:.2f} Gbit/s"
    return f"{bps / 10**6:.1f} Mbit/s"
