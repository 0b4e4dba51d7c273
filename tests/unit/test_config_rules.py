"""Workloads, pools, windows and uplinks: what contradicts itself or another rule is refused by its key."""

from __future__ import annotations

import pytest
from configkit import WINDOW, refusal, workload
from hypothesis import given
from hypothesis import strategies as st

from qosd.config import (
    decode,
    patterns_overlap,
)
from qosd.model import Tier
from qosd.net.device import MAX_WORKLOAD_CLASSES


def test_a_workload_needs_its_name_its_tier_and_its_match() -> None:
    for missing, text in {
        "name": 'tier = "be"\nmatch = ["x"]',
        "tier": 'name = "x"\nmatch = ["x"]',
        "match": 'name = "x"\ntier = "be"',
    }.items():
        message = refusal(f"[[workload]]\n{text}")
        assert message.startswith("workload[0]: ")
        assert f"`{missing}`" in message


@pytest.mark.parametrize(
    "text",
    [
        workload("", "be", "x"),
        workload("a b", "be", "x"),
        workload("x" * 65, "be", "x"),
        workload("x", "mid", "x"),
    ]
    + ['[[workload]]\nname = "x"\ntier = "be"\nmatch = []\n']
    + [workload("x", "be", "x") + f"priority = {priority}" for priority in (-1, 101)]
    + [workload("x", "be", "x") + f"cpu_max_pct = {share}" for share in (0, 101)],
)
def test_a_workload_out_of_bounds_is_refused_by_its_index(text: str) -> None:
    assert refusal(text).startswith("workload[0]")


def test_a_link_speed_is_a_bit_rate_of_a_listed_uplink() -> None:
    net = decode('[net]\nuplinks = ["eth0"]\nlink_speed = { eth0 = "2.5Gbit" }').net
    assert net.link_speed == {"eth0": 2_500_000_000}
    assert refusal('[net]\nlink_speed = { eth0 = "1Gbit" }').startswith("net.link_speed.eth0: ")
    assert "kbit, Mbit, Gbit" in refusal('[net]\nuplinks = ["eth0"]\nlink_speed = { eth0 = "1GiB" }')


def test_only_be_can_have_an_egress_max_and_as_many_as_there_are_classes() -> None:
    limited = 'egress_max = "200Mbit"\n'
    assert decode(workload("x", "be", "x") + limited).workload[0].egress_max == 200_000_000
    assert refusal(workload("x", "ls", "x") + limited).startswith("workload[0].egress_max: only BE")
    many = [workload(f"x{n}", "be", f"x{n}") + limited for n in range(MAX_WORKLOAD_CLASSES + 1)]
    decode("".join(many[1:]))
    assert refusal("".join(many)).startswith(f"workload[{MAX_WORKLOAD_CLASSES}].egress_max: at most")
    assert "200Mbit" in refusal(workload("x", "be", "x") + "egress_max = 200")


POOL = '[[pool]]\nname = "p"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (POOL + POOL, "pool[1].name: 'p' is used twice"),
        (POOL + "load_low_pct = 80", "pool[0].load_low_pct: must be below load_high_pct"),
        (POOL + "priority = 101", "pool[0].priority: "),
        (POOL + "weight = 0", "pool[0].weight: "),
        (POOL + "wait = 1", "pool[0].wait: unknown key"),
        (workload("x", "be", "x") + 'pool = "q"', "workload[0].pool: there is no [[pool]] named 'q'"),
        (
            POOL + workload("x", "be", "x") + 'pool = "p"\n' + workload("y", "ls", "y") + 'pool = "p"',
            "workload[1].pool: 'p' holds be already; a pool is of one tier",
        ),
        (workload("x", "be", "x") + "cpus = 2", "workload[0].cpus: only LS can have CPUs of its own"),
        (workload("x", "ls", "x") + "cpus = 0", "workload[0].cpus: "),
        (workload("x", "ls", "x") + 'cpus = 1\n[cpu.cpuset]\nmode = "never"', "workload[0].cpus: "),
        (workload("x", "ls", "x") + "cpu_target_pct = 101", "workload[0].cpu_target_pct: "),
        (workload("x", "be", "x") + "cpu_target_pct = 0", "workload[0].cpu_target_pct: "),
        ('[cpu.cpuset]\nmode = "never"\n[cpu.bandwidth]\nenforce = "cpuset"', "cpu.cpuset.mode: "),
        ("[cpu.burst]\nhold_pct = 60", "cpu.burst.hold_pct: must not be above room_pct (50)"),
        (WINDOW + WINDOW, "window[1].name: 'w' is used twice"),
        (WINDOW.replace("pause_be = true", ""), "window[0]: 'w' changes nothing"),
        (WINDOW + 'days = ["monday"]', "window[0].days"),
        (WINDOW + "days = []", "window[0].days"),
        (WINDOW + "floor_pct = 0", "window[0].floor_pct"),
    ]
    + [
        (WINDOW.replace("22:00-06:00", hours), "window[0].hours: ")
        for hours in ("", "22-06", "22:00-22:00", "24:00-06:00", "22:60-06:00", "22:00-24:01", "-1:00-06:00")
    ],
)
def test_a_pool_or_a_window_that_cannot_be_is_refused_by_its_key(text: str, says: str) -> None:
    assert refusal(text).startswith(says)


