"""Governor of the BE ceiling: what the target leaves of a link after LS and the system took theirs.

    ceiling = link * egress_target - LS egress

Down at once, up by at most a share of the link per second, never below the floor, never for the sake of a few
per cent. HTB serves LS first whatever the ceiling says; the ceiling keeps the link from filling up at all, so
that LS does not wait behind BE packets that the device has already taken.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from qosd.net.config import Net, parse_dscp
from qosd.net.device import BE_TIER, FIRST_WORKLOAD_CLASS, LS_CLASS
from qosd.net.model import Leaf, NetSample, Shape, UplinkSample
from qosd.plan import Input, Reason

_RULE = "net.shaping/ceiling"
_REFRESH_USEC = 15_000_000
"""Classes are read at least this often, which leaves a quiet uplink at four netlink requests a minute."""
_SETTLE_TICKS = 2
"""After a change the classes are read in the next ticks too: the tick of the change only bounds LS's
share."""


class Reading(msgspec.Struct, frozen=True, gc=False):
    """The classes as last read on one uplink, and the whole link's rate at that time."""

    usec: int
    ls_bytes: int
    be_bytes: int
    total_bps: float | None = None


class LinkState(msgspec.Struct, frozen=True, gc=False):
    ceil_bps: int
    reading: Reading | None = None
    be_bps: float | None = None
    """BE's rate between the last two readings."""
    ls_mean_bps: float | None = None
    settle: int = _SETTLE_TICKS
    unknown_ticks: int = 0


State = dict[int, LinkState]
"""By ifindex; treated as a frozen value: every step returns a new one."""

INITIAL: State = {}


class _Bounds(NamedTuple):
    target: int
    floor: int
    deadband: int


class _Tick(NamedTuple):
    uplink: UplinkSample
    usec: int
    span: float
    """Seconds since the previous tick."""


class _Egress(NamedTuple):
    """LS egress of one tick in bit/s, and what it came from."""

    ls_bps: float
    total_bps: float
    age_ms: int


def decide(
    config: Net,
    prev: NetSample | None,
    now: NetSample,
    state: State,
    limits: tuple[tuple[str, int], ...] = (),
) -> tuple[State, tuple[Shape, ...]]:
    """The shape wanted on every uplink; `limits` are (workload, egress_max in bit/s) of BE workloads."""
    leaves = tuple(Leaf(name, FIRST_WORKLOAD_CLASS + i, rate) for i, (name, rate) in enumerate(limits))
    following: State = {}
    shapes = []
    for uplink in now.uplinks:
        before = prev.uplink(uplink.link.ifindex) if prev is not None else None
        span = (now.monotonic_usec - prev.monotonic_usec) / 1e6 if prev is not None else 0.0
        held = state.get(uplink.link.ifindex)
        held = LinkState(bounds(config, uplink.speed_bps).target) if held is None else held
        following[uplink.link.ifindex], reason = _decide_link(
            config, _total_bps(before, uplink, span), _Tick(uplink, now.monotonic_usec, span), held
        )
        shapes.append(_shape(config, uplink, following[uplink.link.ifindex].ceil_bps, reason, leaves))
    return following, tuple(shapes)


def wants_classes(config: Net, prev: NetSample | None, now: NetSample, state: State) -> frozenset[int]:
    """On which uplinks the classes have to be read in this tick, from what sysfs counted alone.

    While a link's total rate stands still within the deadband, so does the split of it: either tier could
    only have grown at the other's expense, and BE's share is already bounded by its ceiling.
    """
    wanted = set()
    for uplink in now.uplinks:
        ifindex = uplink.link.ifindex
        held = state.get(ifindex)
        if held is None or held.reading is None or held.settle > 0:
            wanted.add(ifindex)
            continue
        before = prev.uplink(ifindex) if prev is not None else None
        span = (now.monotonic_usec - prev.monotonic_usec) / 1e6 if prev is not None else 0.0
        total = _total_bps(before, uplink, span)
        stale = now.monotonic_usec - held.reading.usec >= _REFRESH_USEC
        if stale or total is None or _moved(held.reading, total, bounds(config, uplink.speed_bps)):
            wanted.add(ifindex)
    return frozenset(wanted)


