"""All that is wanted of disks, and of BE that runs out of memory, in one function. Pure."""

from __future__ import annotations

import msgspec

from qosd.ask import Tighten
from qosd.config import Config
from qosd.io import latency, limits, weight
from qosd.model import Snapshot
from qosd.plan import Desired


class State(msgspec.Struct, frozen=True, gc=False):
    limits: limits.State = limits.State()


def decide(
    config: Config, prev: Snapshot | None, now: Snapshot, state: State, asked: Tighten | None = None
) -> tuple[State, tuple[Desired, ...]]:
    """`asked` comes from the ladder of answers."""
    following, maxes = limits.decide(config, prev, now, state.limits, asked)
    return State(following), (*weight.decide(config, now), *latency.decide(config, now), *maxes)
