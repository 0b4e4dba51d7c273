"""cpuset.cpus: BE on ceil(allowance) CPUs away from busy ones, and CPUs of its own for LS that asks. Pure.

BE's mask shrinks at once and grows after a dwell time; it moves to other CPUs only for a gain, since every
move migrates tasks. A mask is part of what is online and of what the file held before us, and never empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from qosd.ask import Apart
from qosd.cgroupfs import format_setting, parse_setting
from qosd.config import Config
from qosd.cpu import overrun
from qosd.cpu.allowance import Allowance, workload_cores
from qosd.cpu.placement import Layout, choose, choose_cores, layout, less_own
from qosd.cpu.pools import Budget
from qosd.errors import Malformed
from qosd.model import CgroupId, CpusetCpus, Snapshot, Tier, Workload, printable
from qosd.plan import Desired, Reason
from qosd.schema.cpu import Cpuset, CpusetMode, Enforce
from qosd.topology import format_cpulist

RULE = "cpu.cpuset"
FILE = "cpuset.cpus"
_APART = "apart"


class Mask(msgspec.Struct, frozen=True, gc=False):
    """The CPUs of one set of workloads, since when, and since when it may not move."""

    cpus: tuple[int, ...]
    since_usec: int
    moved_usec: int


class State(msgspec.Struct, frozen=True, gc=False):
    masks: dict[str, Mask] = {}
    own: dict[CgroupId, tuple[int, ...]] = {}
    """CPUs of LS workloads that asked for some."""
    found: dict[CgroupId, tuple[str, ...]] = {}
    """The original text of each file wanted, then what we wanted of it last."""


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What the other CPU governors say in this tick."""

    allowance: Allowance
    budgets: tuple[Budget, ...]
    overruns: overrun.State
    apart: Apart | None = None


class _Group(msgspec.Struct, frozen=True, gc=False):
    """Workloads with one mask; `count` None is all CPUs that are left."""

    name: str
    count: int | None
    members: tuple[Workload, ...]
    reason: Reason


def decide(
    config: Config, prev: Snapshot | None, now: Snapshot, asked: Asked, state: State
) -> tuple[State, tuple[Desired, ...]]:
    of = layout(prev, now)
    if of is None or config.cpu.cpuset.mode is CpusetMode.NEVER:
        return State(), ()
    own = _own(config, now, of, state.own)
    taken = frozenset(cpu for cpus in own.values() for cpu in cpus)
    found: dict[CgroupId, tuple[str, ...]] = {}
    desired = [*_own_desired(config, now, own, found, state), *_impossible(config, now, of, taken)]
    masks: dict[str, Mask] = {}
    left = of.without(taken)
    region = _region(config, prev, now, (left, asked.apart), state.masks.get(_APART))
    if region is not None:
        left = left.without(frozenset(left.online) - frozenset(region.cpus))
    for group in _groups(config, now, asked, taken):
        where = _away(left, masks, group)
        used = _use(prev, now, group)
        mask = _next(config.cpu.cpuset, now.monotonic_usec, group, (where, used), state.masks.get(group.name))
        masks[group.name] = mask
        reason = _why(config.cpu.cpuset, group, mask, where)
        for workload in group.members:
            original = _original(workload, state)
            cpus = _within_original(mask.cpus, left, original)
            if region is None or not original or set(cpus) <= set(original):
                desired.append(_want(workload, cpus, reason, found, state))
    if region is not None:
        masks[_APART] = region
    return State(masks, own, found), tuple(desired)


def _region(
    config: Config,
    prev: Snapshot | None,
    now: Snapshot,
    given: tuple[Layout, Apart | None],
    before: Mask | None,
) -> Mask | None:
    """The CPUs that are left to BE while an LS workload waits through it: the ones others use least."""
    left, apart = given
    if apart is None:
        return None
    kept = left.without(frozenset(apart.cpus))
    kept = kept if kept.online else left
    be = tuple(workload for workload in now.tier(Tier.BE) if workload.setting(FILE) is not None)
    group = _Group(_APART, max(len(kept.online) - apart.spare, 1), be, apart.reason)
    return _next(config.cpu.cpuset, now.monotonic_usec, group, (kept, _use(prev, now, group)), before)


