"""Max-min fair shares of something scarce, by priority and demand ("water-filling"). Pure.

CPUs and bytes alike: whoever asks for less than an equal share gets all of it, the rest is divided again.
"""

from __future__ import annotations

from itertools import groupby

import msgspec

from qosd.model import CgroupId


class Claim(msgspec.Struct, frozen=True, gc=False):
    """What one workload could use; `demand` is infinite for one that its limit holds back."""

    id: CgroupId
    priority: int
    demand: float
    cap: float


def split(total: float, claims: list[Claim]) -> dict[CgroupId, float]:
    """Max-min fair shares of `total`: priority 0 first, and what nobody asked for to all alike.

    Every claim gets a little before any gets much, so that the lowest priority is squeezed, not starved.
    """
    if not claims:
        return {}
    least = total / 10 / len(claims)
    shares = {claim.id: min(least, claim.cap) for claim in claims}
    left = total - sum(shares.values())
    for _, group in groupby(sorted(claims, key=lambda claim: claim.priority), lambda claim: claim.priority):
        left = _fill(shares, list(group), left)
    return _spread(shares, claims, left)


def _fill(shares: dict[CgroupId, float], group: list[Claim], left: float) -> float:
    """Raise the group's shares together until demand, cap or `left` is met; what is left over."""
    needs = sorted((max(min(claim.demand, claim.cap) - shares[claim.id], 0.0), claim.id) for claim in group)
    for position, (need, cgroup_id) in enumerate(needs):
        given = min(left / (len(needs) - position), need)
        shares[cgroup_id] += given
        left -= given
    return left


def _spread(shares: dict[CgroupId, float], claims: list[Claim], left: float) -> dict[CgroupId, float]:
    """What nobody asked for is there for whoever asks next."""
    rest = [msgspec.structs.replace(claim, demand=claim.cap) for claim in claims]
    _fill(shares, rest, left)
    return shares
