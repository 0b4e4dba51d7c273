"""A histogram that forgets: buckets that grow by a constant ratio, weights that halve with time. Pure.

The form is that of the peak predictors of koordlet and of Kubernetes' vertical autoscaler. Old weights are
never touched: a new one is entered 2^(age of the reference / half-life) times heavier instead, and the whole
is scaled down when that number grows large. Quantiles do not care about the common factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

_LAST_BUCKET = 512  # at a growth of 5 % the last one starts at 5e10 times the first
_REBASE_AFTER = 32.0  # half-lives; a double has room for a thousand
_NOTHING = 1e-6  # of the total: such a bucket says nothing any more

Positive = Annotated[float, Meta(gt=0, le=1e15)]
Bucket = Annotated[int, Meta(ge=0, le=_LAST_BUCKET)]


class Histogram(msgspec.Struct, frozen=True, gc=False):
    """Bucket 0 is [0, first), bucket i is [first * growth^(i-1), first * growth^i), the last one is open."""

    half_life_usec: Annotated[int, Meta(gt=0)]
    first: Positive
    growth: Annotated[float, Meta(gt=1, le=2)] = 1.05
    since_usec: int = 0
    """The moment whose weights stand for themselves."""
    weights: dict[Bucket, Positive] = {}

    def add(self, value: float, weight: float, at_usec: int) -> Histogram:
        """With one more value; a weight of 0 or less, and what is no number, adds nothing."""
        return self.add_all(((value, weight),), at_usec)

    def add_all(self, values: Iterable[tuple[float, float]], at_usec: int) -> Histogram:
        """With these (value, weight) of one moment."""
        new = [(value, weight) for value, weight in values if weight > 0 and math.isfinite(value)]
        if not new:
            return self
        base = self if self.weights else msgspec.structs.replace(self, since_usec=at_usec)
        if (at_usec - base.since_usec) / base.half_life_usec > _REBASE_AFTER:
            base = base.as_of(at_usec)
        factor = 2.0 ** ((at_usec - base.since_usec) / base.half_life_usec)
        weights = dict(base.weights)
        for value, weight in new:
            if weight * factor > 0:  # not with a clock that went back by a thousand half-lives
                bucket = self._bucket(value)
                weights[bucket] = weights.get(bucket, 0.0) + weight * factor
        return msgspec.structs.replace(base, weights=weights)

    def quantile(self, p: float) -> float | None:
        """The upper end of the bucket that holds the p-quantile, p in (0, 1]. None while it is empty."""
        if not self.weights:
            return None
        rank = p * sum(self.weights.values())
        seen = 0.0
        for bucket in sorted(self.weights):
            seen += self.weights[bucket]
            if seen >= rank:
                break
        return self.first * self.growth**bucket

    def total(self, at_usec: int) -> float:
        """The weight that is left of all that was added; in the long run half-life / ln 2 a unit of time."""
        return sum(self.weights.values()) * self._left(at_usec - self.since_usec)

    def is_cold(self, least: float, at_usec: int) -> bool:
        """Whether too little is known: not enough was added yet, or most of it is forgotten."""
        return self.total(at_usec) < least

    def as_of(self, at_usec: int) -> Histogram:
        """The same knowledge with its weights as they count at that moment: what to put on disk."""
        return self.moved(at_usec, at_usec - self.since_usec)

    def moved(self, at_usec: int, away_usec: int) -> Histogram:
        """On another clock (a monotonic one starts anew at a boot), `away_usec` after `since_usec`."""
        factor = self._left(away_usec)
        least = sum(self.weights.values()) * _NOTHING
        weights = {
            bucket: weight * factor
            for bucket, weight in self.weights.items()
            if weight > least and weight * factor > 0
        }
        return msgspec.structs.replace(self, since_usec=at_usec, weights=weights)

    def _left(self, age_usec: int) -> float:
        return math.exp2(-min(max(age_usec, 0) / self.half_life_usec, 1000.0))

    def _bucket(self, value: float) -> int:
        if value < self.first:
            return 0
        return min(1 + int(math.log(value / self.first) / math.log(self.growth)), _LAST_BUCKET)
