"""From pressure to verdicts: who suffers, through whom, and what is never held against BE."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from suffering import BE, GIB, LS, MIB, OTHER_BE, OTHER_LS, Stage, hog

from qosd import governors
from qosd.config import Config, WorkloadRule
from qosd.interference import governor
from qosd.interference.blame import Cause
from qosd.interference.ladder import Rung
from qosd.interference.signals import Baseline, BaselineKey, Kind, from_pressure, learn
from qosd.interference.verdict import Verdict
from qosd.model import CgroupFreeze, CpuMax, Tier
from qosd.schema.interference import Interference, MaxAnswer


def config(answer: str = "freeze", **changes: Any) -> Config:
    section = msgspec.structs.replace(Interference(answer=MaxAnswer(answer)), **changes)
    return Config(interference=section)


def last(outcomes: list[governor.Outcome]) -> Verdict:
    (verdict,) = outcomes[-1].verdicts
    return verdict


def test_a_wait_that_lasts_is_one_verdict_with_victim_cause_and_evidence() -> None:
    stage = Stage(config())
    outcomes = [stage.tick(**hog()) for _ in range(10)]

    began = [verdict for outcome in outcomes for verdict in outcome.began]
    assert len(began) == 1
    verdict = last(outcomes)
    assert (verdict.path, verdict.signal, verdict.cause) == ("ls.slice", "cpu.pressure", Cause.BE)
    assert verdict.value == pytest.approx(60)
    assert verdict.culprits[0].path == "be.slice"
    assert verdict.culprits[0].share == pytest.approx(0.75, abs=0.01)
    assert {given.name for given in verdict.evidence} >= {"some stall", "interval"}


def test_a_verdict_remembers_who_had_its_bad_ticks_whoever_had_the_last_one() -> None:
    stage = Stage(config())
    outcomes = [stage.tick(**hog()) for _ in range(7)]
    outcomes += [stage.tick(be=0, ls=1, system=2.9, ls_cpu_wait=0.6) for _ in range(2)]

    verdict = last(outcomes)
    assert verdict.cause is Cause.SYSTEM
    assert verdict.blamed == {Cause.BE: 4, Cause.SYSTEM: 2}
    assert verdict.mostly is Cause.BE


def test_what_was_somebody_elses_doing_is_put_down_to_be_only_after_as_many_readings_as_begin_a_verdict() -> (
    None
):
    stage = Stage(config())
    stage.tick()
    by_system = {"system": 3, "ls": 1, "ls_cpu_wait": 0.6}
    assert [stage.tick(**by_system) for _ in range(3)][-1].began[0].cause is Cause.SYSTEM
    stage.tick(ls=1)
    causes = [last([stage.tick(**hog())]).cause for _ in range(3)]

    assert causes == [Cause.SYSTEM, Cause.SYSTEM, Cause.BE]


def test_it_takes_three_readings_in_a_row_to_begin_and_five_to_end() -> None:
    stage = Stage(config())
    stage.tick()
    for _ in range(2):
        assert not stage.tick(**hog()).verdicts
    assert not stage.tick().verdicts
    for _ in range(2):
        assert not stage.tick(**hog()).verdicts
    assert stage.tick(**hog()).began
    for _ in range(4):
        assert stage.tick().verdicts
    assert stage.tick().ended


def test_between_the_thresholds_a_verdict_neither_begins_nor_ends() -> None:
    stage = Stage(config())
    for _ in range(20):
        assert not stage.tick(be=3, ls=1, ls_cpu_wait=0.2).verdicts
    for _ in range(4):
        stage.tick(**hog())
    for _ in range(60):
        assert stage.tick(be=3, ls=1, ls_cpu_wait=0.2).verdicts


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ({"be": 3, "ls": 1, "ls_cpu_wait": 0.6}, Cause.BE),
        ({"be": 0.1, "ls": 3.8, "ls_cpu_wait": 0.6}, Cause.SELF),
        ({"be": 0, "ls": 1, "system": 2.9, "ls_cpu_wait": 0.6}, Cause.SYSTEM),
        ({"be": 0, "ls": 1, "other_ls": 2.9, "ls_cpu_wait": 0.6}, Cause.LS),
        ({"be": 3, "ls": 1, "ls_cpu_wait": 0.6, "ls_throttled": 0.05}, Cause.SELF),
        ({"be": 3, "ls": 1, "ls_cpu_wait": 0.6, "below_throttled": 0.05}, Cause.SELF),
        ({"be_grown": 50 * MIB, "ls_memory_wait": 0.3}, Cause.BE),
        ({"be_grown": 5 * MIB, "ls_grown": 90 * MIB, "ls_memory_wait": 0.3}, Cause.SELF),
        ({"system_grown": 90 * MIB, "ls_memory_wait": 0.3}, Cause.SYSTEM),
        ({"be_grown": 50 * MIB, "ls_memory_wait": 0.3, "ls_high": 7}, Cause.SELF),
        ({"ls_memory_wait": 0.3}, Cause.SELF),
        ({"be_memory_wait": 0.5, "ls_memory_wait": 0.3}, Cause.BE),
        ({"be_io_wait": 0.9, "ls_io_wait": 0.5}, Cause.BE),
        ({"ls_io_wait": 0.5}, Cause.SELF),
        ({"other_ls_io_wait": 0.9, "ls_io_wait": 0.5}, Cause.LS),
    ],
)
def test_be_is_blamed_only_for_what_be_did(what: dict[str, float], cause: Cause) -> None:
    stage = Stage(config())
    outcomes = [stage.tick(**what) for _ in range(6)]

    verdicts = [verdict for verdict in outcomes[-1].verdicts if verdict.victim == LS]
    assert [verdict.cause for verdict in verdicts] == [cause]
    assert verdicts[0].text


NOT_BE = [
    {"be": 0.1, "ls": 3.8, "ls_cpu_wait": 0.9},
    {"be": 0, "ls": 1, "other_ls": 2.9, "ls_cpu_wait": 0.9},
    {"be": 3, "ls": 1, "ls_cpu_wait": 0.9, "ls_throttled": 0.05},
    {"system_grown": 90 * MIB, "ls_memory_wait": 0.9},
    {"be_grown": 5 * MIB, "ls_grown": 90 * MIB, "ls_memory_wait": 0.9},
    {"ls_memory_wait": 0.9, "ls_high": 7, "be_grown": 50 * MIB},
]


@pytest.mark.parametrize("what", NOT_BE)
def test_what_is_not_bes_doing_is_reported_and_never_answered_against_be(what: dict[str, float]) -> None:
    stage = Stage(config("kill"))
    outcomes = [stage.tick(**what) for _ in range(60)]

    assert outcomes[-1].verdicts
    assert all(outcome.answer == governor.Answer() for outcome in outcomes)
    assert not any(outcome.moves or outcome.effects for outcome in outcomes)


def test_pressure_that_qosd_makes_in_be_is_no_ground_for_more() -> None:
    """BE waits for memory because qosd has it give memory back: then only its growth counts."""
    waits = {"be_memory_wait": 0.9, "ls_memory_wait": 0.3}
    stage = Stage(config("freeze"))
    outcomes = [stage.tick(be_grown=50 * MIB, ls_memory_wait=0.3) for _ in range(4)]
    assert outcomes[-1].answer.memory_tighten
    outcomes = [stage.tick(**waits) for _ in range(40)]

    assert not any(outcome.answer.freeze for outcome in outcomes)


def test_be_that_holds_scarce_memory_is_to_blame_though_it_is_frozen_and_grows_no_more() -> None:
    stage = Stage(config("freeze"), total=2 * GIB, sizes={BE: GIB, LS: 200 * MIB}, free=100 * MIB)
    stage.tick()
    outcome = [stage.tick(ls_memory_wait=0.5) for _ in range(4)][-1]

    assert last([outcome]).cause is Cause.BE
    stage = Stage(config("freeze"), total=2 * GIB, sizes={BE: 200 * MIB, LS: GIB}, free=100 * MIB)
    stage.tick()
    outcome = [stage.tick(ls_memory_wait=0.5) for _ in range(4)][-1]
    assert last([outcome]).cause is Cause.SELF


def test_a_baseline_is_learned_while_be_is_quiet_and_raises_the_threshold() -> None:
    stage = Stage(config(baseline_ticks=5))
    for _ in range(6):
        stage.tick(ls=1, ls_cpu_wait=0.3)
    learned = [stage.tick(ls=1, ls_cpu_wait=0.3) for _ in range(6)]
    assert not learned[-1].verdicts, "30 % is what it waits by itself: 55 % is the threshold now"
    stage.tick(be=3, ls=1, ls_cpu_wait=0.5)
    assert not stage.tick(be=3, ls=1, ls_cpu_wait=0.5).verdicts
    warm = [stage.tick(be=3, ls=1, ls_cpu_wait=0.6) for _ in range(3)][-1]
    verdict = last([warm])
    assert verdict.baseline == pytest.approx(30, abs=1)
    assert verdict.threshold == pytest.approx(55, abs=1)
    assert not verdict.cold


def test_a_baseline_is_not_learned_from_what_be_does() -> None:
    baselines = {BaselineKey(LS, "cpu.pressure"): Baseline(1.0, 100)}
    stage = Stage(config())
    prev, now = stage.snapshot(), stage.snapshot(be=3, ls_cpu_wait=0.9)
    signals = from_pressure(Interference(), prev, now, baselines)

    assert learn(baselines, signals, now, quiet=False, breach_weight=1) == baselines
    assert (
        learn(baselines, signals, now, quiet=True, breach_weight=1)[BaselineKey(LS, "cpu.pressure")].value > 1
    )
    gone = msgspec.structs.replace(now, workloads=now.tier(Tier.BE))
    assert learn(baselines, signals, gone, quiet=False, breach_weight=1) == {}


def test_an_episode_of_pressure_does_not_become_usual_once_something_else_is() -> None:
    def usual(known: float, weight: float) -> float:
        key = BaselineKey(LS, "cpu.pressure")
        baselines = {key: Baseline(known, 100)}
        stage = Stage(config())
        prev = stage.snapshot()
        for _ in range(10):
            prev, now = stage.snapshot(), stage.snapshot(ls_cpu_wait=0.9)
            signals = from_pressure(Interference(), prev, now, baselines)
            baselines = learn(baselines, signals, now, quiet=True, breach_weight=weight)
        return baselines[key].value

    assert usual(5.0, 1.0) > 12
    assert usual(5.0, 0.1) < 6


def test_without_a_baseline_be_is_throttled_at_most() -> None:
    stage = Stage(config("kill"))
    outcomes = [stage.tick(**hog()) for _ in range(30)]

    assert last(outcomes).cold
    assert outcomes[-1].ladders[Kind.CPU].rung is Rung.CPUSET
    assert not any(outcome.answer.freeze for outcome in outcomes)


def test_with_a_baseline_be_is_squeezed_then_frozen_for_its_lease_then_runs_again() -> None:
    stage = Stage(config("freeze", baseline_ticks=1))
    for _ in range(3):
        stage.tick(ls=1)
    rungs = [stage.tick(**hog()).ladders[Kind.CPU].rung for _ in range(30)]

    assert rungs[:8] == [Rung.IDLE] * 2 + [Rung.SQUEEZE] * 3 + [Rung.CPUSET] * 3
    assert rungs[8:18] == [Rung.FREEZE] * 10
    assert rungs[18:28] == [Rung.CPUSET] * 10
    assert rungs[28] is Rung.FREEZE


def test_the_least_important_level_of_priority_is_frozen_first() -> None:
    stage = Stage(config("freeze", baseline_ticks=1), two_be=True)
    for _ in range(3):
        stage.tick(ls=1)
    frozen = [frozenset(stage.tick(**hog()).answer.freeze) for _ in range(15)]

    assert frozen[8] == {OTHER_BE}
    assert frozen[11] == {OTHER_BE, BE}
    assert frozenset() in frozen


def test_unknown_pressure_holds_what_is_and_then_releases_it_and_never_goes_further() -> None:
    stage = Stage(config("freeze", baseline_ticks=1))
    stage.tick(ls=1)
    stage.tick(ls=1)
    for _ in range(4):
        stage.tick(**hog())
    blind = [stage.tick(unknown=True, be=3, ls=1) for _ in range(40)]

    rungs = [outcome.ladders[Kind.CPU].rung for outcome in blind]
    assert rungs[:30] == [Rung.SQUEEZE] * 30
    assert rungs[30:] == [Rung.IDLE] * 10


def test_a_tick_that_came_much_too_late_is_no_ground_for_anything() -> None:
    stage = Stage(config("freeze", baseline_ticks=1))
    for _ in range(3):
        stage.tick(ls=1)
    for _ in range(10):
        outcome = stage.tick(seconds=4.0, **hog())
        assert not outcome.verdicts
        assert outcome.answer == governor.Answer()


def test_a_victim_that_is_gone_takes_its_verdict_along() -> None:
    stage = Stage(config())
    for _ in range(4):
        stage.tick(**hog())
    outcome = stage.tick(without=LS)

    assert not outcome.verdicts
    assert [verdict.victim for verdict in outcome.ended] == [LS]


def test_report_finds_the_same_verdicts_and_asks_for_nothing() -> None:
    loud, silent = Stage(config("freeze", baseline_ticks=1)), Stage(config("report", baseline_ticks=1))
    for _ in range(2):
        loud.tick(ls=1)
        silent.tick(ls=1)
    for _ in range(20):
        heard, said = loud.tick(**hog()), silent.tick(**hog())
        assert said.verdicts == heard.verdicts
        assert said.answer == governor.Answer()
        assert not said.desired


def test_the_squeeze_reaches_the_limit_of_be_and_never_goes_below_its_floor() -> None:
    stage = Stage(config("throttle"))
    limits = []
    for _ in range(12):
        now = stage.snapshot(**hog())
        stage.state, decision = governors.decide(stage.config, stage.prev, now, stage.state)
        stage.prev = now
        limits += [
            wanted.setting.quota_usec / wanted.setting.period_usec
            for wanted in decision.desired
            if isinstance(wanted.setting, CpuMax) and isinstance(wanted.setting.quota_usec, int)
        ]

    assert limits[0] == pytest.approx(0.7 * 2.8, abs=0.01), "no quota in calm"
    assert limits[-1] == pytest.approx(0.25 * 2.8, abs=0.01)
    assert sorted(limits, reverse=True) == limits
    assert "since LS waits through it" in decision.allowance.reason.text


WHATS = st.fixed_dictionaries(
    {},
    optional={
        "be": st.floats(0, 4),
        "ls": st.floats(0, 4),
        "ls_cpu_wait": st.floats(0, 1),
        "ls_memory_wait": st.floats(0, 1),
        "ls_io_wait": st.floats(0, 1),
        "be_io_wait": st.floats(0, 1),
        "be_grown": st.integers(0, GIB),
        "unknown": st.booleans(),
    },
)


@given(answer=st.sampled_from(MaxAnswer), whats=st.lists(WHATS, max_size=40), two=st.booleans())
def test_ls_is_never_frozen_or_killed_whatever_happens(
    *, answer: MaxAnswer, whats: list[dict[str, Any]], two: bool
) -> None:
    rules = (
        WorkloadRule(name="ls", tier=Tier.LS, match=("ls.slice",)),
        WorkloadRule(name="be", tier=Tier.BE, match=("be.slice",), kill=True),
    )
    stage = Stage(msgspec.structs.replace(config(answer, baseline_ticks=1), workload=rules), two_be=two)
    for what in whats:
        outcome = stage.tick(**what)
        assert not {LS, OTHER_LS} & set(outcome.answer.freeze)
        assert all(wanted.tier is Tier.BE for wanted in outcome.desired)
        assert all(wanted.setting == CgroupFreeze(True) for wanted in outcome.desired)
        assert all(effect.victim.tier is Tier.BE for effect in outcome.effects)
