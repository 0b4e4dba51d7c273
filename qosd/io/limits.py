"""io.max of BE, driven by how long LS waits for IO: halved while it waits, slowly given back after.

The last resort, off by default: a limited task may hold a filesystem's journal that LS needs, hence a floor.
A limit comes only to a disk that the waiting LS workload uses and at which BE did enough to be the reason.
The law is AIMD on one number, the share of what BE did there when it was first limited. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from qosd.ask import Tighten
from qosd.config import Config
from qosd.errors import Malformed
from qosd.files import line_of
from qosd.io.rates import Rates, Sufferer, rates, sufferer, tier_rates
from qosd.iofs import LIMITS, parse_io_setting
from qosd.model import MAX, CgroupId, IoMax, Max, Snapshot, Tier, Workload
from qosd.plan import Desired, Input, Reason
from qosd.schema.io import IoLimits

RULE = "io.limits"
_MIB = 1 << 20


class Held(msgspec.Struct, frozen=True, gc=False):
    """A limit of ours on one workload at one disk."""

    share: float
    peak: Rates
    """What it did before it was limited; each kind grows while that kind is not limited yet."""
    theirs: IoMax
    """The line that stood there first: a limit of the operator's is never widened."""


class State(msgspec.Struct, frozen=True, gc=False):
    held: dict[tuple[CgroupId, str], Held] = {}
    unknown_ticks: int = 0


class Tick(msgspec.Struct, frozen=True, gc=False):
    """What is the same for every workload and disk of a tick."""

    limits: IoLimits
    prev: Snapshot | None
    now: Snapshot
    waiting: Sufferer
    asked: Tighten | None = None
    """What the ladder of answers asks, which judges by the baseline of the one who waits."""

    @property
    def is_bad(self) -> bool:
        by_law = self.limits.enforce and self.waiting.pct >= self.limits.pressure_high_pct
        return by_law or (self.asked is not None and self.asked.hot)

    @property
    def is_good(self) -> bool:
        by_law = not self.limits.enforce or self.waiting.pct <= self.limits.pressure_low_pct
        return by_law and (self.asked is None or self.asked.quiet)


def decide(
    config: Config, prev: Snapshot | None, now: Snapshot, state: State, asked: Tighten | None = None
) -> tuple[State, tuple[Desired, ...]]:
    limits = config.io.limits
    if not limits.enforce and asked is None:
        return State(), ()
    waiting = sufferer(prev, now, None if limits.enforce or asked is None else asked.victims)
    if waiting is None:
        return _hold(limits, now, state)
    tick = Tick(limits, prev, now, waiting, asked)
    held = {key: after for key, after in _judged(tick, state) if after is not None}
    following = State(held)
    return following, tuple(_desired(tick, following))


def _hold(limits: IoLimits, now: Snapshot, state: State) -> tuple[State, tuple[Desired, ...]]:
    """Nobody knows how long LS waits: keep what is in force, give it up when that lasts. Never tighten."""
    unknown = state.unknown_ticks + 1
    if unknown > limits.release_ticks:
        return State(unknown_ticks=unknown), ()
    reason = Reason(RULE, f"LS's io pressure is unknown for {unknown} ticks; the limit is held")
    wanted = [
        Desired(workload.id, workload.path, workload.tier, limit_of(limits, device, held), reason)
        for (cgroup_id, device), held in state.held.items()
        if (workload := now.workload(cgroup_id)) is not None
    ]
    return State(state.held, unknown), tuple(wanted)


def _judged(tick: Tick, state: State) -> Iterator[tuple[tuple[CgroupId, str], Held | None]]:
    for workload in tick.now.tier(Tier.BE):
        for device in tick.now.disks:
            key = (workload.id, device)
            line = _line(workload, device)
            if line is not None:
                yield key, _next(tick, workload, state.held.get(key), line)


def _line(workload: Workload, device: str) -> IoMax | None:
    whole = workload.setting("io.max")
    if whole is None:
        return None
    name = f"io.max {device}"
    try:
        line = parse_io_setting(name, line_of(name, whole))
    except Malformed:
        return None
    return line if isinstance(line, IoMax) else None