def test_the_load_bands_follow_the_priority_unless_they_are_set() -> None:
    pools = decode("".join(f'[[pool]]\nname = "p{n}"\npriority = {n}\n' for n in range(4))).pool
    assert [pool.band for pool in pools] == [(30, 50), (45, 60), (50, 80), (50, 80)]
    assert decode(POOL + "load_high_pct = 100").pool[0].band == (50, 100)


def test_a_name_used_twice_is_refused() -> None:
    message = refusal(workload("x", "be", "a") + workload("x", "be", "b"))

    assert message == "workload[1].name: 'x' is used twice; give each rule its own name"


@pytest.mark.parametrize("pattern", ["", "/", "/be.slice", "be.slice/", "a//b", ".", "a/..", "../a", "a/**"])
def test_a_pattern_that_is_no_path_below_the_mount_is_refused(pattern: str) -> None:
    assert refusal(workload("x", "be", pattern)).startswith("workload[0].match: ")


OVERLAPS = [
    ("ls.slice", "ls.slice"),
    ("ls.slice", "ls.slice/job"),
    ("system.slice/*.service", "system.slice/nginx.service"),
    ("system.slice/*.service", "system.slice"),
    ("system.slice/*.service", "*/nginx.service/deep"),
    ("*", "anything.slice"),
    ("?s.slice", "ls.slice"),
    ("[lb]s.slice/x", "ls.slice"),
]
APART = [
    ("ls.slice", "be.slice"),
    ("ls.slice/a", "ls.slice/b"),
    ("ls.slice", "ls.slice2"),
    ("system.slice/*.service", "system.slice/a.scope"),
    ("a*", "b*"),
    ("[ab].slice", "c.slice"),
]


@pytest.mark.parametrize(("one", "two"), OVERLAPS)
def test_a_cgroup_that_could_be_in_both_tiers_is_refused(one: str, two: str) -> None:
    """Either way round: BE inside LS and LS inside BE are as bad as the same cgroup."""
    for ls, be in ((one, two), (two, one)):
        message = refusal(workload("web", "ls", ls) + workload("batch", "be", be))
        assert message.startswith("workload[1].match: ")
        assert "overlaps" in message


@pytest.mark.parametrize(("one", "two"), APART)
def test_tiers_that_cannot_meet_are_taken(one: str, two: str) -> None:
    assert len(decode(workload("web", "ls", one) + workload("batch", "be", two)).workload) == 2


def test_two_rules_of_one_tier_may_overlap() -> None:
    assert (
        decode(workload("a", "be", "be.slice") + workload("b", "be", "be.slice/*")).workload[1].tier
        is Tier.BE
    )


@given(*[st.lists(st.text("ab*?", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join)] * 2)
def test_overlap_has_no_direction(one: str, two: str) -> None:
    assert patterns_overlap(one, two) == patterns_overlap(two, one)


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4), st.data())
def test_a_glob_overlaps_every_path_it_matches_and_all_below_and_above(
    path: list[str], data: st.DataObject
) -> None:
    glob = [data.draw(st.sampled_from([part, "*", part[:1] + "*", "?" * len(part)])) for part in path]
    cut = data.draw(st.integers(1, len(path)))

    assert patterns_overlap("/".join(glob), "/".join(path))
    assert patterns_overlap("/".join(glob), "/".join(path[:cut]))
    assert patterns_overlap("/".join(glob[:cut]), "/".join(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[memory.reclaim]\navailable_high_pct = 10",
            "memory.reclaim.available_high_pct: means nothing without",
        ),
        (
            "[memory.reclaim]\nfree_low_pct = 10\nfree_high_pct = 5",
            "memory.reclaim.free_high_pct: must not be",
        ),
        ("{rule}page_cache_low = '1GiB'", "workload[0].page_cache_low: means nothing without"),
        (
            "{rule}page_cache_high = '1GiB'\npage_cache_low = '2GiB'",
            "workload[0].page_cache_low: must not be above",
        ),
    ],
)
def test_watermarks_that_contradict_each_other_are_refused(text: str, words: str) -> None:
    rule = "[[workload]]\nname = 'be'\ntier = 'be'\nmatch = ['be.slice']\n"

    assert refusal(text.format(rule=rule)).startswith(words)


def test_a_word_that_a_key_does_not_take_is_answered_with_those_it_does() -> None:
    one_of = "cpu.bandwidth.enforce: must be one of 'max', 'cpuset', 'none', not 'a quota'"
    assert refusal('[cpu.bandwidth]\nenforce = "a quota"') == one_of
    days = WINDOW + '\ndays = ["mon", "tuesday"]'
    assert refusal(days).startswith("window[0].days[1]: must be one of 'mon', 'tue', ")
