"""A recorded run through the laws as they are now: what they would have said of it. No I/O but the trace."""

from __future__ import annotations

import gzip
from pathlib import Path

from bench.scenes.score import Said, of_verdict
from qosd import governors
from qosd.config import Config
from qosd.interference.verdict import Verdict
from qosd.model import Snapshot
from qosd.replay import load


def verdicts(config: Config, trace: Path) -> list[Said]:
    """Each with the cause that it had last."""
    state = governors.State()
    prev: Snapshot | None = None
    last: dict[int, Verdict] = {}
    with gzip.open(trace) as lines:
        for now in load(lines):
            state, decision = governors.decide(config, prev, now, state)
            found = decision.interference
            last |= {each.id: each for each in (*found.verdicts, *found.ended)}
            prev = now
    return [of_verdict(each) for each in last.values()]