def _next(tick: Tick, workload: Workload, held: Held | None, line: IoMax) -> Held | None:
    limits = tick.limits
    did = rates(tick.prev, tick.now, workload, line.device)
    if did is not None and held is not None:
        held = msgspec.structs.replace(held, peak=_grown(limits, held, did))
    if tick.is_bad:
        if did is None or not _is_named(tick, workload) or not _is_blamed(tick, line.device, did):
            return held
        before = held if held is not None else Held(1.0, did, line)
        share = max(before.share * (1 - limits.down_pct / 100), _least(limits, before.peak))
        return msgspec.structs.replace(before, share=share)
    if held is None or not tick.is_good:
        return held
    share = held.share + limits.up_pct / 100
    return msgspec.structs.replace(held, share=share) if share < 1 else None


def _floors(limits: IoLimits) -> tuple[float, ...]:
    return (float(limits.floor), float(limits.floor), float(limits.floor_iops), float(limits.floor_iops))


def _grown(limits: IoLimits, held: Held, did: Rates) -> Rates:
    """A kind that is limited cannot show what it would do; one that is not may turn out to be the trouble."""
    pairs = zip(held.peak.values(), did.values(), _floors(limits), strict=True)
    return Rates(*(peak if peak > floor else max(peak, rate) for peak, rate, floor in pairs))


def _least(limits: IoLimits, peak: Rates) -> float:
    """The share at which every kind stands at its floor: less would only delay the way back."""
    pairs = zip(peak.values(), _floors(limits), strict=True)
    return min((floor / rate for rate, floor in pairs if rate > floor), default=1.0)


def _is_named(tick: Tick, workload: Workload) -> bool:
    """The law looks at everybody, the ladder has the culprits of its verdict."""
    return tick.limits.enforce or tick.asked is None or workload.id in tick.asked.ids


def _is_blamed(tick: Tick, device: str, did: Rates) -> bool:
    """BE was at the very disk that the waiting workload uses, above its floor, with a part that counts."""
    if device not in tick.waiting.devices:
        return False
    if not any(rate > floor for rate, floor in zip(did.values(), _floors(tick.limits), strict=True)):
        return False
    ls = tier_rates(tick.prev, tick.now, Tier.LS, device)
    if ls is None:
        return False
    return be_part_pct(did, ls) >= tick.limits.blame_pct


def be_part_pct(be: Rates, ls: Rates) -> float:
    """Of bytes or of requests, whichever is more: a disk may be short of either."""
    parts = [
        100 * ours / (ours + theirs)
        for ours, theirs in ((be.bps, ls.bps), (be.iops, ls.iops))
        if ours + theirs > 0
    ]
    return max(parts, default=0.0)


def limit_of(limits: IoLimits, device: str, held: Held) -> IoMax:
    theirs = (held.theirs.rbps, held.theirs.wbps, held.theirs.riops, held.theirs.wiops)
    values = [
        _tighter(own, round(max(held.share * peak, floor)) if peak > floor else MAX)
        for own, peak, floor in zip(theirs, held.peak.values(), _floors(limits), strict=True)
    ]
    return IoMax(device, *values)


def _tighter(one: int | Max, other: int | Max) -> int | Max:
    if isinstance(one, Max):
        return other
    return one if isinstance(other, Max) else min(one, other)


def _desired(tick: Tick, state: State) -> Iterator[Desired]:
    for (cgroup_id, device), held in state.held.items():
        workload = tick.now.workload(cgroup_id)
        if workload is not None:
            setting = limit_of(tick.limits, device, held)
            yield Desired(workload.id, workload.path, workload.tier, setting, _reason(tick, held, setting))


def _reason(tick: Tick, held: Held, setting: IoMax) -> Reason:
    limits, waiting = tick.limits, tick.waiting
    at_floor = held.share <= _least(limits, held.peak)
    text = (
        f"BE keeps {held.share * 100:.0f} % of what it did at disk {setting.device}: "
        f"{waiting.workload.name} waited for IO {waiting.pct:.1f} % of the last tick"
    )
    asked = tick.asked
    return Reason(
        RULE if asked is None else f"{RULE}/ladder",
        text if asked is None else f"{text}; {asked.reason.text}",
        (
            Input(f"io pressure of {waiting.workload.name}", round(waiting.pct, 2), "%"),
            *(
                Input(
                    f"{name} before the limit",
                    round(value if name.endswith("iops") else value / _MIB, 2),
                    unit,
                )
                for name, value, unit in zip(
                    LIMITS, held.peak.values(), ("MiB/s", "MiB/s", "1/s", "1/s"), strict=True
                )
            ),
        ),
        threshold=f"down from {limits.pressure_high_pct:g} %, up below {limits.pressure_low_pct:g} %"
        if limits.enforce or asked is None
        else asked.reason.threshold,
        clamp="floor" if at_floor else None,
    )
