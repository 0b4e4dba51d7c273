"""A recorded run through the laws as they are now: what they would have said of it. No I/O but the trace."""

from __future__ import annotations

import gzip
from bisect import bisect
from pathlib import Path

import msgspec

from bench.scenes.score import Done, Said, of_verdict
from qosd import governors
from qosd.config import Config
from qosd.interference.blame import Cause
from qosd.interference.verdict import Verdict
from qosd.model import Snapshot
from qosd.replay import load


def verdicts(config: Config, trace: Path, done: list[Done]) -> list[Said]:
    """A verdict that lasts into another event is one of that event too, with the causes it had there.

    The guest waited for the verdicts of the laws that ran in it to end; those of other laws may last longer.
    """
    begins = [each.begin_ns // 1000 for each in done]
    state = governors.State()
    prev: Snapshot | None = None
    ticks: dict[int, int] = {}
    found: dict[tuple[int, int], Said] = {}
    with gzip.open(trace) as lines:
        for now in load(lines):
            state, decision = governors.decide(config, prev, now, state)
            for verdict in decision.interference.verdicts:
                bad = sum(verdict.blamed.values())
                if bad > ticks.get(verdict.id, 0):
                    key = (verdict.id, bisect(begins, now.monotonic_usec))
                    found[key] = _with(found.get(key), verdict, now.monotonic_usec)
                ticks[verdict.id] = bad
            prev = now
    return list(found.values())


def _with(before: Said | None, verdict: Verdict, at_usec: int) -> Said:
    """With the cause of this bad tick."""
    now = msgspec.structs.replace(of_verdict(verdict), causes=(verdict.cause.value,), began_usec=at_usec)
    if before is None:
        return now
    causes = tuple(dict.fromkeys((*before.causes, *now.causes)))
    culprit = now.culprit if verdict.cause is Cause.BE else before.culprit
    return msgspec.structs.replace(now, causes=causes, began_usec=before.began_usec, culprit=culprit)
