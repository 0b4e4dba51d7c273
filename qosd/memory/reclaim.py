"""Background reclaim: page cache beyond a workload's watermark is given back before anybody has to ask.

One-shot effects: `Reclaim` is what one write to memory.reclaim should take, and `qosd.memory.reclaimer` does
it. BE comes before LS, and of BE whoever has the highest priority number; each gives of its own cache. How
much is asked for follows from what came of it: freed of what was asked (efficiency), and what had to be
read again afterwards (refaults). Pure.
"""

from __future__ import annotations

import msgspec

from qosd.ask import Tighten
from qosd.config import Config, WorkloadRule
from qosd.memory import brake, parts
from qosd.memory.parts import WORTH, Demand, Target
from qosd.memory.track import Track, follow
from qosd.model import CgroupId, Snapshot, Tier, Workload
from qosd.plan import Input, Reason
from qosd.schema.memory import Reclaiming, WithoutSwappiness

_MIB = 1 << 20
_STALE = 3_000_000  # what was seen longer ago is looked at again before anything is asked
_LOW_SHARE = 0.75  # of page_cache_high, where page_cache_low is not given
_HIGH_SHARE = 1.25  # of the low host watermark, where the high one is not given


class Reclaim(msgspec.Struct, frozen=True, gc=False):
    """Bytes to take from a workload now; the kernel may take less (EAGAIN), which is normal."""

    cgroup_id: CgroupId
    path: str
    bytes: int
    swappiness: int | None
    """0: page cache only. None: the key is left out, where the kernel has none or there is no swap."""
    reason: Reason
    targets: tuple[Target, ...] = ()
    """Which of its cgroups; none: look which there are, and ask nothing."""


