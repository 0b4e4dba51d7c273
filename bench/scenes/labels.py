"""Whether an event harmed LS, by LS's own latency. No verdict is looked at. Pure.

In slots of half a second (a tick) a kind of request is *bad* when more than a tenth of those due in the slot
took longer than twice the p90 of the calm before, and longer than 4 ms, a tick of the scheduler. An emulated
CPU's speed changes with what its host does, so the limit is raised by as much as the same work took longer in
that slot at real-time priority, which nothing in the guest is in the way of.

harmed    four bad slots of one kind in a row: whatever their phase, they hold a verdict's three whole ticks
unharmed  at most one in a row
edge      two or three: too short to be sure that a verdict is due, too long to call one false. Not scored.
"""

from __future__ import annotations

import enum
import statistics
import struct
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("cpu", "memory", "disk", "net")
PACE = len(KINDS)
SLOT_NS = 500_000_000
CALM_NS = 4_000_000_000
FACTOR = 2.0
FLOOR_USEC = 4_000.0
BAD_SHARE = 0.1
HARMED_SLOTS, EDGE_SLOTS = 4, 2
_LEAST = 5
_RECORD = struct.Struct("=QII")


class Request(NamedTuple):
    due_ns: int
    latency_usec: int
    kind: int


class Harm(enum.StrEnum):
    NO = "unharmed"
    EDGE = "edge"
    YES = "harmed"


class Label(NamedTuple):
    harm: Harm
    worst: str
    """The kind of request with the longest run of bad slots."""
    slots: int
    ratio: float
    """Its p99 during the event, in those of the calm before."""


def decode(log: bytes) -> list[Request]:
    """A log of bench/scenes/load.c, in the order of due times."""
    whole = len(log) - len(log) % _RECORD.size
    return sorted(Request(*fields) for fields in _RECORD.iter_unpack(log[:whole]))


def label(requests: list[Request], begin_ns: int, end_ns: int) -> Label:
    """`requests`: those around the event, in order."""
    calm = [each for each in requests if begin_ns - CALM_NS <= each.due_ns < begin_ns]
    during = [each for each in requests if begin_ns <= each.due_ns < end_ns]
    pace = statistics.median(_latencies(calm, PACE) or [1])
    found = []
    for kind, name in enumerate(KINDS):
        usual = quantile(_latencies(calm, kind), 0.99)
        limit = max(FACTOR * quantile(_latencies(calm, kind), 1 - BAD_SHARE), FLOOR_USEC)
        slots = _worst_run(_bad(during, kind, (begin_ns, end_ns), limit, pace))
        found.append((slots, quantile(_latencies(during, kind), 0.99) / max(usual, 1.0), name))
    slots, ratio, worst = max(found)
    harm = Harm.YES if slots >= HARMED_SLOTS else Harm.EDGE if slots >= EDGE_SLOTS else Harm.NO
    return Label(harm, worst, slots, round(ratio, 1))


def _bad(
    during: list[Request], kind: int, span: tuple[int, int], limit: float, calm_pace: float
) -> Iterable[bool]:
    """Slot by slot; one with too few requests is as good as the last one."""
    bad = False
    for start in range(*span, SLOT_NS):
        slot = [each for each in during if start <= each.due_ns < start + SLOT_NS]
        slowed = max(statistics.median(_latencies(slot, PACE) or [calm_pace]) / calm_pace, 1.0)
        latencies = _latencies(slot, kind)
        if len(latencies) >= _LEAST:
            bad = sum(each > limit * slowed for each in latencies) > BAD_SHARE * len(latencies)
        yield bad


def _worst_run(bad: Iterable[bool]) -> int:
    worst = run = 0
    for each in bad:
        run = run + 1 if each else 0
        worst = max(worst, run)
    return worst


def _latencies(requests: list[Request], kind: int) -> list[float]:
    return [float(each.latency_usec) for each in requests if each.kind == kind]


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else 0.0
