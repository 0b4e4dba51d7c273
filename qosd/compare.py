"""Two replays of one trace side by side. Pure.

Held back is what a workload used in the trace above the limit that would have stood: a lower bound, since a
workload that was limited while the trace was recorded did not show all that it wanted.
"""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest

import msgspec

from qosd.replay import Step


class Outcome(msgspec.Struct, frozen=True):
    ticks: int
    writes: dict[str, int]
    """By interface file."""
    mean_allowance: float | None
    """CPUs; None where BE was never limited."""
    held_back: dict[str, float]
    """CPU seconds by BE workload."""


class Difference(msgspec.Struct, frozen=True):
    before: Outcome
    after: Outcome
    first_tick: int | None
    """The first tick that led to another write or another allowance."""


def compare(before: tuple[Step, ...], after: tuple[Step, ...]) -> Difference:
    first = next(
        (
            (one or other).tick
            for one, other in zip_longest(before, after)
            if one is None or other is None or _decided(one) != _decided(other)
        ),
        None,
    )
    return Difference(outcome(before), outcome(after), first)


def outcome(steps: tuple[Step, ...]) -> Outcome:
    allowed = [step.allowance_cores for step in steps if step.allowance_cores is not None]
    writes = Counter(change.file for step in steps for change in step.writes)
    held: Counter[str] = Counter()
    for step in steps:
        held.update(step.held_back)
    return Outcome(len(steps), dict(writes), sum(allowed) / len(allowed) if allowed else None, dict(held))


def _decided(step: Step) -> tuple[object, ...]:
    changes = tuple((change.path, change.file, change.new) for change in step.writes)
    return step.allowance_cores, changes
