"""LS workloads that their own cpu.max holds back: a burst, and more quota while the host has room. Pure.

After koordlet's `cpu_burst.go`, with three differences: the share of throttled periods counts, and not a
single one; what was raised is given back once it is not needed, not only when the host is short; and it
goes step by step. A bucket of CPU seconds keeps a workload from living on what is raised.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from qosd.config import Config
from qosd.cpu.allowance import Usage, workload_cores
from qosd.cpu.limit import limit_of
from qosd.model import CgroupId, CpuMax, CpuMaxBurst, Max, Snapshot, Tier, Workload, printable
from qosd.plan import Desired, Input, Reason
from qosd.schema.burst import BurstPolicy, CpuBurst

RULE = "cpu.burst"
_USEC = 1_000_000
_HALF = 0.5  # of the bucket at the start: koordlet draws between 0 and this
_REFILLED = 0.1  # of the bucket: below it an empty one is not spent from again
_LEAST_STEP = 0.01  # of the original: what is left of a raise below this is given back at once


class Raised(msgspec.Struct, frozen=True, gc=False):
    """One LS workload's limit: as it was found, what is wanted of it, and the bucket."""

    quota_usec: int
    period_usec: int
    burst_usec: int
    """cpu.max.burst as it was found."""
    factor: float = 1.0
    tokens_usec: float = 0.0
    """CPU time above the original limit that may still be used."""
    empty: bool = False
    throttled_usec: int | None = None
    """When (monotonic) it was last seen throttled."""


class State(msgspec.Struct, frozen=True, gc=False):
    raised: dict[CgroupId, Raised] = {}


class BurstView(msgspec.Struct, frozen=True, gc=False):
    """What `qosctl status` says of a workload with a limit of its own."""

    workload: str
    path: str
    original_cores: float
    factor: float
    budget_pct: float
    text: str


class _Seen(msgspec.Struct, frozen=True, gc=False):
    """What one interval says of a workload; None is unknown."""

    throttled_pct: float | None
    use: float | None
    elapsed_usec: int
    host_pct: float | None
    """LS and system, of all capacity: BE gives way and does not count."""


def decide(
    config: Config, prev: Snapshot | None, now: Snapshot, usage: Usage | None, state: State
) -> tuple[State, tuple[Desired, ...], tuple[BurstView, ...]]:
    burst = config.cpu.burst
    if burst.enforce is BurstPolicy.OFF:
        return State(), (), ()
    raised: dict[CgroupId, Raised] = {}
    desired: list[Desired] = []
    views: list[BurstView] = []
    for workload in now.tier(Tier.LS):
        found = _found(burst, workload, state.raised.get(workload.id))
        if found is None:
            continue
        seen = _look(prev, now, workload, usage)
        after, why = _next(config, found, seen, now.monotonic_usec)
        raised[workload.id] = after
        desired += _desired(burst, workload, after, seen, why)
        views.append(_view(burst, workload, after, why))
    return State(raised), tuple(desired), tuple(views)


def _found(burst: CpuBurst, workload: Workload, before: Raised | None) -> Raised | None:
    """The limit as it was before us: what stands is taken for ours while it lies where ours may lie."""
    limit = limit_of(workload)
    if limit is None or isinstance(limit.quota_usec, Max):
        return None
    if before is not None and limit.period_usec == before.period_usec:
        highest = round(before.quota_usec * burst.max_pct / 100)
        if before.quota_usec <= limit.quota_usec <= highest:
            return before
    text = workload.setting("cpu.max.burst") or ""
    own_burst = int(text) if text.isdecimal() else 0
    new = Raised(limit.quota_usec, limit.period_usec, own_burst)
    return msgspec.structs.replace(new, tokens_usec=_bucket_usec(burst, new) * _HALF)


def _bucket_usec(burst: CpuBurst, raised: Raised) -> float:
    """What running at `max_pct` for as long as `budget` takes above the original."""
    return burst.budget * (raised.quota_usec / raised.period_usec) * (burst.max_pct - 100) / 100


def _look(prev: Snapshot | None, now: Snapshot, workload: Workload, usage: Usage | None) -> _Seen:
    host_pct = 100 * usage.other / usage.capacity if usage is not None else None
    before = prev.workload(workload.id) if prev is not None else None
    if prev is None or before is None or now.monotonic_usec <= prev.monotonic_usec:
        return _Seen(None, None, 0, host_pct)
    elapsed = now.monotonic_usec - prev.monotonic_usec
    use = workload_cores(before, workload, elapsed, now.host.nr_cpus)
    return _Seen(_throttled_pct(before, workload), use, elapsed, host_pct)


def _throttled_pct(before: Workload, after: Workload) -> float | None:
    """The share of the periods in which the group ran that ended throttled."""
    if before.sample.cpu is None or after.sample.cpu is None:
        return None
    old, new = before.sample.cpu, after.sample.cpu
    if old.nr_periods is None or new.nr_periods is None:
        return None
    if old.nr_throttled is None or new.nr_throttled is None:
        return None
    periods, throttled = new.nr_periods - old.nr_periods, new.nr_throttled - old.nr_throttled
    if periods < 0 or throttled < 0:
        return None
    return 100 * throttled / periods if periods else 0.0


