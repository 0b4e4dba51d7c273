"""The rules for a kill, each of which can only refuse, and who would go first."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from suffering import BE, GIB, MIB, OTHER_BE, SECOND, Stage

from qosd import governors
from qosd.config import Config, WorkloadRule
from qosd.interference import governor, kills, victims
from qosd.interference.kills import Effect, Means, Spent
from qosd.interference.ladder import Rung
from qosd.interference.signals import Kind
from qosd.model import CgroupId, CgroupSample, CpuMax, Tier
from qosd.schema.cpu import Cpu, CpuBandwidth, Enforce
from qosd.schema.interference import Interference, Kill, MaxAnswer
from qosd.schema.units import Duration

JOB, JOB_2 = CgroupId(30), CgroupId(31)
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND


def config(answer: MaxAnswer = MaxAnswer.KILL, *, kill: bool = True, **changes: Any) -> Config:
    rules = (
        WorkloadRule(name="ls", tier=Tier.LS, match=("ls.slice",)),
        WorkloadRule(name="be", tier=Tier.BE, match=("be.slice",), kill=kill),
        WorkloadRule(name="worse", tier=Tier.BE, match=("worse.slice",), priority=5, kill=kill),
    )
    section = Interference(answer=answer, freeze_lease=Duration(3 * SECOND), kill=Kill(**changes))
    bandwidth = CpuBandwidth(enforce=Enforce.MAX)
    return Config(interference=section, workload=rules, cpu=Cpu(bandwidth=bandwidth))


def stage(settings: Config | None = None, *, free: int = 500 * MIB, two_be: bool = False) -> Stage:
    made = Stage(settings or config(), total=8 * GIB, sizes={BE: 6 * GIB}, free=free, two_be=two_be)
    made.below = (
        CgroupSample(JOB, "be.slice/job.service", memory_current=5 * GIB),
        CgroupSample(JOB_2, "be.slice/small.service", memory_current=GIB),
    )
    return made


def suffer(made: Stage, seconds: int, **what: Any) -> list[governor.Outcome]:
    return [made.tick(ls_memory_wait=0.5, **what) for _ in range(seconds)]


def effects(outcomes: list[governor.Outcome]) -> list[Effect]:
    return [effect for outcome in outcomes for effect in outcome.effects]


def with_pending(made: Stage, **changes: Any) -> None:
    """What the daemon finds by looking, put into the state as it does."""
    kill = made.state.interference.kill
    assert kill.pending is not None
    pending = msgspec.structs.replace(kill.pending, **changes)
    interference = msgspec.structs.replace(
        made.state.interference, kill=msgspec.structs.replace(kill, pending=pending)
    )
    made.state = msgspec.structs.replace(made.state, interference=interference)


def test_after_throttling_and_freezing_the_largest_job_is_asked_to_end_and_then_killed() -> None:
    made = stage()
    outcomes = suffer(made, 40)

    rungs = [outcome.ladders[Kind.MEMORY].rung for outcome in outcomes]
    order = [rung for rung, before in zip(rungs, [None, *rungs], strict=False) if rung is not before]
    assert order[:4] == [Rung.IDLE, Rung.RECLAIM, Rung.FREEZE, Rung.RECLAIM]
    assert order.index(Rung.TERM) == order.index(Rung.KILL) - 1
    done = effects(outcomes)
    assert [effect.means for effect in done[:2]] == [Means.TERM, Means.KILL]
    assert {effect.victim.path for effect in done[:2]} == {"be.slice/job.service"}
    assert [effect.first for effect in done[:2]] == [True, False]


def test_the_reason_for_a_kill_has_the_inputs_and_the_candidates() -> None:
    reason = effects(suffer(stage(), 40))[0].reason

    assert "be.slice/job.service (5120 MiB), be.slice/small.service (1024 MiB)" in reason.text
    assert {given.name for given in reason.inputs} >= {"LS waited for memory", "MemAvailable"}
    assert "mem_available_pct = 10 %" in str(reason.threshold)


@pytest.mark.parametrize(
    ("settings", "free"),
    [
        (config(MaxAnswer.FREEZE), 500 * MIB),
        (config(kill=False), 500 * MIB),
        (config(), 4 * GIB),
        (config(per_window=0), 500 * MIB),
        (config(per_day=0), 500 * MIB),
        (config(after=Duration(HOUR)), 500 * MIB),
    ],
    ids=[
        "answer below kill",
        "not allow-listed",
        "memory is there",
        "no window",
        "no day",
        "not long enough",
    ],
)
def test_each_rule_alone_forbids_a_kill(settings: Config, free: int) -> None:
    made = stage(settings, free=free)
    outcomes = suffer(made, 60, be_grown=0 if free < GIB else MIB)

    assert effects(outcomes) == []
    assert outcomes[-1].verdicts


def test_an_idle_job_does_not_die_for_one_that_holds_the_memory_and_may_not_be_killed() -> None:
    """It is first by its priority, and the only one on the list; its end would help nobody."""
    settings = config()
    one, keep, batch = settings.workload
    keep = msgspec.structs.replace(keep, kill=False)
    settings = msgspec.structs.replace(settings, workload=(one, keep, batch))
    made = stage(settings, two_be=True)
    made.sizes[OTHER_BE] = MIB

    assert effects(suffer(made, 60)) == []
    made.sizes[OTHER_BE] = GIB
    assert {each.victim.path for each in effects(suffer(made, 60))} == {"worse.slice"}


def test_a_freeze_that_was_wanted_and_never_in_force_was_not_tried() -> None:
    made = stage()
    made.unfreezable = frozenset({BE})
    outcomes = suffer(made, 60)

    assert any(outcome.answer.freeze for outcome in outcomes)
    assert effects(outcomes) == []


def test_scarce_memory_alone_kills_nobody() -> None:
    assert effects([stage().tick() for _ in range(60)]) == []


def test_unknown_memory_is_not_scarce() -> None:
    made = stage()
    now = made.snapshot()
    blind = msgspec.structs.replace(now, host=msgspec.structs.replace(now.host, mem_available=None))

    assert kills.scarce(Kill(), now) is True
    assert kills.scarce(Kill(), blind) is None


def test_the_victims_workload_runs_without_limit_and_unfrozen_until_it_is_over() -> None:
    """A frozen task does not see SIGTERM, and one held at 1 % takes long to end."""
    made = stage(two_be=True)
    for _ in range(60):
        outcome = made.tick(ls_memory_wait=0.5)
        if outcome.effects:
            break
    assert outcome.effects[0].victim.root == "worse.slice", "the higher number of priority goes first"
    assert outcome.answer.lift == OTHER_BE
    assert OTHER_BE not in outcome.answer.freeze
    now = made.snapshot(ls_memory_wait=0.5)
    _, decision = governors.decide(made.config, made.prev, now, made.state)
    limited = {wanted.cgroup_id for wanted in decision.desired if isinstance(wanted.setting, CpuMax)}
    assert limited == {BE}


@pytest.mark.parametrize("changes", [{"populated": False}, {"populated": None}, {"refused": "because"}])
def test_a_victim_that_ended_or_cannot_be_killed_is_over_and_the_ladder_waits(
    changes: dict[str, Any],
) -> None:
    made = stage()
    while not made.tick(ls_memory_wait=0.5).effects:
        pass
    with_pending(made, **changes)
    outcomes = suffer(made, 14)

    assert effects(outcomes) == []
    assert {outcome.ladders[Kind.MEMORY].rung for outcome in outcomes} == {Rung.RECLAIM}


def test_when_memory_is_nearly_gone_there_is_no_grace() -> None:
    made = stage(free=100 * MIB)
    outcomes = suffer(made, 40)

    effect = effects(outcomes)[0]
    assert effect.means is Means.KILL
    assert effect.first
    after = outcomes[[bool(outcome.effects) for outcome in outcomes].index(True)]
    assert after.ladders[Kind.MEMORY].rung is Rung.KILL


def test_one_kill_in_15_seconds_five_in_ten_minutes_twenty_a_day() -> None:
    def left(*ago: int) -> kills.Left:
        now = 100 * HOUR
        return kills.budget(Kill(), tuple(Spent(now - each, "job") for each in ago), now)

    assert left() == kills.Left(5, 5, 20)
    assert left(14 * SECOND).now == 0
    assert left(15 * SECOND) == kills.Left(4, 4, 19)
    assert left(*(n * MINUTE for n in range(1, 6))) == kills.Left(0, 0, 15)
    assert left(*(n * MINUTE for n in range(6, 11))) == kills.Left(1, 1, 15)
    assert left(*(HOUR + n * MINUTE for n in range(20))) == kills.Left(0, 5, 0)
    assert left(*(25 * HOUR for n in range(20))) == kills.Left(5, 5, 20)


def test_an_empty_budget_is_an_alarm_and_no_kill() -> None:
    made = stage()
    spent = tuple(Spent(made.usec - n * MINUTE, "job") for n in range(1, 6))
    kill = kills.State(spent=spent)
    made.state = msgspec.structs.replace(made.state, interference=governor.State(kill=kill))
    outcomes = suffer(made, 60)

    assert effects(outcomes) == []
    assert outcomes[-1].exhausted
    assert any(outcome.answer.freeze for outcome in outcomes)


def test_what_was_killed_a_short_while_ago_is_not_killed_again() -> None:
    made = stage()
    now = made.snapshot()
    ahead = victims.Cooling("be.slice/job.service", now.monotonic_usec + 1)
    over = victims.Cooling("be.slice/job.service", now.monotonic_usec)

    assert victims.rank(made.config, now, (ahead,))[1].kill_rank == 1
    assert victims.rank(made.config, now, (over,))[0].kill_rank == 1


def test_victims_are_ranked_by_priority_then_memory_and_ls_is_never_one() -> None:
    made = stage(two_be=True)
    made.state = governors.State()
    now = made.snapshot()
    workloads = tuple(
        msgspec.structs.replace(each, priority={BE: 0, OTHER_BE: 5}.get(each.id, 0)) for each in now.workloads
    )
    ranked = victims.rank(made.config, msgspec.structs.replace(now, workloads=workloads))

    assert [(each.path, each.freeze_rank, each.kill_rank) for each in ranked] == [
        ("worse.slice", 1, 1),
        ("be.slice/job.service", 2, 2),
        ("be.slice/small.service", 2, 3),
        ("other.slice", None, None),
        ("ls.slice/unit.service", None, None),
    ]
    assert {each.why for each in ranked if each.tier is Tier.LS} == {"never: it is latency-sensitive"}


def test_units_are_killed_and_not_their_slices_nor_their_parts() -> None:
    made = stage()
    made.below = tuple(
        CgroupSample(CgroupId(40 + n), path, memory_current=MIB)
        for n, path in enumerate(
            ("be.slice/be-a.slice", "be.slice/be-a.slice/x.service", "be.slice/be-a.slice/x.service/part")
        )
    )
    ranked = victims.rank(made.config, made.snapshot())

    assert [each.path for each in ranked if each.tier is Tier.BE] == ["be.slice/be-a.slice/x.service"]


WHATS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 200 * MIB), st.booleans()), max_size=120)


@given(WHATS)
def test_whatever_happens_the_budget_holds(whats: list[tuple[float, int, bool]]) -> None:
    """Every kill that is asked for first is counted, as the daemon does it; victims die or do not."""
    settings = config(per_window=2)
    made = stage(settings)
    spent: list[Spent] = []
    for wait, grown, dies in whats:
        outcome = made.tick(ls_memory_wait=wait, be_grown=grown)
        spent += [Spent(made.usec, effect.victim.path) for effect in outcome.effects if effect.first]
        kill = msgspec.structs.replace(made.state.interference.kill, spent=tuple(spent))
        if kill.pending is not None and dies:
            kill = msgspec.structs.replace(
                kill, pending=msgspec.structs.replace(kill.pending, populated=False)
            )
        interference = msgspec.structs.replace(made.state.interference, kill=kill)
        made.state = msgspec.structs.replace(made.state, interference=interference)
    times = [each.boottime_usec for each in spent]
    assert len(times) <= 2
    assert all(b - a >= settings.interference.kill.settle for a, b in pairwise(times))