def bounds(config: Net, speed_bps: int) -> _Bounds:
    return _Bounds(
        target=int(speed_bps * config.egress_target_pct / 100),
        floor=int(speed_bps * config.be_floor_pct / 100),
        deadband=int(speed_bps * config.deadband_pct / 100),
    )


def _moved(reading: Reading, total_bps: float, limit: _Bounds) -> bool:
    return reading.total_bps is None or abs(total_bps - reading.total_bps) > limit.deadband


def _total_bps(before: UplinkSample | None, now: UplinkSample, span: float) -> float | None:
    if before is None or before.tx_bytes is None or now.tx_bytes is None or span <= 0:
        return None
    if now.tx_bytes < before.tx_bytes:  # driver reset: unknown, not negative
        return None
    return (now.tx_bytes - before.tx_bytes) * 8 / span


def _decide_link(config: Net, total: float | None, tick: _Tick, held: LinkState) -> tuple[LinkState, Reason]:
    uplink, _usec, span = tick
    limit = bounds(config, uplink.speed_bps)
    state, egress = _egress(held, tick, total, limit)
    if egress is None:
        return _without_reading(config, state, limit)
    weight = min(1.0, span / config.mean_sec)
    mean = egress.ls_bps if state.ls_mean_bps is None else state.ls_mean_bps
    mean += weight * (egress.ls_bps - mean)
    used = max(egress.ls_bps, mean)
    ceil, clamp = _next_ceiling(
        held.ceil_bps, limit.target - used, limit, uplink.speed_bps * config.up_pct / 100 * span
    )
    state = msgspec.structs.replace(state, ceil_bps=ceil, ls_mean_bps=mean, unknown_ticks=0)
    return state, Reason(
        rule=_RULE,
        text=f"BE may send {_words(ceil)} of {_words(uplink.speed_bps)}: LS and system use {_words(used)}",
        inputs=(
            Input("link", uplink.speed_bps, "bit/s"),
            Input("ls_egress", round(egress.ls_bps), "bit/s", egress.age_ms),
            Input("ls_egress_mean", round(mean), "bit/s"),
            Input("total_egress", round(egress.total_bps), "bit/s"),
        ),
        threshold=f"egress_target_pct = {config.egress_target_pct:g}",
        margin=_words(limit.target - used),
        clamp=clamp,
    )


def _egress(
    held: LinkState, tick: _Tick, total: float | None, limit: _Bounds
) -> tuple[LinkState, _Egress | None]:
    """LS egress in this tick, from the classes if they were read, else from the total and BE's last rate."""
    uplink, usec, span = tick
    ls_bytes, be_bytes = uplink.class_bytes(LS_CLASS), uplink.class_bytes(BE_TIER)
    if ls_bytes is None or be_bytes is None:
        if total is None or held.be_bps is None or held.reading is None:
            return held, None
        ls = max(0.0, total - held.be_bps)
        return held, _Egress(ls, total, (usec - held.reading.usec) // 1000)
    last = held.reading
    reading = Reading(usec, ls_bytes, be_bytes, total)
    settle = (
        _SETTLE_TICKS
        if last is None or (total is not None and _moved(last, total, limit))
        else held.settle - 1
    )
    state = msgspec.structs.replace(held, reading=reading, settle=max(0, settle))
    if last is None or usec <= last.usec or ls_bytes < last.ls_bytes or be_bytes < last.be_bytes:
        return msgspec.structs.replace(state, be_bps=None), None
    seconds = (usec - last.usec) / 1e6
    ls, be = (ls_bytes - last.ls_bytes) * 8 / seconds, (be_bytes - last.be_bytes) * 8 / seconds
    if total is None:
        total = ls + be
    if seconds > 1.5 * span:
        # `ls` is a mean over the ticks without a reading. BE sent at most its ceiling; the rest of this tick
        # was LS.
        ls = max(ls, total - held.ceil_bps)
    return msgspec.structs.replace(state, be_bps=be), _Egress(ls, total, 0)


def _without_reading(config: Net, held: LinkState, limit: _Bounds) -> tuple[LinkState, Reason]:
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
