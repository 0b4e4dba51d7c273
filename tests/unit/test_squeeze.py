"""A proven breach takes from BE at once, calm gives it back, and nothing unproven takes anything."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd import governors
from qosd.config import Config
from qosd.cpu import squeeze
from qosd.cpu.allowance import Allowance
from qosd.cpu.squeeze import State, decide, foresee, judge, tighten
from qosd.model import (
    Breach,
    CgroupId,
    CgroupSample,
    CpuMax,
    CpuStat,
    HostSample,
    Max,
    Snapshot,
    Tier,
    Workload,
)
from qosd.plan import Reason
from qosd.schema.cpu import Cpu, CpuBandwidth, Enforce
from qosd.schema.fast import Fast
from qosd.schema.units import Duration

NR_CPUS = 4
START = 1_000_000_000
FAST = Fast()
GRANTED = Allowance(3.0, None, Reason("cpu.allowance", "BE may use 3.00 CPUs"))


def breach(at: float = 0.0, be: float | None = 3.0, throttled: int | None = 0) -> Breach:
    usec = START + round(at * 1e6)
    return Breach(CgroupId(7), "cpu.pressure some", 5e4, 5e4, usec, throttled_usec=throttled, be_cores=be)


def snapshot(at: float, *events: Breach) -> Snapshot:
    usec = START + round(at * 1e6)
    return Snapshot(1, usec, usec, HostSample(NR_CPUS), events=events)


def calm(at: float = -0.5, cores: float | None = 3.0) -> State:
    """After a tick without a breach."""
    granted = msgspec.structs.replace(GRANTED, cores=cores)
    return decide(Config(), snapshot(at), granted, State())[0]


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (breach(), "cut"),
        (breach(throttled=1_000), "cut"),
        (breach(throttled=1_001), "self-throttled"),
        (breach(throttled=None), "unknown"),
        (breach(be=None), "unknown"),
        (breach(be=0.0), "be-idle"),
        (breach(be=0.009), "be-idle"),
        (breach(be=0.011), "cut"),
    ],
)
def test_only_a_breach_that_can_be_bes_fault_leads_to_a_cut(event: Breach, outcome: str) -> None:
    assert judge(FAST, event) == outcome
    assert tighten(FAST, event, calm())[1] == outcome


def test_with_no_share_of_be_asked_for_an_idle_be_is_still_not_blamed() -> None:
    assert judge(Fast(be_ran_pct=0), breach(be=0.0)) == "be-idle"


def test_a_cut_halves_what_be_may_use() -> None:
    allowance, outcome = foresee(Config(), (breach(),), GRANTED, calm())

    assert outcome == "cut"
    assert allowance.cores == pytest.approx(1.5)
    assert allowance.squeeze == pytest.approx(0.5)


def test_a_cut_bites_a_be_that_uses_less_than_it_may() -> None:
    """Half of an allowance of 3 CPUs would change nothing for a BE that uses 1."""
    allowance, _ = foresee(Config(), (breach(be=1.0),), GRANTED, calm())

    assert allowance.cores == pytest.approx(0.5)


def test_cuts_stop_at_the_floor() -> None:
    events = tuple(breach(at) for at in (0, 0.3, 0.6, 0.9, 1.2, 1.5))

    allowance, outcome = foresee(Config(), events, GRANTED, calm())

    assert outcome == "floor"
    assert allowance.cores == pytest.approx(NR_CPUS * CpuBandwidth().floor_pct / 100)


def test_a_second_report_of_the_same_moment_cuts_once() -> None:
    allowance, outcome = foresee(Config(), (breach(0), breach(0.1)), GRANTED, calm())

    assert outcome == "dwell"
    assert allowance.cores == pytest.approx(1.5)


def test_without_a_known_allowance_nothing_is_cut() -> None:
    allowance, outcome = foresee(
        Config(), (breach(),), msgspec.structs.replace(GRANTED, cores=None), calm(cores=None)
    )

    assert outcome == "unknown"
    assert allowance.cores is None
    assert tighten(FAST, breach(), State())[1] == "unknown"


def test_the_next_tick_comes_to_what_the_reaction_foresaw() -> None:
    events = (breach(0), breach(0.1), breach(0.3, be=0.8), breach(0.4, throttled=9_000))
    foreseen, _ = foresee(Config(), events, GRANTED, calm())

    _, decided = decide(Config(), snapshot(0.5, *events), GRANTED, calm())

    assert decided.cores == foreseen.cores


def test_be_is_held_and_then_gets_everything_back_within_two_seconds() -> None:
    state, _ = decide(Config(), snapshot(0.5, breach(0)), GRANTED, calm())
    cores = []
    for tenth in range(6, 41):
        state, allowance = decide(Config(), snapshot(tenth / 10), GRANTED, state)
        cores.append(allowance.cores or 0)

    held, back = cores[:5], cores[15:]
    assert held == [pytest.approx(1.5)] * 5
    assert back == [pytest.approx(3.0)] * len(back)
    assert cores == sorted(cores)


def test_a_breach_that_comes_back_is_held_longer_each_time_up_to_the_maximum() -> None:
    state, holds = calm(), []
    for number in range(8):
        state, outcome = tighten(FAST, breach(number * 0.3), msgspec.structs.replace(state, floor=0.0))
        assert outcome == "cut"
        holds.append(state.hold_usec / 1e6)

    assert holds == [1, 2, 4, 8, 10, 10, 10, 10]


def test_calm_shortens_the_hold_again() -> None:
    state = calm()
    for number in range(4):
        state, _ = tighten(FAST, breach(number * 0.3), state)
    for second in range(1, 121):
        state, _ = decide(Config(), snapshot(second), GRANTED, state)

    state, _ = tighten(FAST, breach(121), state)

    assert state.hold_usec == FAST.hold


def test_the_way_back_goes_by_time_and_not_by_ticks() -> None:
    def after(ticks: list[float]) -> float | None:
        state, allowance = decide(Config(), snapshot(0.5, breach(0)), GRANTED, calm())
        for at in ticks:
            state, allowance = decide(Config(), snapshot(at), GRANTED, state)
        return allowance.cores

    assert after([1.5]) == pytest.approx(after([0.7, 0.9, 1.1, 1.2, 1.4, 1.5]) or 0)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_back() -> None:
    state, before = decide(Config(), snapshot(0.5, breach(0)), GRANTED, calm())
    for at in (0.5, 0.2, -100.0):
        state, allowance = decide(Config(), snapshot(at), GRANTED, state)
        assert allowance.cores == before.cores


EVENTS = st.lists(
    st.builds(
        breach,
        at=st.floats(-5, 60),
        be=st.none() | st.floats(0, NR_CPUS),
        throttled=st.none() | st.integers(0, 10_000),
    ),
    max_size=8,
)


@given(st.lists(st.tuples(EVENTS, st.none() | st.floats(0.2, NR_CPUS), st.floats(-1, 20)), max_size=12))
def test_the_squeeze_stays_between_the_floor_and_the_allowance(rows: list[tuple]) -> None:
    state, at = State(), 0.0
    floor = NR_CPUS * CpuBandwidth().floor_pct / 100
    for events, cores, seconds in rows:
        at += seconds
        granted = msgspec.structs.replace(GRANTED, cores=cores)
        state, allowance = decide(Config(), snapshot(at, *events), granted, state)
        assert 0 < state.factor <= 1
        if cores is None:
            assert allowance.cores is None, "unknown use never tightens"
        else:
            assert allowance.cores is not None
            assert min(floor, cores) - 1e-9 <= allowance.cores <= cores + 1e-9


# With the other governors: what is written.


class Clock:
    """Snapshots of a host whose LS and BE use that many CPUs."""

    def __init__(self) -> None:
        self.usec = START
        self.used = {Tier.LS: 0, Tier.BE: 0}
        self.limit = "max 100000"

    def snapshot(self, ls: float, be: float, *events: Breach) -> Snapshot:
        self.usec += 1_000_000
        self.used[Tier.LS] += round(ls * 1e6)
        self.used[Tier.BE] += round(be * 1e6)
        workloads = tuple(
            Workload(
                tier.value,
                tier,
                0,
                CgroupSample(CgroupId(number), f"{tier}.slice", CpuStat(used, used, 0)),
                {"cpu.max": self.limit} if tier is Tier.BE else {},
            )
            for number, (tier, used) in enumerate(self.used.items(), 1)
        )
        host = HostSample(NR_CPUS, tuple(range(NR_CPUS)), sum(self.used.values()), 0)
        return Snapshot(1, self.usec, self.usec, host, workloads=workloads, events=events)


def config(enforce: Enforce) -> Config:
    return Config(cpu=Cpu(bandwidth=CpuBandwidth(enforce=enforce)))


def limits(desired: tuple[governors.Desired, ...]) -> list[float]:
    return [
        each.setting.quota_usec / each.setting.period_usec
        for each in desired
        if isinstance(each.setting, CpuMax) and not isinstance(each.setting.quota_usec, Max)
    ]


@pytest.mark.parametrize("enforce", [Enforce.NONE, Enforce.CPUSET])
def test_without_a_quota_in_calm_a_breach_brings_one_and_calm_takes_it_away(enforce: Enforce) -> None:
    clock = Clock()
    settings = config(enforce)
    state, prev = governors.State(), None
    seen: list[list[float]] = []
    for tick in range(9):
        events = (breach_at(clock.usec + 500_000),) if tick == 3 else ()
        now = clock.snapshot(0.8, 3.0, *events)
        state, decision = governors.decide(settings, prev, now, state)
        prev = now
        seen.append(limits(decision.desired))

    assert seen[:3] == [[], [], []]
    assert seen[3] == [pytest.approx(1.5, abs=0.01)]
    assert seen[-1] == []


def breach_at(usec: int) -> Breach:
    return Breach(CgroupId(1), "cpu.pressure some", 5e4, 5e4, usec, throttled_usec=0, be_cores=3.0)


@pytest.mark.parametrize("enforce", list(Enforce))
def test_a_reaction_wants_one_tighter_limit_whatever_enforces_in_calm(enforce: Enforce) -> None:
    clock = Clock()
    first, second = clock.snapshot(0.8, 3.0), clock.snapshot(0.8, 3.0)
    state, _ = governors.decide(config(enforce), None, first, governors.State())
    state, _ = governors.decide(config(enforce), first, second, state)

    desired, outcome = governors.react(
        config(enforce), first, second, state, (breach_at(clock.usec + 20_000),)
    )

    assert outcome == "cut"
    assert limits(desired) == [pytest.approx(1.5, abs=0.01)]
    assert {each.tier for each in desired} == {Tier.BE}
    assert "cpu.squeeze" in desired[-1].reason.rule


def test_a_breach_that_is_not_bes_fault_wants_nothing() -> None:
    clock = Clock()
    first, second = clock.snapshot(0.8, 3.0), clock.snapshot(0.8, 3.0)
    state, _ = governors.decide(Config(), None, first, governors.State())
    state, _ = governors.decide(Config(), first, second, state)
    event = msgspec.structs.replace(breach_at(clock.usec + 20_000), throttled_usec=30_000)

    assert governors.react(Config(), first, second, state, (event,)) == ((), "self-throttled")


def test_the_reason_says_who_suffered_and_what_was_left() -> None:
    _, allowance = decide(Config(), snapshot(0.5, breach(0)), GRANTED, calm())

    assert allowance.reason.text.startswith(
        "BE may use 1.50 CPUs: 50% of its allowance of 3.00, because cpu.pressure some of LS cgroup 7"
    )
    assert allowance.reason.clamp == "squeeze"


def test_dwell_and_hold_follow_the_configuration() -> None:
    fast = Fast(dwell=Duration(0), hold=Duration(3_000_000), keep_pct=10.0)
    state, outcome = tighten(fast, breach(0), calm())

    assert (outcome, state.hold_usec) == ("cut", 3_000_000)
    state, outcome = tighten(fast, breach(0.001), state)
    assert (outcome, state.hold_usec) == ("cut", 6_000_000)
    assert tighten(fast, breach(0.002), state)[1] == "floor"
    assert squeeze.RULE == "cpu.squeeze"