def _own(
    config: Config, now: Snapshot, of: Layout, before: dict[CgroupId, tuple[int, ...]]
) -> dict[CgroupId, tuple[int, ...]]:
    """CPUs for each LS workload that asks, kept while they are online; at least one is left to others."""
    counts = _counts(config)
    asking = [w for w in _asking(config, now) if w.setting(FILE) is not None]
    own: dict[CgroupId, tuple[int, ...]] = {}
    for workload in sorted(asking, key=lambda each: (each.priority, each.path)):
        left = of.without(frozenset(cpu for cpus in own.values() for cpu in cpus))
        count = counts[workload.name]
        fresh = choose_cores(count, left)
        held = tuple(cpu for cpu in before.get(workload.id, ()) if cpu in left.online)
        cpus = held if held == before.get(workload.id) and len(held) == len(fresh) else fresh
        while cpus and len(cpus) >= len(left.online):
            cpus = cpus[1:]  # not even an explicit wish may leave BE and the system without a CPU
        if cpus:
            own[workload.id] = cpus
    return own


def _own_desired(
    config: Config,
    now: Snapshot,
    own: dict[CgroupId, tuple[int, ...]],
    found: dict[CgroupId, tuple[str, ...]],
    state: State,
) -> Iterator[Desired]:
    for workload in _asking(config, now):
        if workload.id in own:
            count = _counts(config)[workload.name]
            cpus = own[workload.id]
            fewer = "" if len(cpus) >= count else f" ({count} do not fit here)"
            text = (
                f"workload {workload.name} has {_named(cpus)} to itself, by its rule's `cpus`{fewer}:"
                " whole cores, of one node where one is large enough; BE is kept off them"
            )
            yield _want(workload, own[workload.id], Reason(f"{RULE}/own", text), found, state)


def _named(cpus: tuple[int, ...]) -> str:
    return f"CPU{'s' if len(cpus) > 1 else ''} {format_cpulist(cpus)}"


def _asking(config: Config, now: Snapshot) -> list[Workload]:
    counts = _counts(config)
    return [workload for workload in now.tier(Tier.LS) if workload.name in counts]


def _counts(config: Config) -> dict[str, int]:
    return {rule.name: rule.cpus for rule in config.workload if rule.cpus is not None}


def _impossible(config: Config, now: Snapshot, of: Layout, taken: frozenset[int]) -> Iterator[Desired]:
    """Where the cpuset controller is not on, the wish is shown as absent: silence would look like consent."""
    for workload in _asking(config, now):
        if workload.setting(FILE) is None:
            text = "its rule's `cpus` cannot be: the cpuset controller is not on for this cgroup"
            setting = CpusetCpus(of.online)
            yield Desired(workload.id, workload.path, workload.tier, setting, Reason(f"{RULE}/own", text))
    left = CpusetCpus(of.without(taken).online)
    for workload in now.tier(Tier.BE) if taken else ():
        if workload.setting(FILE) is None:
            text = f"BE cannot be kept off {_named(tuple(sorted(taken)))}: its cpuset controller is off"
            yield Desired(workload.id, workload.path, workload.tier, left, Reason(f"{RULE}/own", text))


def _groups(config: Config, now: Snapshot, asked: Asked, taken: frozenset[int]) -> Iterator[_Group]:
    """Who is kept to how many CPUs, the most important first."""
    granted = asked.allowance
    be = [workload for workload in now.tier(Tier.BE) if workload.setting(FILE) is not None]
    by_mask = config.cpu.bandwidth.enforce is Enforce.CPUSET or config.cpu.cpuset.mode is CpusetMode.ALWAYS
    rest: list[Workload] = []
    for workload in be:
        seen = asked.overruns.get(workload.id)
        if by_mask or seen is None or not seen.proven:
            rest.append(workload)
            continue
        text = (
            f"kept to few CPUs, cpu.max ineffective: {printable(workload.path)} used {seen.use:.2f} CPUs"
            f" under a limit of {seen.limit:.2f}, as real-time tasks can"
        )
        yield _Group(str(workload.id), math.ceil(seen.limit), (workload,), Reason(f"{RULE}/overrun", text))
    if by_mask and granted.cores is not None:
        text = granted.reason.text
        if asked.apart is not None:
            text = f"{text}; {asked.apart.reason.text}"
        reason = msgspec.structs.replace(granted.reason, rule=f"{RULE}/{granted.reason.rule}", text=text)
        yield from _by_budget(rest, asked.budgets, granted.cores, reason)
    elif asked.apart is not None and rest:
        reason = msgspec.structs.replace(asked.apart.reason, rule=f"{RULE}/ladder")
        yield _Group("rest", None, tuple(rest), reason)
    elif taken and rest:
        text = f"BE is kept off {_named(tuple(sorted(taken)))}, which LS workloads have to themselves"
        yield _Group("rest", None, tuple(rest), Reason(f"{RULE}/own", text))


