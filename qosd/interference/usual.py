"""Who is always in an LS workload's way, and who had the CPUs on top of that. Pure.

Kernel threads, system services and qosd itself run between any two ticks, and LS waits behind them every
time. That is in each tick's waits whoever made this one worse, so it is taken off before anybody is blamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from qosd.model import CgroupId, Preemptor, Probed, Tier

_REMEMBERED = 512
"""Ticks that count alike; older ones fade."""

Who = Literal["self", "ls", "system", "be"]
Tiers = Mapping[CgroupId, Tier]
"""Of the workloads that there are."""


class Usual(msgspec.Struct, frozen=True, gc=False):
    """How many tasks of a workload wait behind each on average while BE is quiet, and from how many ticks."""

    behind: dict[Who, float] = {}
    ticks: int = 0


NOTHING = Usual()


def learn(known: Usual, probed: Probed, tiers: Tiers, elapsed_usec: int) -> Usual:
    ticks = min(known.ticks + 1, _REMEMBERED)
    waits = _waits(probed, tiers)
    waits.pop("be", None)
    rates = {who: known.behind.get(who, 0.0) for who in (*known.behind, *waits)}
    return Usual(
        {who: rate + (waits.get(who, 0) / 1000 / elapsed_usec - rate) / ticks for who, rate in rates.items()},
        ticks,
    )


def culprits(
    probed: Probed, tiers: Tiers, usual: Usual, elapsed_usec: int
) -> tuple[tuple[CgroupId, float], ...]:
    """Who had the CPUs on top of the usual, with shares of that.

    Whoever is in no workload goes by its own cgroup. Where nobody had more than usual: who had them at all.
    """
    waits = _waits(probed, tiers)
    left = {
        who: max(1 - usual.behind.get(who, 0.0) * 1000 * elapsed_usec / ns, 0.0)
        for who, ns in waits.items()
        if ns
    }
    if not any(left.values()):
        left = dict.fromkeys(left, 1.0)
    parts = [
        (each.root or each.cgroup, each.ns * left.get(_who(each, probed.id, tiers), 0.0))
        for each in probed.preemptors
    ]
    total = sum(part for _, part in parts)
    return tuple((cgroup, part / total) for cgroup, part in parts if total > 0)


def _waits(probed: Probed, tiers: Tiers) -> dict[Who, int]:
    waits: dict[Who, int] = {}
    for each in probed.preemptors:
        who = _who(each, probed.id, tiers)
        waits[who] = waits.get(who, 0) + each.ns
    return waits


def _who(each: Preemptor, victim: CgroupId, tiers: Tiers) -> Who:
    if each.root == victim:
        return "self"
    tier = None if each.root is None else tiers.get(each.root)
    if tier is None:
        return "system"
    return "be" if tier is Tier.BE else "ls"
