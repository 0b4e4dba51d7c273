"""What the status, qosctl and the metrics say of interference. Values only. Pure."""

from __future__ import annotations

import msgspec

from qosd.interference.kills import Left
from qosd.interference.verdict import Verdict


class VerdictRecord(msgspec.Struct, frozen=True):
    """A verdict with the wall clock."""

    verdict: Verdict
    began: float
    ended: float | None = None
    """None while it lasts."""


class RungView(msgspec.Struct, frozen=True):
    kind: str
    rung: str
    seconds: float
    """Since this rung was entered."""
    squeeze: float
    held: bool
    """It flapped, and stays where it is for a while."""


class InterferenceView(msgspec.Struct, frozen=True):
    answer: str
    """How far the ladders may go: `[interference] answer`."""
    rungs: tuple[RungView, ...]
    verdicts: tuple[VerdictRecord, ...]
    """Those that last."""
    frozen: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()
    """Frozen, and some task in there does not stop: one that waits in the kernel."""
    killing: str | None = None
    kills_left: Left | None = None
    alarm: str | None = None
    """What should be killed and is not."""


class VictimView(msgspec.Struct, frozen=True):
    path: str
    workload: str
    tier: str
    priority: int
    memory_bytes: int | None
    freeze_rank: int | None
    kill_rank: int | None
    why: str


class VictimsView(msgspec.Struct, frozen=True):
    answer: str
    kills_left: Left
    victims: tuple[VictimView, ...]
