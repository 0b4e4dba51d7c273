"""What the CPU benchmark computes, without a machine to run it on."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from bench.sched import follow, installed, laws, report, stats
from bench.sched.__main__ import shape
from bench.sched.control import configured
from bench.sched.load import Load
from bench.sched.modes import STANDARD, parse
from bench.sched.segment import Experiment, Outcome, Segment
from qosd.config import Config, decode
from qosd.response import Edge, Point
from qosd.schema.cpu import Enforce


def mean_of(schedule: str) -> float:
    steps = [tuple(map(float, step.split(":"))) for step in schedule.split(",")]
    return sum(ms * pct for ms, pct in steps) / sum(ms for ms, _ in steps)


@pytest.mark.parametrize(
    ("kind", "pct"), list(itertools.product(("steady", "bursty", "stepping", "square"), (10, 30, 60, 80)))
)
def test_every_shape_offers_the_load_it_is_named_for(kind: str, pct: float) -> None:
    assert mean_of(shape(kind, pct)) == pytest.approx(pct)


def sample(at: float, other: float) -> laws.Sample:
    return laws.Sample(at, other, 0.0, 4)


def test_koordlet_rises_by_a_tenth_of_the_node_a_second_and_falls_at_once() -> None:
    state, cores = laws.koordlet(sample(0, 2.5), laws.State())
    assert cores == pytest.approx(0.1)
    state, cores = laws.koordlet(sample(1, 0.0), state)
    assert cores == pytest.approx(0.5)
    _, cores = laws.koordlet(sample(2, 2.5), state)
    assert cores == pytest.approx(0.1)


def test_sideloader_takes_the_lower_of_one_and_five_seconds_and_keeps_a_floor() -> None:
    state, cores = laws.sideloader(sample(0, 3.0), laws.State())
    assert cores == pytest.approx(0.2)
    state, cores = laws.sideloader(sample(1, 0.0), state)
    assert cores == pytest.approx(3.2 - 1.5)
    _, cores = laws.sideloader(sample(2, 4.0), state)
    assert cores == pytest.approx(0.2)


def outcome(mode: str, p99: float, be: float) -> Outcome:
    fields = {field.name: 0.0 for field in dataclasses.fields(Outcome)}
    return Outcome(**{**fields, "mode": mode, "p99": p99, "be_pct": be, "kept_pct": be})


def test_a_mode_that_is_faster_with_more_work_in_every_round_dominates() -> None:
    rounds = [
        {"frozen": outcome("frozen", 1, 0), "a": outcome("a", 2 + n, 50), "b": outcome("b", 1 + n, 60)}
        for n in range(6)
    ]
    table = report.rows(rounds, ["frozen", "a", "b"], "a")
    assert table[-1][-1].endswith("faster, more BE, DOMINATES")


def test_a_difference_that_changes_its_sign_between_rounds_is_none() -> None:
    ratio = stats.interval([0.8, 1.2, 0.9, 1.1, 1.0, 1.05])
    assert stats.verdict(ratio, ratio) == "not different"


def test_a_disturbed_segment_leaves_the_other_modes_of_its_round_alone() -> None:
    rounds = [
        {"frozen": outcome("frozen", 1, 0), "a": outcome("a", 2, 50)},
        {"frozen": outcome("frozen", 1, 0)},
    ]
    table = report.rows(rounds, ["frozen", "a"], None)
    assert [row[1] for row in table] == ["2", "1"]


def test_the_modes_of_the_standard_run_are_all_known() -> None:
    for label in STANDARD:
        parse(label, 2)


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match="cpuset-half"):
        parse("nonsense", 2)


def test_options_of_the_qosd_mode_reach_its_configuration() -> None:
    config = configured({"X": "60", "enforce": "none", "period": "5", "interval": "100"})
    assert config.host.cpu_target_pct == 60
    assert config.cpu.bandwidth.enforce is Enforce.NONE
    assert (config.cpu.bandwidth.period, config.interval) == (5_000, 100_000)
    assert configured({}) == Config()


def test_the_same_options_say_the_same_to_the_installed_daemon() -> None:
    options = {"enforce": "max", "X": "60", "period": "5", "interval": "500"}
    assert decode(installed.toml(options)) == configured(options)
    assert decode(installed.toml({})) == Config()


def test_only_writes_of_limits_that_were_made_are_counted() -> None:
    metrics = """# HELP qosd_writes Writes to interface files, by file and outcome.
qosd_writes_total{file="cpu.max",outcome="written"} 3.0
qosd_writes_total{file="cpu.max",outcome="refused"} 7.0
qosd_writes_total{file="cpuset.cpus",outcome="reasserted"} 1.0
qosd_writes_total{file="cpu.idle",outcome="written"} 1.0
"""
    assert installed.counted(metrics) == 4


def test_the_edges_of_a_schedule_are_its_changes_that_last_to_the_end() -> None:
    assert follow.edges("5000:20,5000:60", 19) == [Edge(5, 10, rise=True), Edge(10, 15, rise=False)]
    assert follow.edges("1000:30", 60) == []


def test_what_is_said_of_a_limit_that_followed_ls() -> None:
    """Two CPUs, X = 95: BE may have 1.5 beside LS at 20 % and 0.7 beside 60; it is a second late."""
    be = [1.5] * 5 + [1.5, 0.7, 0.7, 0.7, 0.7] + [0.7, 1.5, 1.5, 1.5, 1.5]
    ls = [0.4] * 5 + [1.2] * 5 + [0.4] * 5
    points = [Point(at + 1.0, 1.0, ls[at], ls[at], be[at], be[at], 0) for at in range(15)]
    load = Load("5000:20,5000:60", 15_000, 2, 1, 2, 500)
    measured = dataclasses.replace(outcome("qosd:enforce=max", 1, 0), writes=2)

    text = follow.text(Segment(measured, points), Experiment(load, 1, 2000, 4, look_sec=1))

    assert "2 writes of a limit (changes seen: 0), 8.0 a minute" in text
    assert "BE kept 100 % of what X leaves" in text
    assert "back at 90 % 2.00 s after it fell" in text
