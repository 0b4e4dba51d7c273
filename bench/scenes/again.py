"""A recorded run through the laws as they are now: what they would have said of it. No I/O but the trace."""

from __future__ import annotations

import gzip
from bisect import bisect
from collections import Counter
from pathlib import Path

import msgspec

from bench.scenes.score import Done, Said, most_first, of_verdict
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
    found: dict[tuple[int, int], _Heard] = {}
    with gzip.open(trace) as lines:
        for now in load(lines):
            state, decision = governors.decide(config, prev, now, state)
            for verdict in decision.interference.verdicts:
                bad = sum(verdict.blamed.values())
                if bad > ticks.get(verdict.id, 0):
                    key = (verdict.id, bisect(begins, now.monotonic_usec))
                    found.setdefault(key, _Heard(now.monotonic_usec)).hear(verdict)
                ticks[verdict.id] = bad
            prev = now
    return [each.said() for each in found.values()]


class _Heard:
    """What a verdict says in one event, bad tick by bad tick."""

    def __init__(self, began_usec: int) -> None:
        self._began_usec = began_usec
        self._causes: Counter[Cause] = Counter()
        self._last: Verdict | None = None
        self._of_be: Verdict | None = None

    def hear(self, verdict: Verdict) -> None:
        self._causes[verdict.cause] += 1
        self._last = verdict
        if verdict.cause is Cause.BE:
            self._of_be = verdict

    def said(self) -> Said:
        """The culprit is the one of BE's last bad tick."""
        assert self._last is not None
        said = of_verdict(self._last)
        culprit = of_verdict(self._of_be).culprit if self._of_be is not None else said.culprit
        return msgspec.structs.replace(
            said, causes=most_first(self._causes), began_usec=self._began_usec, culprit=culprit
        )
