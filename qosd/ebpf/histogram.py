"""Power-of-two histograms as the probes keep them, and what came between two reads of counters. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Protocol, Self, TypeVar

import msgspec

SLOTS = 24
"""HISTOGRAM_SLOTS in kernel.h"""

_SHIFT = 9


class Histogram(msgspec.Struct, frozen=True, gc=False):
    """Counts by powers of two: slot 0 is below 1024 ns, slot i is [2^(i+9), 2^(i+10)) ns, the last open."""

    slots: tuple[int, ...]
    total_ns: int

    @property
    def count(self) -> int:
        return sum(self.slots)

    def since(self, earlier: Histogram) -> Histogram | None:
        """What came between two reads; None if a counter went back (thrown out, come anew)."""
        slots = tuple(now - then for now, then in zip(self.slots, earlier.slots, strict=True))
        if min(slots) < 0 or self.total_ns < earlier.total_ns:
            return None
        return Histogram(slots=slots, total_ns=self.total_ns - earlier.total_ns)

    def plus(self, other: Histogram) -> Histogram:
        slots = tuple(a + b for a, b in zip(self.slots, other.slots, strict=True))
        return Histogram(slots=slots, total_ns=self.total_ns + other.total_ns)

    def quantile_ns(self, q: float) -> float | None:
        """The q-quantile, linear inside a slot, so within a factor of two. None without counts."""
        count = self.count
        if not count:
            return None
        rank = q * count
        seen = 0
        for slot, n in enumerate(self.slots):
            if n and seen + n >= rank:
                low, high = slot_bounds_ns(slot)
                return low + (high - low) * max(0.0, rank - seen) / n
            seen += n
        return float(slot_bounds_ns(SLOTS - 1)[1])  # rounding of q * count


EMPTY = Histogram(slots=(0,) * SLOTS, total_ns=0)


def slot_bounds_ns(slot: int) -> tuple[int, int]:
    """[low, high) of a slot; the last slot is taken to end at twice its start."""
    return (0 if slot == 0 else 1 << slot + _SHIFT), 1 << slot + _SHIFT + 1


class _Counted(Protocol):
    def since(self, earlier: Self) -> Self | None: ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=_Counted)


def delta(earlier: Mapping[K, V], now: Mapping[K, V]) -> dict[K, V]:
    """Between two samples. What is new counts from 0; what went back is left out: unknown, not 0."""
    deltas = {}
    for key, late in now.items():
        early = earlier.get(key)
        change = late if early is None else late.since(early)
        if change is not None:
            deltas[key] = change
    return deltas
