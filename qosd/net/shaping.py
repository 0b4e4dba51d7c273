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
from qosd.net.device import BE_TIER, LS_CLASS, workload_class
from qosd.net.model import Leaf, NetSample, Shape, UplinkSample
from qosd.plan import Input, Reason

_RULE = "net.shaping/ceiling"
_REFRESH_USEC = 7_500_000
"""Classes are read at least this often, which leaves a quiet uplink at eight netlink requests a minute."""
_SETTLE_TICKS = 2
"""After a change the classes are read in the next ticks too: the tick of the change only bounds LS's
share."""


class Reading(msgspec.Struct, frozen=True, gc=False):
    """The classes as last read on one uplink, and the whole link's rate at that time."""

    usec: int
    ls_bytes: int
    be_bytes: int
    total_bps: float | None = None
    sent_bps: float | None = None
    """BE's rate over all devices, from the BPF counters."""


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


class _Rates(NamedTuple):
    """Bit/s since the previous tick; None is unknown."""

    total: float | None
    sent: float | None
    span: float
    """Seconds since the previous tick."""


class _Tick(NamedTuple):
    uplink: UplinkSample
    usec: int
    rates: _Rates


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
    leaves = tuple(Leaf(name, workload_class(i), rate) for i, (name, rate) in enumerate(limits))
    following: State = {}
    shapes = []
    for uplink in now.uplinks:
        ifindex = uplink.link.ifindex
        held = state.get(ifindex, LinkState(bounds(config, uplink.speed_bps).target))
        tick = _Tick(uplink, now.monotonic_usec, _rates(prev, now, ifindex))
        following[ifindex], reason = _decide_link(config, tick, held)
        shapes.append(_shape(config, uplink, following[ifindex].ceil_bps, reason, leaves))
    return following, tuple(shapes)


def wants_classes(config: Net, prev: NetSample | None, now: NetSample, state: State) -> frozenset[int]:
    """On which uplinks the classes have to be read in this tick, from what sysfs counted alone.

    While a link's total rate and BE's own, as BPF counts it, stand still within the deadband, so does the
    split. Without BPF, BE may give to LS what LS takes, as behind a bottleneck further on: the refresh sees
    it.
    """
    wanted = set()
    for uplink in now.uplinks:
        ifindex = uplink.link.ifindex
        held = state.get(ifindex)
        if held is None or held.reading is None or held.settle > 0:
            wanted.add(ifindex)
            continue
        rates = _rates(prev, now, ifindex)
        stale = now.monotonic_usec - held.reading.usec >= _REFRESH_USEC
        if stale or rates.total is None or _moved(held.reading, rates, bounds(config, uplink.speed_bps)):
            wanted.add(ifindex)
    return frozenset(wanted)


def bounds(config: Net, speed_bps: int) -> _Bounds:
    return _Bounds(
        target=int(speed_bps * config.egress_target_pct / 100),
        floor=int(speed_bps * config.be_floor_pct / 100),
        deadband=int(speed_bps * config.deadband_pct / 100),
    )


def _moved(reading: Reading, rates: _Rates, limit: _Bounds) -> bool:
    if rates.total is None or reading.total_bps is None:
        return True
    if abs(rates.total - reading.total_bps) > limit.deadband:
        return True
    if rates.sent is None or reading.sent_bps is None:
        return rates.sent is not reading.sent_bps
    return abs(rates.sent - reading.sent_bps) > limit.deadband


def _rates(prev: NetSample | None, now: NetSample, ifindex: int) -> _Rates:
    if prev is None:
        return _Rates(None, None, 0.0)
    span = (now.monotonic_usec - prev.monotonic_usec) / 1e6
    before, after = prev.uplink(ifindex), now.uplink(ifindex)
    total = None if before is None or after is None else _rate(before.tx_bytes, after.tx_bytes, span)
    return _Rates(total, _rate(prev.be_sent_bytes, now.be_sent_bytes, span), span)


def _rate(before: int | None, after: int | None, span: float) -> float | None:
    if before is None or after is None or span <= 0:
        return None
    # A counter that went back (driver reset) is unknown, not negative.
    return None if after < before else (after - before) * 8 / span


def _decide_link(config: Net, tick: _Tick, held: LinkState) -> tuple[LinkState, Reason]:
    speed, span = tick.uplink.speed_bps, tick.rates.span
    limit = bounds(config, speed)
    state, egress = _egress(held, tick, limit)
    if egress is None:
        return _without_reading(config, state, limit)
    weight = min(1.0, span / config.mean_sec)
    mean = egress.ls_bps if state.ls_mean_bps is None else state.ls_mean_bps
    mean += weight * (egress.ls_bps - mean)
    used = max(egress.ls_bps, mean)
    ceil, clamp = _next_ceiling(held.ceil_bps, limit.target - used, limit, speed * config.up_pct / 100 * span)
    state = msgspec.structs.replace(state, ceil_bps=ceil, ls_mean_bps=mean, unknown_ticks=0)
    return state, Reason(
        rule=_RULE,
        text=f"BE may send {_words(ceil)} of {_words(speed)}: LS and system use {_words(used)}",
        inputs=(
            Input("link", speed, "bit/s"),
            Input("ls_egress", round(egress.ls_bps), "bit/s", egress.age_ms),
            Input("ls_egress_mean", round(mean), "bit/s"),
            Input("total_egress", round(egress.total_bps), "bit/s"),
        ),
        threshold=f"egress_target_pct = {config.egress_target_pct:g}",
        margin=_words(limit.target - used),
        clamp=clamp,
    )


def _egress(held: LinkState, tick: _Tick, limit: _Bounds) -> tuple[LinkState, _Egress | None]:
    """LS egress in this tick, from the classes if they were read, else from the total and BE's last rate."""
    uplink, usec, (total, sent, span) = tick
    ls_bytes, be_bytes = uplink.class_bytes(LS_CLASS), uplink.class_bytes(BE_TIER)
    if ls_bytes is None or be_bytes is None:
        if total is None or held.be_bps is None or held.reading is None:
            return held, None
        ls = max(0.0, total - held.be_bps)
        return held, _Egress(ls, total, (usec - held.reading.usec) // 1000)
    last = held.reading
    reading = Reading(usec, ls_bytes, be_bytes, total, sent)
    settle = _SETTLE_TICKS if last is None or _moved(last, tick.rates, limit) else held.settle - 1
    state = msgspec.structs.replace(held, reading=reading, settle=max(0, settle))
    if last is None or usec <= last.usec or ls_bytes < last.ls_bytes or be_bytes < last.be_bytes:
        return msgspec.structs.replace(state, be_bps=None), None
    seconds = (usec - last.usec) / 1e6
    ls, be = (ls_bytes - last.ls_bytes) * 8 / seconds, (be_bytes - last.be_bytes) * 8 / seconds
    if held.be_bps is not None and abs(be - held.be_bps) > limit.deadband:
        state = msgspec.structs.replace(state, settle=_SETTLE_TICKS)
    if total is None:
        total = ls + be
    if seconds > 1.5 * span:
        # `ls` is a mean over ticks without a reading. BE sent at most its ceiling, LS the rest of this tick.
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
