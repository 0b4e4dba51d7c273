"""The ladder as a table: signals x rung x dwell to the expected rung, in the form of test_cpuset_prs.sh.

A row is a script, one word a second: what the signals say (H hot, B between the thresholds, Q quiet,
? unknown), a count of such seconds in front (`10Q`), and after a slash the rung that must be reached then.
"""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd.interference.ladder import LADDERS, Ladder, May, Rung, after_kill, open_rungs, step
from qosd.interference.signals import Kind
from qosd.interference.verdict import Evidence
from qosd.schema.interference import Interference, MaxAnswer
from qosd.schema.units import Duration

WORDS = {"H": Evidence.HOT, "B": Evidence.HOLD, "Q": Evidence.QUIET, "?": Evidence.UNKNOWN}
MAY = {
    "": May(),
    "cpuset": May(cpuset=True),
    "cold": May(severe=False),
    "kill": May(kill=True),
    "urgent": May(urgent=True),
    "urgent kill": May(urgent=True, kill=True),
}
ORDER = tuple(Rung)
SECOND = 1_000_000

# dwell_up 3 s, dwell_down 10 s, lease and rest 10 s, released after 30 unknown ticks.
MATRIX = [
    # kind, answer, may, script
    ("cpu", "report", "", "H/idle 60H/idle"),
    ("cpu", "throttle", "", "H/squeeze 60H/squeeze"),
    ("cpu", "throttle", "cpuset", "H/squeeze 2H/squeeze H/cpuset 60H/cpuset"),
    ("cpu", "freeze", "", "H/squeeze 2H/squeeze H/freeze"),
    ("cpu", "freeze", "cpuset", "H/squeeze 3H/cpuset 3H/freeze"),
    ("cpu", "freeze", "cold", "H/squeeze 60H/squeeze"),
    ("cpu", "kill", "kill", "H/squeeze 3H/freeze 9H/freeze H/squeeze"),
    ("latency", "freeze", "", "H/squeeze 3H/freeze"),
    ("memory", "report", "kill", "60H/idle"),
    ("memory", "throttle", "kill", "H/reclaim 60H/reclaim"),
    ("memory", "freeze", "kill", "H/reclaim 3H/freeze 10H/reclaim"),
    ("memory", "kill", "", "H/reclaim 3H/freeze 10H/reclaim"),
    ("memory", "kill", "kill", "H/reclaim 3H/freeze 9H/freeze H/term 60H/term 60Q/term"),
    ("io", "throttle", "", "H/io 60H/io"),
    ("io", "kill", "kill", "H/io 3H/freeze 10H/io"),
    # in trouble no rung is dwelt on, nor a lease waited out where a kill is allowed; rests and reach stay
    ("memory", "report", "urgent kill", "60H/idle"),
    ("memory", "throttle", "urgent kill", "H/reclaim 60H/reclaim"),
    ("memory", "freeze", "urgent", "H/reclaim H/freeze 9H/freeze H/reclaim 9H/reclaim H/freeze"),
    ("memory", "kill", "urgent kill", "H/reclaim H/freeze H/term"),
    ("memory", "kill", "urgent kill", "60B/idle H/reclaim 60B/reclaim"),
    # between the thresholds nothing moves
    ("cpu", "freeze", "", "H/squeeze 60B/squeeze"),
    ("memory", "kill", "kill", "H/reclaim 60B/reclaim 3H/freeze 10B/reclaim"),
    # down: slowly, one rung at a time, and the quiet must last
    ("cpu", "throttle", "cpuset", "4H/cpuset 10Q/cpuset Q/squeeze 9Q/squeeze Q/idle"),
    ("cpu", "throttle", "", "H/squeeze 9Q/squeeze H/squeeze 10Q/squeeze Q/idle"),
    ("io", "throttle", "", "H/io 9Q/io B/io 10Q/io Q/idle"),
    # a lease ends whatever is said, and a rest follows before the next
    ("cpu", "freeze", "", "H/squeeze 3H/freeze 9?/freeze ?/squeeze"),
    ("cpu", "freeze", "", "H/squeeze 3H/freeze 9Q/freeze Q/squeeze"),
    ("cpu", "freeze", "", "H/squeeze 3H/freeze 10H/squeeze 9H/squeeze H/freeze"),
    # unknown: no step up, held, then given up
    ("memory", "kill", "kill", "60?/idle"),
    ("memory", "kill", "kill", "H/reclaim 30?/reclaim ?/idle"),
    ("memory", "kill", "kill", "H/reclaim 30?/reclaim 3H/freeze"),
    ("cpu", "throttle", "cpuset", "4H/cpuset 30?/cpuset ?/idle"),
    # flapping: four returns are followed, the fifth holds the throttle for two minutes
    (
        "io",
        "throttle",
        "",
        4 * "H/io 11Q/idle " + "H/io 11Q/idle H/io 119Q/io Q/idle",
    ),
    (
        "io",
        "freeze",
        "",
        4 * "H/io 11Q/idle " + "H/io 11Q/idle H/io 119H/io H/freeze",
    ),
]


