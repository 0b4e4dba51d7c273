"""The rungs between `squeeze` and `freeze` as pure decisions: what is taken from whom, and given back."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iokit import CONFIG as IO_BY_LAW
from iokit import Disks, rbps
from memkit import BE, BE2, LS, MIB, Group, Host, changed, wants
from suffering import LS as STAGE_LS
from suffering import OTHER_LS, Stage, hog

from qosd import governors
from qosd.ask import Apart, Tighten
from qosd.config import Config, WorkloadRule
from qosd.cpu import allowance, cpuset
from qosd.interference import asks
from qosd.interference.blame import Cause, Culprit
from qosd.interference.ladder import Rung
from qosd.interference.signals import Kind
from qosd.interference.verdict import Evidence, Verdict
from qosd.io import limits as io_limits
from qosd.model import CgroupId, CpusetCpus, MemoryHigh, Snapshot, Tier
from qosd.plan import Desired, Reason
from qosd.schema.cpu import Cpu, Cpuset, CpusetMode
from qosd.schema.interference import Interference, MaxAnswer
from qosd.schema.memory import Limit

WHY = Reason("interference.ladder/memory", "ls.slice waits through BE (verdict 7)", threshold="10.0")


def config(answer: str) -> Config:
    return Config(interference=Interference(answer=MaxAnswer(answer)))


def asked(*ids: int, hot: bool = True, quiet: bool = False) -> Tighten:
    named = frozenset(CgroupId(each) for each in ids or (BE,))
    return Tighten(named, frozenset({CgroupId(LS)}), hot, quiet, WHY)


def masks(desired: tuple[Desired, ...]) -> dict[str, tuple[int, ...]]:
    return {each.path: each.setting.cpus for each in desired if isinstance(each.setting, CpusetCpus)}


def standing(stage: Stage, ticks: int) -> list[dict[str, tuple[int, ...]]]:
    found = []
    for _ in range(ticks):
        stage.tick(**hog())
        found.append(masks(stage.decision.desired))
    return found


def test_be_leaves_as_many_cpus_as_its_victim_uses_and_has_them_back_afterwards() -> None:
    """LS runs anywhere and uses one CPU of four; BE has no mask in calm, on `squeeze`, and after it."""
    stage = Stage(config("throttle"))
    course = standing(stage, 12)

    assert course[:5] == [{}] * 5
    assert {len(found["be.slice"]) for found in course[6:]} == {3}
    assert len({found["be.slice"] for found in course[6:]}) == 1, "a mask that moves migrates for nothing"
    wanted = next(each for each in stage.decision.desired if isinstance(each.setting, CpusetCpus))
    assert wanted.reason.rule == "cpu.cpuset/ladder"
    assert "(verdict 1)" in wanted.reason.text
    for _ in range(40):
        stage.tick()
    assert masks(stage.decision.desired) == {}


def test_a_victim_with_a_mask_of_its_own_has_those_cpus() -> None:
    stage = Stage(config("throttle"))
    stage.files[STAGE_LS] = {"cpuset.cpus": "0-1"}
    course = standing(stage, 12)

    assert course[-1] == {"be.slice": (2, 3)}


@pytest.mark.parametrize("why", ["no mask may be written", "BE has no such file", "report"])
def test_where_be_cannot_be_kept_off_any_cpu_the_rung_is_stepped_over(why: str) -> None:
    settings = config("report" if why == "report" else "throttle")
    if why == "no mask may be written":
        settings = msgspec.structs.replace(settings, cpu=Cpu(cpuset=Cpuset(mode=CpusetMode.NEVER)))
    stage = Stage(settings)
    if why == "BE has no such file":
        del stage.common["cpuset.cpus"]
    course = standing(stage, 12)

    assert course == [{}] * 12
    assert stage.state.interference.ladders[Kind.CPU].rung in (Rung.SQUEEZE, Rung.IDLE)


def test_somebody_who_waits_for_memory_or_io_gets_nothing_from_bes_cpus() -> None:
    stage = Stage(config("throttle"))
    for _ in range(20):
        outcome = stage.tick(be=3, be_grown=10 * MIB, be_io_wait=0.9, ls_memory_wait=0.5, ls_io_wait=0.5)
    assert outcome.answer.memory_tighten is not None
    assert outcome.answer.io_tighten is not None
    assert outcome.answer.avoid_cpus is None
    assert outcome.answer.squeeze == 1.0
    assert masks(stage.decision.desired) == {}


def place(apart: Apart | None, original: str = "", ls: str = "") -> dict[str, tuple[int, ...]]:
    stage = Stage(Config())
    stage.common["cpuset.cpus"] = original
    stage.files[STAGE_LS] = {"cpuset.cpus": ls}
    prev, now = stage.snapshot(**hog()), stage.snapshot(**hog())
    granted = allowance.Allowance(4.0, None, Reason("cpu.bandwidth", "all of it"))
    wishes = cpuset.Asked(granted, (), {}, apart)
    return masks(cpuset.decide(Config(), prev, now, wishes, cpuset.State())[1])


def test_a_mask_that_somebody_gave_be_is_never_widened_by_the_rung() -> None:
    assert place(Apart((), 2, WHY), original="1-3") == {"be.slice": (2, 3)}
    assert place(Apart((0, 1), 0, WHY), original="0-1") == {}, "it has no other CPU to go to"


@given(st.sets(st.integers(0, 5)), st.integers(0, 9), st.sampled_from(["", "0", "1-2", "0-3"]))
def test_be_always_has_a_cpu_and_never_one_that_is_not_its_own(
    bound: set[int], spare: int, original: str
) -> None:
    for cpus in place(Apart(tuple(sorted(bound)), spare, WHY), original).values():
        assert cpus
        assert set(cpus) <= {"": {0, 1, 2, 3}, "0": {0}, "1-2": {1, 2}, "0-3": {0, 1, 2, 3}}[original]


def verdict(victim: CgroupId, kind: Kind, *culprits: CgroupId) -> Verdict:
    doing = tuple(Culprit(each, "be", Tier.BE, 0.5) for each in culprits)
    named = (kind.value, kind, 60.0, 60.0, 25.0, None, False, Cause.BE, 0.5, "BE did it", doing, (), 0)
    return Verdict(1, victim, "ls.slice", *named)


def test_culprits_stay_named_while_the_ladder_stands_and_are_forgotten_when_gone() -> None:
    stage = Stage(Config(), two_be=True)
    now = stage.snapshot()
    be, other = (workload.id for workload in now.tier(Tier.BE))
    first = asks.tighten([verdict(STAGE_LS, Kind.IO, be)], Evidence.HOT, now, None)
    assert first is not None
    second = asks.tighten([verdict(OTHER_LS, Kind.IO, other)], Evidence.HOLD, now, first)
    assert second is not None
    assert (second.ids, second.hot) == ({be, other}, False)
    silent = asks.tighten([], Evidence.QUIET, now, second)
    assert silent is not None
    assert (silent.ids, silent.quiet) == ({be, other}, True)
    gone = stage.snapshot(without=be)
    third = asks.tighten([verdict(STAGE_LS, Kind.IO, other)], Evidence.HOT, gone, silent)
    assert third is not None
    assert third.ids == {other}


def cache_hog(**changes: float) -> Host:
    """BE with 400 MiB of page cache and 50 MiB of anonymous memory, and the law of memory.high off."""
    host = Host(Config())
    host.be.anon, host.be.inactive = 50, 400
    for name, value in changes.items():
        setattr(host.be, name, value)
    host.tick()
    return host


def test_memory_high_goes_down_by_a_step_each_tick_it_is_seen_again_and_back_at_once() -> None:
    host = cache_hog()
    step = 1024 * Config().memory.limits.down_pct / 100
    host.asked = asked()
    sizes = [wants(host.tick(), BE)["memory.high"] / MIB for _ in range(3)]

    assert sizes == pytest.approx([450 - step, 450 - 2 * step, 450 - 3 * step], abs=1.1)
    host.asked = asked(hot=False)
    assert wants(host.tick(), BE)["memory.high"] / MIB == pytest.approx(sizes[-1])
    host.asked = None
    assert wants(host.tick(), BE) == {}
    assert host.be.files["memory.high"] == "max"


def test_the_limit_of_the_rung_names_the_verdict_and_the_owner_of_the_file() -> None:
    host = cache_hog()
    host.asked = asked()
    (wanted,) = [each for each in host.tick().desired if isinstance(each.setting, MemoryHigh)]

    assert wanted.reason.rule == "memory.limits/ladder"
    assert wanted.reason.rule.split("/")[0] == governors.OWNERS[Tier.BE, "memory.high"]
    assert "(verdict 7)" in wanted.reason.text
    assert {each.name for each in wanted.reason.inputs} >= {"memory.current", "not reclaimable"}


def test_without_swap_the_rung_leaves_a_job_what_it_cannot_give_back() -> None:
    host = cache_hog(anon=300, inactive=20)
    host.asked = asked()
    for _ in range(20):
        high = wants(host.tick(), BE)["memory.high"] / MIB
    assert 300 < high < 300 / 0.9 + 2


def test_the_rung_asks_for_page_cache_too_and_of_the_culprit_alone() -> None:
    other = Group(BE2, "other.slice", Tier.BE)
    other.inactive = 300
    host = Host(Config(workload=(*Config().workload, WorkloadRule(name="other", tier=Tier.BE, match=("o",)))))
    host.groups.append(other)
    host.be.inactive = 300
    host.tick()
    host.asked = asked(BE)
    decision = host.tick()

    assert [each.cgroup_id for each in decision.reclaims] == [BE]
    assert decision.reclaims[0].reason.rule == "memory.reclaim/ladder"
    assert wants(decision, BE2) == {}


def test_a_rule_without_reclaim_is_not_asked_for_cache_by_the_rung_either() -> None:
    rules = (
        WorkloadRule(name="ls", tier=Tier.LS, match=("ls.slice",)),
        WorkloadRule(name="be", tier=Tier.BE, match=("be.slice",), page_cache_reclaim=False),
    )
    host = cache_hog()
    host.config = Config(workload=rules)
    host.asked = asked()

    assert host.tick().reclaims == ()


def test_where_the_law_is_on_the_tighter_of_the_two_stands() -> None:
    host = cache_hog()
    host.config = changed(host.config, "limits", enforce=Limit.HIGH)
    by_law = [wants(host.tick(), BE)["memory.high"] for _ in range(3)][-1]
    host.asked = asked()
    both = [wants(host.tick(), BE)["memory.high"] for _ in range(6)]

    assert both[-1] < by_law
    assert sorted(both, reverse=True) == both


def test_what_the_rung_stalls_is_lifted_on_the_same_deadline() -> None:
    host = cache_hog()
    host.asked = asked()
    host.tick()
    for _ in range(6):
        host.be.memory_full += 900_000
        decision = host.tick()
    assert wants(decision, BE) == {}
    assert "stalled it" in decision.view.workloads[1].limit


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 700), st.floats(0, 300)), max_size=30))
def test_no_course_of_the_rung_takes_what_only_swap_could_give(
    course: list[tuple[bool, float, float]],
) -> None:
    host = Host(Config())
    for hot, anon, cache in course:
        host.asked = asked(hot=hot)
        host.be.anon, host.be.inactive = anon, cache
        high = wants(host.tick(), BE).get("memory.high")
        assert high is None or high / MIB * 0.9 >= anon - 1


def io_course(*steps: tuple[Tighten | None, float]) -> list[object]:
    """The limit of each tick. LS waits all the time, as a database does: the ladder knows what is new."""
    disks = Disks()
    state: io_limits.State = io_limits.State()
    prev: Snapshot | None = None
    found = []
    for given_, be in steps:
        now = disks.snapshot(waits=50, be=be)
        state, desired = io_limits.decide(Config(), prev, now, state, given_)
        found.append(rbps(desired))
        prev = now
    return found


def test_io_max_is_halved_while_the_verdict_is_hot_held_between_and_given_back_in_quiet() -> None:
    hot, hold, quiet = asked(2), asked(2, hot=False), asked(2, hot=False, quiet=True)
    found = io_course(
        (None, 100), (hot, 100), (hot, 50), (hold, 25), (hold, 25), (quiet, 25), (quiet, 30), (None, 30)
    )

    assert found == [None, 50 * MIB, 25 * MIB, 25 * MIB, 25 * MIB, 30 * MIB, 35 * MIB, None]


def test_io_max_of_the_rung_is_for_culprits_alone() -> None:
    assert io_course((None, 100), (asked(9), 100), (asked(9), 100)) == [None, None, None]


def test_io_max_of_the_rung_names_the_verdict() -> None:
    disks = Disks()
    prev, now = disks.snapshot(be=100), disks.snapshot(waits=50, be=100)
    _, (wanted,) = io_limits.decide(Config(), prev, now, io_limits.State(), asked(2))

    assert wanted.reason.rule == "io.limits/ladder"
    assert "(verdict 7)" in wanted.reason.text


def test_beside_the_law_a_limit_comes_back_only_when_both_agree() -> None:
    disks = Disks()
    state, prev = io_limits.State(), disks.snapshot(be=100)
    course = []
    for waits, given_ in ((60, None), (0, asked(2, hot=False)), (0, None)):
        now = disks.snapshot(waits=waits, be=50)
        state, desired = io_limits.decide(IO_BY_LAW, prev, now, state, given_)
        course.append(rbps(desired))
        prev = now
    assert course == [25 * MIB, 25 * MIB, course[2]]
    assert isinstance(course[2], int)
    assert course[2] > 25 * MIB


def test_in_trouble_one_reading_is_a_verdict_and_no_rung_is_dwelt_on() -> None:
    """Two conditions: hardly anything is available, and all tasks of LS stand still for memory."""

    assert rungs("kill", 300 * MIB) == [Rung.RECLAIM, Rung.FREEZE, Rung.FREEZE, Rung.FREEZE]
    assert rungs("kill", 3000 * MIB) == [Rung.IDLE, Rung.IDLE, Rung.RECLAIM, Rung.RECLAIM]


def rungs(answer: str, free: int, ticks: int = 4) -> list[Rung]:
    """Of the ladder for memory, while all tasks of LS wait for half of the time."""
    rules = (
        WorkloadRule(name="ls", tier=Tier.LS, match=("ls.slice",)),
        WorkloadRule(name="be", tier=Tier.BE, match=("be.slice",), kill=True),
    )
    stage = Stage(msgspec.structs.replace(config(answer), workload=rules), free=free)
    stage.full = True
    stage.tick()
    course = [stage.tick(ls_memory_wait=0.5, be_grown=5 * MIB) for _ in range(ticks)]
    return [each.ladders[Kind.MEMORY].rung for each in course]


def test_what_nobody_may_kill_is_not_frozen_either_when_memory_is_short() -> None:
    """It would keep all it holds, and LS waits for the OOM killer for as much longer."""
    assert Rung.FREEZE not in rungs("freeze", 500 * MIB, ticks=30)
    assert Rung.FREEZE in rungs("freeze", 3000 * MIB, ticks=30)
    assert Rung.FREEZE in rungs("kill", 500 * MIB, ticks=30)


def test_trouble_alone_accuses_nobody() -> None:
    stage = Stage(config("freeze"), free=200 * MIB)
    stage.full = True
    stage.tick()
    for _ in range(10):
        outcome = stage.tick(ls_memory_wait=0.5, ls_grown=9 * MIB, ls_high=3)
    assert outcome.answer.freeze == ()
    assert outcome.answer.memory_tighten is None


def test_of_a_level_the_biggest_holder_of_memory_is_frozen_first() -> None:
    stage = Stage(config("freeze"), two_be=True)
    stage.priorities = {}
    be, other = (workload.id for workload in stage.snapshot().tier(Tier.BE))
    stage.sizes[other] = 900 * MIB
    stage.tick()
    frozen = [stage.tick(ls_memory_wait=0.5, be_grown=5 * MIB).answer.freeze for _ in range(12)]

    assert next(each for each in frozen if each) == (other,)
    assert (be, other) in frozen or (other, be) in frozen, "one more when that was not enough"
