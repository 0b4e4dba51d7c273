"""How BE's workloads share what BE may use: by pool and target, then by priority and demand. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from qosd.config import Config
from qosd.cpu.allowance import Allowance
from qosd.cpu.bound import has_target
from qosd.cpu.pools import Budget
from qosd.cpu.target import room, target_pct
from qosd.model import CgroupId, Snapshot, Workload
from qosd.split import Claim

Split = Callable[[float, list[Claim]], dict[CgroupId, float]]


class Sharing(msgspec.Struct, frozen=True, gc=False):
    """`rooms`: by workload, what all those with its target or a lower one may use together."""

    total: float
    rooms: Mapping[CgroupId, float]
    budgets: tuple[Budget, ...] = ()


def sharing(
    config: Config, now: Snapshot, granted: Allowance, budgets: tuple[Budget, ...], workloads: list[Workload]
) -> Sharing:
    rooms = {
        each.id: room(config, now, granted, target_pct(config, each))
        if has_target(config, each)
        else float(now.host.nr_cpus)
        for each in workloads
    }
    return Sharing(max(rooms.values(), default=granted.cores or 0.0), rooms, budgets)


def divide(of: Sharing, claims: list[Claim], split: Split) -> dict[CgroupId, float]:
    """Each claim's share in CPUs. Workloads of no budget share nothing where there are budgets."""
    if not of.budgets:
        return _by_target(of.total, of.rooms, claims, split)
    shares: dict[CgroupId, float] = {}
    for budget in of.budgets:
        members = [
            msgspec.structs.replace(claim, cap=min(claim.cap, budget.caps.get(claim.id, claim.cap)))
            for claim in claims
            if claim.id in budget.ids
        ]
        shares |= _by_target(budget.cores, of.rooms, members, split)
    return shares


def _by_target(
    total: float, rooms: Mapping[CgroupId, float], claims: list[Claim], split: Split
) -> dict[CgroupId, float]:
    """Those with the lowest target are held to their own room first; what they leave is the others'."""
    shares = split(total, claims)
    levels = sorted({rooms[claim.id] for claim in claims})
    if len(levels) < 2:  # noqa: PLR2004 - one target: nothing to hold apart
        return shares
    highest = levels[-1]
    lower = [claim for claim in claims if rooms[claim.id] < highest]
    upper = [claim for claim in claims if rooms[claim.id] == highest]
    theirs = min(sum(shares[claim.id] for claim in lower), levels[-2])
    held = _by_target(theirs, rooms, lower, split)
    return held | split(total - sum(held.values()), upper)