class State(msgspec.Struct, frozen=True, gc=False):
    tracks: dict[CgroupId, Track] = {}
    swappiness_key: bool | None = None
    """Whether memory.reclaim takes `swappiness=` (Linux 6.9); None until it was tried."""
    short: bool = False
    """The host fell below its low watermark and is not above the high one yet."""


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How one workload stands."""

    cgroup_id: CgroupId
    phase: str
    """off, below, reclaiming, held, nothing (there is cache, but none that can go)."""
    text: str


class Watermarks(msgspec.Struct, frozen=True, gc=False):
    high: int
    low: int


class Want(msgspec.Struct, frozen=True, gc=False):
    """What should go of one workload, before pace, brakes and budget."""

    bytes: int
    text: str
    for_host: bool
    hurry: bool = False
    """The host or LS lacks memory, whatever else is the reason."""
    for_ladder: bool = False


def decide(
    config: Config, prev: Snapshot | None, now: Snapshot, state: State, asked: Tighten | None = None
) -> tuple[State, tuple[Reclaim, ...], tuple[Standing, ...]]:
    reclaim = config.memory.reclaim
    if not _is_asked_for(config) and asked is None:
        return State(swappiness_key=state.swappiness_key), (), ()
    state = _after_results(config, now, state)
    missing = _shortage(reclaim, now, was_short=state.short)
    budget = int(reclaim.rate * config.interval / 1_000_000)
    rules = {rule.name: rule for rule in config.workload}
    tracks = dict(state.tracks)
    reclaims: list[Reclaim] = []
    standings: list[Standing] = []
    for workload in _in_order(now):
        track = tracks[workload.id]
        rule = rules.get(workload.name)
        want = _want(rule, workload, track, missing) or _for_ladder(rule, workload, track, asked)
        track = msgspec.structs.replace(track, active=want is not None and not want.for_host)
        if want is None:
            tracks[workload.id] = track
            standings.append(Standing(workload.id, *_idle(rule, track)))
            continue
        chosen, track, standing = _judge(config, prev, now, workload, (state, track, want, budget))
        standings.append(standing)
        tracks[workload.id] = track
        if chosen is None:
            continue
        budget -= chosen.bytes
        missing = max(missing - chosen.bytes, 0)
        reclaims.append(chosen)
        tracks[workload.id] = msgspec.structs.replace(track, in_flight=True)
    short = missing > 0 or any(each.reason.rule.endswith("/host") for each in reclaims)
    following = State(tracks, state.swappiness_key, short)
    return following, tuple(reclaims), tuple(standings)


def _is_asked_for(config: Config) -> bool:
    reclaim = config.memory.reclaim
    return (
        reclaim.available_low_pct is not None
        or reclaim.free_low_pct is not None
        or any(rule.page_cache_high is not None for rule in config.workload)
    )


def _in_order(now: Snapshot) -> list[Workload]:
    """BE before LS, the lowest priority (the highest number) first."""
    return sorted(now.workloads, key=lambda each: (each.tier is Tier.LS, -each.priority, each.path))


def _after_results(config: Config, now: Snapshot, state: State) -> State:
    results = {result.cgroup_id: result for result in now.reclaimed}
    tracks = {
        workload.id: follow(
            config.memory.reclaim,
            now,
            workload,
            state.tracks.get(workload.id, Track()),
            results.get(workload.id),
        )
        for workload in now.workloads
    }
    key = state.swappiness_key
    if any(result.result == "no-swappiness" for result in now.reclaimed):
        key = False
    elif key is None and any(result.result in ("done", "short") for result in now.reclaimed):
        key = True
    return State(tracks, key, state.short)


def _shortage(reclaim: Reclaiming, now: Snapshot, *, was_short: bool) -> int:
    """Bytes the host lacks to its watermarks: of MemAvailable, and of MemFree, which kswapd goes by."""
    host = now.host
    lacks = (
        _lack(host.mem_total, host.mem_available, reclaim.available_low_pct, reclaim.available_high_pct),
        _lack(host.mem_total, host.mem_free, reclaim.free_low_pct, reclaim.free_high_pct),
    )
    return max(up_to if was_short or below else 0 for below, up_to in lacks)


def _lack(total: int | None, there: int | None, low: float | None, high: float | None) -> tuple[bool, int]:
    """Whether it is below the low watermark, and what is missing to the high one."""
    if total is None or there is None or low is None:
        return False, 0
    until = high if high is not None else min(low * _HIGH_SHARE, 100.0)
    return there < total * low / 100, max(round(total * until / 100) - there, 0)


def watermarks(rule: WorkloadRule | None) -> Watermarks | None:
    if rule is None or rule.page_cache_high is None:
        return None
    high = int(rule.page_cache_high)
    low = int(rule.page_cache_low) if rule.page_cache_low is not None else int(high * _LOW_SHARE)
    return Watermarks(high, low)


def _want(rule: WorkloadRule | None, workload: Workload, track: Track, missing: int) -> Want | None:
    stat = track.stat
    if rule is None or not rule.page_cache_reclaim or stat is None:
        return None
    marks = watermarks(rule)
    # What is not worth asking for is no reason to go on: it would stay above the low watermark for ever.
    if marks is not None and stat.page_cache > (marks.low + WORTH if track.active else marks.high):
        hurry = missing > 0 and workload.tier is Tier.BE
        above = stat.page_cache - marks.low
        return Want(
            min(above, missing) if hurry else above,
            f"{_mib(stat.page_cache)} of page cache, to go down to page_cache_low = {_mib(marks.low)}",
            for_host=False,
            hurry=hurry,
        )
    if missing > 0 and workload.tier is Tier.BE and stat.page_cache > 0:
        text = f"{_mib(stat.page_cache)} of page cache while the host lacks {_mib(missing)} to its watermark"
        return Want(min(stat.page_cache, missing), text, for_host=True, hurry=True)
    return None


def _for_ladder(
    rule: WorkloadRule | None, workload: Workload, track: Track, asked: Tighten | None
) -> Want | None:
    """What the ladder of answers asks: page cache of a workload through which LS waits for memory."""
    stat = track.stat
    if rule is None or not rule.page_cache_reclaim or stat is None or asked is None:
        return None
    if not asked.hot or workload.id not in asked.ids or stat.page_cache == 0:
        return None
    text = f"{_mib(stat.page_cache)} of page cache while {asked.reason.text}"
    return Want(stat.page_cache, text, for_host=True, hurry=True, for_ladder=True)


def _judge(
    config: Config,
    prev: Snapshot | None,
    now: Snapshot,
    workload: Workload,
    given: tuple[State, Track, Want, int],
) -> tuple[Reclaim | None, Track, Standing]:
    """Whether to ask now, and for how much."""
    state, track, want, budget = given
    if track.in_flight:
        return None, track, Standing(workload.id, "reclaiming", want.text)
    track, stop = brake.check(
        config.memory.reclaim, prev, now, workload, (track, want.for_host, state.swappiness_key)
    )
    if stop is not None:
        phase = "reclaiming" if stop.passing else "held"
        return None, track, Standing(workload.id, phase, f"{want.text}; held: {stop.why}")
    clean = parts.clean(track.stat) if track.stat is not None else 0
    stale = track.looked_usec is None or now.monotonic_usec - track.looked_usec > _STALE
    if clean < WORTH or (not stale and all(each.clean < WORTH for each in track.parts.values())):
        return None, track, Standing(workload.id, "nothing", f"{want.text}; none of it is clean and unmapped")
    demand = Demand(min(want.bytes, clean, budget), _step(config, now, state), want.hurry)
    targets = parts.choose(config.memory.reclaim, track.parts, now, demand)
    if not targets and not stale:
        return None, track, Standing(workload.id, "reclaiming", f"{want.text}; more of it in the next tick")
    swappiness = None if state.swappiness_key is False else 0
    targets = () if stale else targets
    size = sum(target.bytes for target in targets)
    reclaim = Reclaim(workload.id, workload.path, size, swappiness, _reason(track, want), targets)
    return reclaim, track, Standing(workload.id, "reclaiming", want.text)


def _step(config: Config, now: Snapshot, state: State) -> int | None:
    """On a kernel that cannot be told to leave anon alone: small steps, so that swapping is seen early."""
    reclaim = config.memory.reclaim
    if (
        state.swappiness_key is False
        and brake.has_swap(now)
        and reclaim.without_swappiness is WithoutSwappiness.CAUTIOUS
    ):
        return int(reclaim.chunk) // 4
    return None


def _idle(rule: WorkloadRule | None, track: Track) -> tuple[str, str]:
    if rule is None or not rule.page_cache_reclaim:
        return "off", "page_cache_reclaim = false"
    marks = watermarks(rule)
    if track.stat is None:
        return "off", "its page cache is not known"
    if marks is None:
        return "off", "no page_cache_high is set, and the host is not short of memory"
    return "below", f"{_mib(track.stat.page_cache)} of page cache, below page_cache_high = {_mib(marks.high)}"


def _reason(track: Track, want: Want) -> Reason:
    clean = parts.clean(track.stat) if track.stat is not None else 0
    rule = "ladder" if want.for_ladder else "host" if want.for_host else "watermark"
    inputs = [
        Input("page cache", round((track.stat.page_cache if track.stat else 0) / _MIB, 1), "MiB"),
        Input("clean and unmapped", round(clean / _MIB, 1), "MiB"),
        Input("freed so far", round(track.freed / _MIB, 1), "MiB"),
        Input("read again", round(track.refaulted / _MIB, 1), "MiB"),
    ]
    return Reason(f"memory.reclaim/{rule}", want.text, tuple(inputs))


def _mib(size: float) -> str:
    return f"{size / _MIB:.0f} MiB"