def _next(config: Config, before: Raised, seen: _Seen, at: int) -> tuple[Raised, str]:
    """One step: up while it is throttled and there is room, down when not needed or the host is short."""
    burst = config.cpu.burst
    before = _account(burst, before, seen)
    if seen.throttled_pct is None or seen.host_pct is None:
        return before, "its throttling or the host's use is not known; held"
    if seen.throttled_pct >= max(burst.throttled_pct, _LEAST_STEP):
        before = msgspec.structs.replace(before, throttled_usec=at)
    room = min(burst.room_pct, config.host.cpu_target_pct)
    if seen.host_pct >= room:
        text = f"LS and system use {seen.host_pct:.0f} % of the host, of {room:g} % up to which quota is lent"
        return _lower(burst, before), text
    if before.empty:
        return _lower(burst, before), "its burst budget is used up"
    if before.throttled_usec == at and burst.enforce is not BurstPolicy.BURST:
        return _lend(burst, before, seen.throttled_pct, busy=seen.host_pct >= min(burst.hold_pct, room))
    if before.throttled_usec is not None and at - before.throttled_usec < burst.quiet:
        return before, "throttled not long ago; held"
    return _lower(burst, before), "not throttled for a while"


def _lend(burst: CpuBurst, before: Raised, throttled_pct: float, *, busy: bool) -> tuple[Raised, str]:
    text = f"throttled in {throttled_pct:.0f} % of its periods"
    if busy:
        return before, f"{text}; the host is too busy to lend more"
    factor = min(before.factor * (1 + burst.up_pct / 100), burst.max_pct / 100)
    return msgspec.structs.replace(before, factor=factor), f"{text}, and the host has room"


def _account(burst: CpuBurst, before: Raised, seen: _Seen) -> Raised:
    """Spend what was used above the original; save what was left below `save_below_pct` of it."""
    if seen.use is None:
        return before
    cores = before.quota_usec / before.period_usec
    bucket = _bucket_usec(burst, before)
    saved = max(cores * burst.save_below_pct / 100 - seen.use, 0.0)
    spent = max(seen.use - cores, 0.0)
    tokens = min(max(before.tokens_usec + (saved - spent) * seen.elapsed_usec, 0.0), bucket)
    empty = tokens <= 0 or (before.empty and tokens < bucket * _REFILLED)
    return msgspec.structs.replace(before, tokens_usec=tokens, empty=empty and bucket > 0)


def _lower(burst: CpuBurst, before: Raised) -> Raised:
    factor = 1 + (before.factor - 1) * (1 - burst.down_pct / 100)
    return msgspec.structs.replace(before, factor=factor if factor > 1 + _LEAST_STEP else 1.0)


def _desired(burst: CpuBurst, workload: Workload, raised: Raised, seen: _Seen, why: str) -> Iterator[Desired]:
    """The quota never below its original; the burst between its own and the original quota."""
    quota = round(raised.quota_usec * raised.factor)
    if burst.enforce is not BurstPolicy.BURST:
        reason = Reason(RULE, f"{_quota_text(raised)}: {why}", _inputs(raised, seen))
        yield Desired(workload.id, workload.path, workload.tier, CpuMax(quota, raised.period_usec), reason)
    if burst.enforce is BurstPolicy.QUOTA or workload.setting("cpu.max.burst") is None:
        return
    wanted = max(round(raised.quota_usec * burst.burst_pct / 100), raised.burst_usec)
    text = (
        f"unused quota may be saved up to {wanted} us for a burst: one late period does not throttle it"
        f"{_bursts_text(workload)}"
    )
    yield Desired(
        workload.id,
        workload.path,
        workload.tier,
        CpuMaxBurst(min(wanted, raised.quota_usec)),
        Reason(RULE, text, _inputs(raised, seen)),
    )


def _quota_text(raised: Raised) -> str:
    if raised.factor == 1:
        return "cpu.max stays at its original"
    return f"cpu.max is at {100 * raised.factor:.0f} % of its original"


def _bursts_text(workload: Workload) -> str:
    """Before 5.14 cpu.stat has no nr_bursts: that is not 0, it is not known."""
    cpu = workload.sample.cpu
    if cpu is None or cpu.nr_bursts is None:
        return "; this kernel does not count bursts (no nr_bursts in cpu.stat)"
    return f"; {cpu.nr_bursts} bursts so far"


def _inputs(raised: Raised, seen: _Seen) -> tuple[Input, ...]:
    known = [Input("budget", round(raised.tokens_usec / _USEC, 1), "CPU seconds")]
    if seen.throttled_pct is not None:
        known.append(Input("throttled", round(seen.throttled_pct, 1), "% of periods"))
    if seen.use is not None:
        known.append(Input("use", round(seen.use, 3), "CPUs"))
    if seen.host_pct is not None:
        known.append(Input("ls + system", round(seen.host_pct, 1), "% of the host"))
    return tuple(known)


def _view(burst: CpuBurst, workload: Workload, raised: Raised, why: str) -> BurstView:
    bucket = _bucket_usec(burst, raised)
    return BurstView(
        workload.name,
        printable(workload.path),
        raised.quota_usec / raised.period_usec,
        raised.factor,
        100 * raised.tokens_usec / bucket if bucket > 0 else 0.0,
        why,
    )
