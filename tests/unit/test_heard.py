"""What probes count and operators feed, in the form of a signal."""

from __future__ import annotations

import msgspec
from suffering import BE, LS, Stage

from qosd.config import Config
from qosd.interference import heard
from qosd.interference.baseline import Reading
from qosd.interference.signals import Kind
from qosd.model import Feed


def test_what_a_probe_saw_is_a_signal_with_its_culprits() -> None:
    culprits = ((BE, 0.9), (LS, 0.1))
    reading = Reading(LS, "ls.slice", "runq", 500, 5000, 1000.0, 200.0, breach=True, culprits=culprits)
    (signal,) = heard.signals(Stage(Config()).snapshot(), (reading,), 20)

    assert (signal.kind, signal.value, signal.threshold, signal.cold) == (Kind.CPU, 5000, 1000, False)
    assert signal.culprits == culprits


def test_of_too_few_waits_nothing_follows() -> None:
    now = Stage(Config()).snapshot()
    few = Reading(LS, "ls.slice", "blkio", 3, 9e6, 1000.0, None, breach=False)

    (signal,) = heard.signals(now, (few,), 20)
    assert (signal.kind, signal.value) == (Kind.IO, 0)


def test_long_round_trips_are_held_against_nobody() -> None:
    """Their cause may be at the other end."""
    long = Reading(LS, "ls.slice", "tcp_rtt", 300, 9e6, 2000.0, 500.0, breach=True)
    assert heard.signals(Stage(Config()).snapshot(), (long,), 20) == ()


def test_a_fed_value_is_a_signal_where_it_has_an_objective_and_is_known_and_new() -> None:
    now = Stage(Config()).snapshot()
    feeds = (
        Feed("p99", "ls", "ms", value=30.0, age_usec=2_000_000, slo=10.0, news=True),
        Feed("stands", "ls", "ms", value=30.0, age_usec=2_000_000, slo=10.0),
        Feed("unknown", "ls", "ms", value=None, slo=10.0, news=True),
        Feed("watched", "ls", "ms", value=30.0, news=True),
        Feed("else", "nobody", "ms", value=30.0, slo=10.0, news=True),
    )
    (signal,) = heard.signals(msgspec.structs.replace(now, feeds=feeds), (), 20)

    assert (signal.victim, signal.name, signal.kind) == (LS, "feed.p99", Kind.LATENCY)
    assert (signal.value, signal.threshold, signal.cold) == (30, 10, False)
    assert signal.evidence[0].age_ms == 2000