def words(script: str) -> list[tuple[int, Evidence, Rung | None]]:
    parsed = []
    for word in script.split():
        match = re.fullmatch(r"(\d*)([HBQ?])(?:/(\w+))?", word)
        assert match is not None, word
        parsed.append((int(match[1] or 1), WORDS[match[2]], Rung(match[3]) if match[3] else None))
    return parsed


def config(answer: str) -> Interference:
    return Interference(answer=MaxAnswer(answer))


@pytest.mark.parametrize(("kind", "answer", "may", "script"), MATRIX)
def test_the_ladder_is_where_the_table_says(kind: str, answer: str, may: str, script: str) -> None:
    ladder, now = Ladder(), 1_000_000_000
    for count, evidence, rung in words(script):
        for _ in range(count):
            ladder = step(config(answer), Kind(kind), evidence, MAY[may], now, ladder)
            now += SECOND
        assert rung is None or ladder.rung is rung, f"after {count}{evidence} of {script!r}"


SCRIPTS = st.lists(st.tuples(st.sampled_from(Evidence), st.sampled_from(sorted(MAY))), max_size=80)


@given(st.sampled_from(Kind), st.sampled_from(MaxAnswer), SCRIPTS)
def test_a_ladder_climbs_one_rung_a_tick_and_never_past_what_is_allowed(
    kind: Kind, answer: MaxAnswer, script: list[tuple[Evidence, str]]
) -> None:
    ladder, now = Ladder(), 1_000_000_000
    for evidence, may in script:
        before = ladder
        ladder = step(config(answer), kind, evidence, MAY[may], now, before)
        now += SECOND
        rungs = open_rungs(kind, answer, msgspec.structs.replace(MAY[may], cpuset=True, severe=True))
        climbed = ORDER.index(ladder.rung) - ORDER.index(before.rung)
        if climbed > 0:
            assert evidence is Evidence.HOT
            assert ladder.rung in rungs
            passed = [
                rung
                for rung in LADDERS[kind]
                if ORDER.index(before.rung) < ORDER.index(rung) < ORDER.index(ladder.rung)
            ]
            assert set(passed) <= {Rung.CPUSET}, "a mask that the victim does not have is stepped over"
        assert ladder.rung in open_rungs(kind, answer, May(cpuset=True, kill=True))
        assert 0.25 <= ladder.squeeze <= 1


@given(st.sampled_from(Kind), SCRIPTS)
def test_nothing_is_frozen_for_longer_than_its_lease(kind: Kind, script: list[tuple[Evidence, str]]) -> None:
    ladder, now, frozen_since = Ladder(), 1_000_000_000, None
    for evidence, may in script:
        ladder = step(config("freeze"), kind, evidence, MAY[may], now, ladder)
        if ladder.rung is not Rung.FREEZE:
            frozen_since = None
        elif frozen_since is None:
            frozen_since = now
        else:
            assert now - frozen_since < Interference().freeze_lease
        now += SECOND


def test_a_lower_answer_in_the_configuration_takes_the_ladder_down_at_once() -> None:
    frozen = Ladder(rung=Rung.FREEZE, since_usec=1_000_000, reach=1)
    for answer, expected in (("throttle", Rung.SQUEEZE), ("report", Rung.IDLE)):
        after = step(config(answer), Kind.CPU, Evidence.HOT, May(), 2_000_000, frozen)
        assert after.rung is expected
        assert after.reach == 0


def test_be_is_squeezed_step_by_step_to_the_floor_and_gets_it_back_more_slowly() -> None:
    ladder, now, down, up = Ladder(), 1_000_000_000, [], []
    for _ in range(6):
        ladder = step(config("throttle"), Kind.CPU, Evidence.HOT, May(), now, ladder)
        down.append(round(ladder.squeeze, 3))
        now += SECOND
    while ladder.rung is not Rung.IDLE:
        ladder = step(config("throttle"), Kind.CPU, Evidence.QUIET, May(), now, ladder)
        up.append(round(ladder.squeeze, 3))
        now += SECOND

    assert down == [0.7, 0.49, 0.343, 0.25, 0.25, 0.25]
    assert up == [0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.0, 1.0, 1.0, 1.0]


def test_what_a_freeze_did_not_help_is_frozen_one_level_of_priority_further() -> None:
    ladder, now = Ladder(rung=Rung.FREEZE, since_usec=1_000_000, reach=1), 1_000_000
    reaches = []
    for _ in range(9):
        ladder = step(config("freeze"), Kind.CPU, Evidence.HOT, May(), now, ladder)
        reaches.append(ladder.reach)
        now += SECOND

    assert reaches == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_after_a_kill_the_ladder_throttles_until_it_has_settled() -> None:
    section = Interference(answer=MaxAnswer.KILL, freeze_lease=Duration(1_000_000))
    ladder = after_kill(section, 1_000_000, Ladder(rung=Rung.KILL, since_usec=1_000_000))
    seen = []
    for second in range(1, 17):
        ladder = step(section, Kind.MEMORY, Evidence.HOT, May(kill=True), second * SECOND, ladder)
        seen.append(ladder.rung)

    assert seen[:15] == [Rung.RECLAIM] * 15
    assert seen[15] is Rung.FREEZE
