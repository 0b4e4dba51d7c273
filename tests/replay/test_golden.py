"""Recorded snapshots through the governors: the same input leads to the same writes, for the same reasons.

tests/data/steps.trace.jsonl is what the governors saw on the plant of `qosd.simulate` while LS went between
10 and 70 % of 4 CPUs; guest.trace.jsonl what `qosctl record` saw in a Debian guest of 2 emulated CPUs, with a
burst of LS for 12 of its 32 seconds. Where a change of the law is meant, `qosctl replay --config FILE TRACE`
prints the new golden text (with enforce = "max" in FILE), and its diff belongs in the commit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qosd.config import decode
from qosd.ctl.trace import lines
from qosd.errors import QosdError
from qosd.model import Tier
from qosd.replay import load, plain, replay

DATA = Path(__file__).resolve().parents[1] / "data"
QUOTA = decode('[cpu.bandwidth]\nenforce = "max"')
TRACE = (DATA / "steps.trace.jsonl").read_bytes().splitlines()


@pytest.mark.parametrize("name", ["steps", "guest"])
def test_a_recorded_trace_leads_to_the_plans_it_always_did(name: str) -> None:
    trace = (DATA / f"{name}.trace.jsonl").read_bytes().splitlines()
    golden = (DATA / f"{name}.golden.txt").read_text().splitlines()

    assert lines(tuple(replay(QUOTA, load(trace)))) == golden


def test_another_target_leaves_be_less_on_the_same_trace() -> None:
    config = decode("[host]\ncpu_target_pct = 50")

    as_it_was = [step.allowance_cores for step in replay(QUOTA, load(TRACE))]
    tried = [step.allowance_cores for step in replay(config, load(TRACE))]

    pairs = [(a, b) for a, b in zip(as_it_was, tried, strict=True) if a is not None and b is not None]
    assert len(pairs) > 40
    assert all(b <= a for a, b in pairs)


def test_a_configuration_that_enforces_nothing_writes_no_limit() -> None:
    config = decode('[cpu.bandwidth]\nenforce = "none"')

    assert {change.file for step in replay(config, load(TRACE)) for change in step.writes} <= {
        "cpu.weight",
        "cpu.idle",
    }


def test_a_snapshot_is_the_same_after_a_round_through_its_line() -> None:
    for snapshot in load(TRACE):
        assert plain(snapshot) == snapshot
        assert {workload.tier for workload in snapshot.workloads} == {Tier.LS, Tier.BE}


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", TRACE[3][:-5]])
def test_a_line_that_is_no_snapshot_is_named(damage: bytes) -> None:
    with pytest.raises(QosdError, match=r"^line 3 is not a snapshot: "):
        list(load([*TRACE[:2], damage]))
