"""Pools of workloads with load bands, after Meituan's LAR (Load Auto-Regulator), on one host. Pure.

A pool's load is its use relative to its size. A pool above its band is given more, at once; one that stays
below its band gives back; both to the middle of the band, so that the next tick finds it inside. Sizes are
dealt out by priority from what is allocatable, so what a pool takes comes from the lowest one first and what
nobody wants flows down to it. LS pools are never limited: they reserve. docs/cpu.md has the whole law.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.cpu import degrade
from qosd.cpu.allowance import Allowance, workload_cores
from qosd.cpu.limit import limit_cores
from qosd.cpu.target import or_the_hosts, room
from qosd.model import CgroupId, Snapshot, Tier, Workload, printable
from qosd.schema.pools import Pool

REST = "rest"
"""Where BE workloads go that name no pool: below all pools, without a band."""
_REST_PRIORITY = 101
_LEAST_SHARE = 0.1  # of what BE pools share: a pool is squeezed, not starved, as in `bandwidth.split`
_LEAST_CORES = 0.05
_NOISE = 1e-6


class PoolView(msgspec.Struct, frozen=True, gc=False):
    name: str
    priority: int
    tier: str | None
    """None while the pool has no member."""
    paths: tuple[str, ...]
    """Of its workloads."""
    size_cores: float | None
    """What it holds of what is allocatable; None while use is unknown or the pool has no member."""
    use_cores: float | None
    load_low_pct: float
    load_high_pct: float
    text: str
    degraded: tuple[str, ...] = ()
    """Cgroups that are held below their share because the pool is above its band and can get no more."""


class Budget(msgspec.Struct, frozen=True, gc=False):
    """What one pool's BE workloads may use together."""

    name: str
    cores: float
    ids: tuple[CgroupId, ...]
    text: str
    caps: dict[CgroupId, float] = {}


class Size(msgspec.Struct, frozen=True, gc=False):
    want: float
    low_since: int | None = None
    """Since when the load is below the band."""
    use: float = 0.0
    """As last known."""


class State(msgspec.Struct, frozen=True, gc=False):
    sizes: dict[str, Size] = {}
    degraded: dict[str, degrade.State] = {}


class _Pool(msgspec.Struct, frozen=True, gc=False):
    """A pool as this tick sees it."""

    name: str
    priority: int
    band: tuple[float, float]
    target_pct: float | None
    members: tuple[Workload, ...]
    uses: dict[CgroupId, float | None]
    asked: float
    """What its workloads may have at most, by what was set for them."""

    @property
    def tier(self) -> Tier | None:
        return self.members[0].tier if self.members else None

    @property
    def use(self) -> float | None:
        total = 0.0
        for used in self.uses.values():
            if used is None:
                return None
            total += used
        return total


def decide(
    config: Config, prev: Snapshot | None, now: Snapshot, granted: Allowance, state: State
) -> tuple[State, tuple[Budget, ...], tuple[PoolView, ...]]:
    """Budgets for BE's pools, none where there are no pools or BE is not limited."""
    if not config.pool:
        return State(), (), ()
    pools = _gather(config, prev, now)
    if granted.cores is None:
        return state, (), tuple(_view(pool, None, granted.reason.text, ()) for pool in pools)
    sizes = {
        pool.name: _follow(config, now, pool, state.sizes.get(pool.name)) for pool in pools if pool.members
    }
    reserved = {pool.name: sizes[pool.name].want for pool in pools if pool.tier is Tier.LS}
    given = _deal(config, now, granted, pools, sizes)
    degraded: dict[str, degrade.State] = {}
    budgets, views = [], []
    for pool in pools:
        size = reserved.get(pool.name, given.get(pool.name))
        if size is None or pool.tier is not Tier.BE:
            views.append(_view(pool, size, _why(pool, size, sizes), ()))
            continue
        before = state.degraded.get(pool.name, degrade.State())
        load = degrade.Load(pool.use, size, pool.band, short=size < sizes[pool.name].want - _NOISE)
        members = tuple((w.id, w.priority, pool.uses[w.id]) for w in pool.members)
        after = degrade.decide(load, members, now.monotonic_usec, int(config.cpu.pools.check), before)
        degraded[pool.name] = after
        text = _why(pool, size, sizes)
        budgets.append(Budget(pool.name, size, tuple(w.id for w in pool.members), text, after.caps))
        views.append(
            _view(pool, size, text, tuple(printable(w.path) for w in pool.members if w.id in after.caps))
        )
    return State(sizes, degraded), tuple(budgets), tuple(views)


def _gather(config: Config, prev: Snapshot | None, now: Snapshot) -> list[_Pool]:
    """The pools by priority with their members, and BE's rest as the last one if there is any."""
    pool_of = {rule.name: rule.pool for rule in config.workload}
    pools = [
        _pool(config, pool, tuple(w for w in now.workloads if pool_of.get(w.name) == pool.name), prev, now)
        for pool in sorted(config.pool, key=lambda pool: pool.priority)
    ]
    rest = tuple(w for w in now.tier(Tier.BE) if pool_of.get(w.name) is None)
    if rest:
        last = _pool(config, None, rest, prev, now)
        pools.append(last)
    return pools