def _by_budget(
    be: list[Workload], budgets: tuple[Budget, ...], cores: float, reason: Reason
) -> Iterator[_Group]:
    if not budgets and be:
        yield _Group("be", math.ceil(cores), tuple(be), reason)
    for budget in budgets:
        members = tuple(workload for workload in be if workload.id in budget.ids)
        if members:
            text = f"pool {budget.name}: {budget.text}; {reason.text}"
            why = msgspec.structs.replace(reason, text=text)
            yield _Group(f"pool {budget.name}", math.ceil(budget.cores), members, why)


def _away(left: Layout, masks: dict[str, Mask], group: _Group) -> Layout:
    """Away from the CPUs of groups already placed, as long as that leaves enough."""
    placed = frozenset(cpu for mask in masks.values() for cpu in mask.cpus)
    apart = left.without(placed)
    return apart if group.count is not None and len(apart.online) >= group.count else left


def _next(
    cpuset: Cpuset, at: int, group: _Group, where: tuple[Layout, float | None], before: Mask | None
) -> Mask:
    """Shrink at once, grow after the dwell time, move for a gain: a mask that flaps migrates for nothing."""
    of, used = where
    count = _count(group, of)
    if before is None:
        return Mask(choose(count, of), at, at)
    kept = tuple(cpu for cpu in before.cpus if cpu in of.online)
    whole = kept == before.cpus
    if whole and len(kept) < count and at - before.since_usec < cpuset.dwell:
        return before
    may_move = used is not None and at - before.moved_usec >= cpuset.move_dwell
    if whole and len(kept) == count and not may_move:
        return before
    # Only a set that keeps its size may be all somewhere else next: growing and shrinking move the least.
    gain = cpuset.move_gain_pct / 100 if whole and len(kept) == count else 1.0
    cpus = choose(count, of._replace(busy=less_own(of.busy, kept, used or 0.0)), kept, gain)
    return msgspec.structs.replace(before, moved_usec=at) if cpus == before.cpus else Mask(cpus, at, at)


def _count(group: _Group, of: Layout) -> int:
    return len(of.online) if group.count is None else min(max(group.count, 1), len(of.online))


def _why(cpuset: Cpuset, group: _Group, mask: Mask, of: Layout) -> Reason:
    """Why the group is on so many CPUs; what it gets later is said."""
    count, now = _count(group, of), len(mask.cpus)
    if now >= count:
        return group.reason
    text = f"{group.reason.text}; that is worth {count} CPUs, but it keeps {now} until the dwell is over"
    clamp = f"cpu.cpuset.dwell = {cpuset.dwell / 1e6:g} s on {now} of {count} CPUs"
    return msgspec.structs.replace(group.reason, text=text, clamp=clamp)


def _use(prev: Snapshot | None, now: Snapshot, group: _Group) -> float | None:
    """CPUs that the group itself used in the last interval."""
    if prev is None or now.monotonic_usec <= prev.monotonic_usec:
        return None
    total = 0.0
    for workload in group.members:
        elapsed = now.monotonic_usec - prev.monotonic_usec
        used = workload_cores(prev.workload(workload.id), workload, elapsed, now.host.nr_cpus)
        if used is None:
            return None
        total += used
    return total


def _original(workload: Workload, state: State) -> tuple[int, ...]:
    """What the file held before us: a mask that somebody gave it is not widened. () where it had none."""
    text = workload.setting(FILE) or ""
    found = state.found.get(workload.id, ())
    original = found[0] if text in found else text
    try:
        mask = parse_setting(FILE, original)
    except Malformed:
        return ()
    return mask.cpus if isinstance(mask, CpusetCpus) else ()


def _within_original(cpus: tuple[int, ...], left: Layout, original: tuple[int, ...]) -> tuple[int, ...]:
    if not original:
        return cpus
    inside = tuple(cpu for cpu in left.online if cpu in original)
    wanted = tuple(cpu for cpu in cpus if cpu in original)
    return wanted or inside[: len(cpus)] or cpus


def _want(
    workload: Workload,
    cpus: tuple[int, ...],
    reason: Reason,
    found: dict[CgroupId, tuple[str, ...]],
    state: State,
) -> Desired:
    setting = CpusetCpus(cpus)
    text = workload.setting(FILE) or ""
    before = state.found.get(workload.id, ())
    original = before[0] if text in before else text
    found[workload.id] = (original, format_setting(setting), *before[1:2])
    return Desired(workload.id, workload.path, workload.tier, setting, reason)
