"""How much of an uplink's egress is LS's, without asking the kernel for its classes in every tick. Pure.

    LS = tx_bytes of the device - BE        BE = what BPF counted, at most the ceiling, and `unseen`

Two counters that cost nothing to read tell it within a tick. BPF counts before the queue, in frames as the
stack made them (a driver may count the headers of every segment), and not what others put into BE's class.
That difference, `unseen`, is measured at every reading of the classes' own counters, and taken to stay until
the next. Where BPF does not run it is all of BE.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from qosd.net.device import BE_TIER, LS_CLASS
from qosd.net.model import NetSample, UplinkSample

REFRESH_USEC = 20_000_000
"""The classes are read this often in any case: three netlink requests a minute and uplink."""
_SETTLE = 2
_FLOOD = 1.1
"""BE that hands on so much more than its ceiling has packets dropped: BPF's count is no measure then."""


class Reading(msgspec.Struct, frozen=True, gc=False):
    """The counters of the classes and of the device at one moment."""

    usec: int
    ls_bytes: int
    be_bytes: int
    tx_bytes: int


class Split(msgspec.Struct, frozen=True, gc=False):
    reading: Reading | None = None
    unseen_bps: float | None = None
    """BE that BPF does not see, or (negative) sees too much of; None until two readings were compared."""
    handed_bits: float = 0.0
    """What BPF counted since the reading, in each tick at most the ceiling: the rest waits or is dropped."""
    counting: bool = False
    settle: int = _SETTLE
    """Ticks in which the classes are read, whatever the counters say."""


class Limits(NamedTuple):
    full_bps: float
    """Of the whole link: above it a flood gets less than its ceiling."""
    deadband_bps: float


class Tick(NamedTuple):
    """One uplink's counters as rates since the tick before; None is unknown."""

    uplink: UplinkSample
    usec: int
    span: float
    total_bps: float | None
    counted_bps: float | None
    ceil_bps: int
    """In force meanwhile."""


class Egress(NamedTuple):
    ls_bps: float
    total_bps: float


def tick_of(prev: NetSample | None, now: NetSample, uplink: UplinkSample, ceil_bps: int) -> Tick:
    before = None if prev is None else prev.uplink(uplink.link.ifindex)
    if prev is None or before is None:
        return Tick(uplink, now.monotonic_usec, 0.0, None, None, ceil_bps)
    span = (now.monotonic_usec - prev.monotonic_usec) / 1e6
    return Tick(
        uplink,
        now.monotonic_usec,
        span,
        _rate(before.tx_bytes, uplink.tx_bytes, span),
        _rate(before.be_counted_bytes, uplink.be_counted_bytes, span),
        ceil_bps,
    )


def wants_reading(split: Split, tick: Tick, limits: Limits) -> bool:
    """Whether the counters alone will not do in this tick."""
    if split.reading is None or split.settle > 0 or tick.usec - split.reading.usec >= REFRESH_USEC:
        return True
    if tick.total_bps is None or (tick.counted_bps is not None) is not split.counting:
        return True
    return _is_flooded(tick, limits)


def _is_flooded(tick: Tick, limits: Limits) -> bool:
    if tick.total_bps is None or tick.counted_bps is None:
        return False
    return tick.total_bps > limits.full_bps and tick.counted_bps > _FLOOD * tick.ceil_bps


def follow(split: Split, tick: Tick, limits: Limits) -> tuple[Split, Egress | None]:
    """Take one tick in: with the classes if they were read, else from the counters."""
    split = _counted(split, tick)
    reading = _reading(tick)
    if reading is None:
        return split, _estimate(split, tick)
    last, settle = split.reading, max(0, split.settle - 1)
    if last is None or not _follows(last, reading):
        split = msgspec.structs.replace(split, reading=reading, handed_bits=0.0, settle=max(1, settle))
        return split, _estimate(split, tick)
    seconds = (reading.usec - last.usec) / 1e6
    ls = (reading.ls_bytes - last.ls_bytes) * 8 / seconds
    total = (reading.tx_bytes - last.tx_bytes) * 8 / seconds
    unseen = total - ls - split.handed_bits / seconds
    surprise = split.unseen_bps is not None and abs(unseen - split.unseen_bps) > limits.deadband_bps
    if surprise or _is_flooded(tick, limits):
        settle = max(1, settle)  # this reading is a mean since the last one, the next will be of one tick
    split = Split(reading, unseen, 0.0, split.counting, settle)
    if seconds > 1.5 * tick.span:
        return split, _estimate(split, tick)
    return split, Egress(ls, total)


def _counted(split: Split, tick: Tick) -> Split:
    counting = tick.counted_bps is not None
    if counting is not split.counting:
        # What was learned without the count is wrong with it. A reading of the last tick still holds.
        last = split.reading
        recent = last is not None and tick.usec - last.usec <= 1.5 * tick.span * 1e6
        split = Split(reading=last if recent else None, counting=counting)
    handed = min(tick.counted_bps or 0.0, tick.ceil_bps) * tick.span
    return msgspec.structs.replace(split, handed_bits=split.handed_bits + handed)


def _reading(tick: Tick) -> Reading | None:
    ls, be = tick.uplink.class_bytes(LS_CLASS), tick.uplink.class_bytes(BE_TIER)
    if ls is None or be is None or tick.uplink.tx_bytes is None:
        return None
    return Reading(tick.usec, ls, be, tick.uplink.tx_bytes)


def _follows(last: Reading, now: Reading) -> bool:
    """A counter that went back (a qdisc built anew, a driver reset) is unknown, not negative."""
    forth = now.ls_bytes >= last.ls_bytes and now.be_bytes >= last.be_bytes and now.tx_bytes >= last.tx_bytes
    return forth and now.usec > last.usec


def _estimate(split: Split, tick: Tick) -> Egress | None:
    if split.unseen_bps is None or tick.total_bps is None:
        return None
    handed = min(tick.counted_bps or 0.0, tick.ceil_bps) + split.unseen_bps
    be = min(max(handed, 0.0), tick.ceil_bps)
    return Egress(max(0.0, tick.total_bps - be), tick.total_bps)


def _rate(before: int | None, after: int | None, span: float) -> float | None:
    if before is None or after is None or span <= 0 or after < before:
        return None
    return (after - before) * 8 / span