def _pool(
    config: Config, pool: Pool | None, members: tuple[Workload, ...], prev: Snapshot | None, now: Snapshot
) -> _Pool:
    elapsed = now.monotonic_usec - prev.monotonic_usec if prev is not None else 0
    uses = {
        workload.id: workload_cores(
            prev.workload(workload.id) if prev is not None else None, workload, elapsed, now.host.nr_cpus
        )
        if elapsed > 0
        else None
        for workload in members
    }
    asked = sum(_asked(config, workload, now.host.nr_cpus) for workload in members)
    if pool is None:
        return _Pool(REST, _REST_PRIORITY, (0.0, 100.0), None, members, uses, asked)
    return _Pool(pool.name, pool.priority, pool.band, pool.cpu_target_pct, members, uses, asked)


def _asked(config: Config, workload: Workload, nr_cpus: int) -> float:
    limits = [float(nr_cpus)]
    for rule in config.workload:
        if rule.name == workload.name:
            if rule.cpu_max_pct is not None:
                limits.append(nr_cpus * rule.cpu_max_pct / 100)
            if rule.cpus is not None:
                limits.append(float(rule.cpus))
    if workload.tier is Tier.LS and (own := limit_cores(workload)) is not None:
        limits.append(own)
    return min(limits)


def _follow(config: Config, now: Snapshot, pool: _Pool, before: Size | None) -> Size:
    """While its use is not known a pool keeps its size."""
    use = pool.use
    if use is None:
        return before or Size(_LEAST_CORES)
    return msgspec.structs.replace(_want(config, now, pool, use, before), use=use)


def _want(config: Config, now: Snapshot, pool: _Pool, use: float, before: Size | None) -> Size:
    """The size that has the pool inside its band: unchanged while it is, the middle when it is not."""
    low, high = pool.band
    middle = min(max(use * 200 / (low + high), _LEAST_CORES), max(pool.asked, _LEAST_CORES))
    if before is None:
        return Size(middle)
    if use > before.want * high / 100:
        return Size(max(middle, min(before.want, pool.asked)))
    if use >= before.want * low / 100:
        return Size(min(before.want, max(pool.asked, _LEAST_CORES)))
    since = before.low_since if before.low_since is not None else now.monotonic_usec
    if now.monotonic_usec - since < config.cpu.pools.hold:
        return Size(before.want, since)
    return Size(min(middle, before.want))


def _deal(
    config: Config, now: Snapshot, granted: Allowance, pools: list[_Pool], sizes: dict[str, Size]
) -> dict[str, float]:
    """Sizes of BE's pools: what each wants by priority, then what is left to the lowest first."""
    taking = [pool for pool in pools if pool.tier is Tier.BE]
    if not taking:
        return {}
    rooms = {pool.name: room(config, now, granted, or_the_hosts(config, pool.target_pct)) for pool in taking}
    ahead = sum(sizes[pool.name].want - sizes[pool.name].use for pool in pools if pool.tier is Tier.LS)
    capacity = granted.usage.capacity if granted.usage is not None else now.host.nr_cpus
    floor = capacity * config.cpu.bandwidth.floor_pct / 100
    rooms = {name: max(cores - max(ahead, 0.0), min(floor, cores)) for name, cores in rooms.items()}
    given = {pool.name: min(rooms[pool.name] * _LEAST_SHARE / len(taking), pool.asked) for pool in taking}
    for pool in taking:
        _give(given, rooms, pool.name, min(sizes[pool.name].want, pool.asked))
    for pool in reversed(taking):
        _give(given, rooms, pool.name, pool.asked)
    return given


def _give(given: dict[str, float], rooms: dict[str, float], name: str, wanted: float) -> None:
    """Up to `wanted`, within what its own target and every higher one leave to those below them."""
    free = min(
        above - sum(given[other] for other, below in rooms.items() if below <= above)
        for above in rooms.values()
        if above >= rooms[name]
    )
    given[name] += min(max(wanted - given[name], 0.0), max(free, 0.0))


def _why(pool: _Pool, size: float | None, sizes: dict[str, Size]) -> str:
    low, high = pool.band
    use = pool.use
    if not pool.members:
        return "no workload of it is here"
    if use is None or size is None:
        return "its use is not known; its size is held"
    band = f"load {100 * use / size:.0f} % of {size:.2f} CPUs, band {low:g}-{high:g} %"
    if pool.tier is Tier.LS:
        return f"{band}; BE is kept out of what it holds and does not use"
    return band + _shortage(use, size, sizes[pool.name].want)


def _shortage(use: float, size: float, want: float) -> str:
    if use > size + _NOISE:
        return f"; {use - size:.2f} CPUs in use go to the pools above it"
    if size < want - _NOISE:
        return f"; it wants {want:.2f} and those above it leave no more"
    if size > want + _NOISE:
        return f"; it has {size - want:.2f} CPUs that no other pool wants"
    return ""


def _view(pool: _Pool, size: float | None, text: str, degraded: tuple[str, ...]) -> PoolView:
    low, high = pool.band
    tier = pool.tier.value if pool.tier is not None else None
    paths = tuple(printable(member.path) for member in pool.members)
    return PoolView(pool.name, pool.priority, tier, paths, size, pool.use, low, high, text, degraded)
