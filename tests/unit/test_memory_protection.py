"""memory.low of LS: as much as it uses, within bounds, and never less than what was there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memkit import BE, LS, MIB, PAGES, Group, Host, changed, view, wants

from qosd.config import Config
from qosd.model import CgroupId, Tier
from qosd.schema.memory import Protect


def settled(host: Host, minutes: int = 60) -> dict[str, int]:
    """What is wanted of LS after a time in which nothing changed."""
    for _ in range(minutes * 6):
        decision = host.tick(10)
    return wants(decision, LS)


def test_all_that_ls_holds_is_protected_at_first_and_what_stays_cold_is_given_up_with_time() -> None:
    host = Host(Config())
    host.ls.anon, host.ls.active, host.ls.inactive = 100, 150, 180

    assert wants(host.tick(), LS) == {"memory.low": 512 * MIB}
    assert 300 * MIB <= settled(host)["memory.low"] <= 333 * MIB


def test_mapped_cache_counts_as_used() -> None:
    """The kernel learns of accesses through a mapping only when it scans: until then such pages look cold."""
    host = Host(Config())
    host.ls.inactive, host.ls.mapped = 380, 300

    assert 360 * MIB <= settled(host)["memory.low"] <= 400 * MIB


@pytest.mark.parametrize("lru_gen", [True, None])
def test_inactive_says_nothing_of_use_with_the_multigenerational_lru(lru_gen: Any) -> None:
    """Pages that are only read stay in its two oldest generations, which are shown as inactive."""
    host = Host(changed(Config(), "protection", enforce=Protect.LOW))
    host.lru_gen = lru_gen
    host.ls.inactive = 300

    assert settled(host) == {"memory.low": 360 * MIB}


def test_pages_that_come_between_two_looks_are_protected_as_they_come() -> None:
    """memory.stat is read in turns; above memory.low the kernel takes what it finds, new or old."""
    host = Host(Config())
    host.ls.active = 20
    host.tick()
    for _ in range(10):
        host.ls.active += 40
        wanted = wants(host.tick(), LS)["memory.low"]
        assert wanted >= min(host.ls.active + 60, 512) * MIB


def test_there_is_room_even_for_a_small_set() -> None:
    host = Host(Config())
    host.ls.active = 10

    assert wants(host.tick(), LS) == {"memory.low": 61 * MIB}


def test_room_gives_way_where_all_of_ls_together_is_at_its_share() -> None:
    more = [Group(CgroupId(20 + n), f"svc{n}.slice", Tier.LS) for n in range(20)]
    host = Host(Config(), *more)
    for group in (host.ls, *more):
        group.active = 10
    decision = host.tick()

    assert {wants(decision, group.id)["memory.low"] for group in (host.ls, *more)} == {12 * MIB}


def test_what_had_to_be_read_again_is_added() -> None:
    host = Host(Config())
    host.ls.active = 300
    host.tick()
    host.ls.refaults = 50 * PAGES

    assert wants(host.tick(5), LS) == {"memory.low": 420 * MIB}


def test_cache_is_not_taken_for_cold_while_evicted_pages_come_back() -> None:
    """The kernel puts used pages on the inactive list, too, to see whether they are used again."""
    host = Host(Config())
    host.ls.active, host.ls.inactive = 200, 160
    before = settled(host)["memory.low"]
    host.ls.refaults += 40 * PAGES

    assert before <= 275 * MIB
    assert wants(host.tick(5), LS) == {"memory.low": 480 * MIB}


def test_a_pause_does_not_give_the_set_away_at_once_but_time_does() -> None:
    host = Host(Config())
    host.ls.active = 400
    host.tick()
    host.ls.active = 40
    assert wants(host.tick(5), LS) == {"memory.low": 480 * MIB}
    assert settled(host)["memory.low"] <= 100 * MIB


def with_lru_gen() -> Host:
    host = Host(changed(Config(), "protection", enforce=Protect.AUTO))
    host.lru_gen = True
    host.ls.active = 200
    return host


def test_where_memory_low_only_waits_for_its_second_turn_memory_min_stands_beside_it() -> None:
    """shrink_one() in mm/vmscan.c."""
    host = with_lru_gen()
    assert wants(host.tick(), LS) == {"memory.low": 251 * MIB, "memory.min": 251 * MIB}
    host.lru_gen = False
    assert wants(host.tick(), LS) == {"memory.low": 251 * MIB}


def test_by_default_memory_low_alone_is_written() -> None:
    host = Host(Config())
    host.lru_gen, host.ls.active = True, 200
    decision = host.tick()
    assert wants(decision, LS) == {"memory.low": 251 * MIB}
    assert "read only once" in (view(decision, "ls.slice").protection or ""), "what that kernel makes of it"
    host.lru_gen = False
    assert "read only once" not in (view(host.tick(), "ls.slice").protection or "")


def test_memory_min_goes_when_the_host_may_soon_need_what_ls_keeps_and_comes_back_later() -> None:
    """MemAvailable counts LS's cache as there to take, and memory.min keeps it even from the OOM killer."""
    host = with_lru_gen()
    seen = {}
    for available in (400, 310, 300, 310, 325, 335):
        seen[available, len(seen)] = "memory.min" in wants(host.tick(available=available), LS)

    assert list(seen.values()) == [True, True, False, False, False, True]
    assert "memory.min" not in wants(host.tick(available=None), LS)
    assert "memory.low" in wants(host.tick(), LS)


def test_memory_min_is_not_written_where_an_ancestor_would_cap_it() -> None:
    host = with_lru_gen()
    host.ls.ceiling, host.ls.ceiling_path = 400 * MIB, "app.slice"

    assert wants(host.tick(), LS) == {"memory.low": 251 * MIB}


def test_memory_min_is_added_also_where_the_unit_file_has_memory_low() -> None:
    host = with_lru_gen()
    host.ls.files["memory.low"] = str(400 * MIB)

    assert wants(host.tick(), LS) == {"memory.min": 251 * MIB}


def test_small_changes_are_not_written() -> None:
    host = Host(Config())
    host.ls.active = 300
    first = wants(host.tick(), LS)
    host.ls.active = 305

    assert wants(host.tick(5), LS) == first


def test_what_the_unit_file_protects_already_is_left_to_it() -> None:
    host = Host(Config(), apply=False)
    host.ls.files["memory.low"] = str(256 * MIB)
    host.ls.active = 100
    decision = host.tick()
    assert wants(decision, LS) == {}
    assert "already" in (view(decision, "ls.slice").protection or "")


def test_all_of_ls_together_keeps_within_its_share_of_ram() -> None:
    more = Group(CgroupId(7), "db.slice", Tier.LS)
    host = Host(Config(), more)
    host.ls.active, more.active = 500, 400

    decision = host.tick()

    total = sum(wants(decision, each)["memory.low"] for each in (LS, CgroupId(7)))
    assert 500 * MIB <= total <= 512 * MIB
    assert "max_pct" in (view(decision, "db.slice").protection or "")


def test_an_ancestor_without_protection_makes_ours_useless_and_it_is_said() -> None:
    host = Host(Config())
    host.ls.active = 100
    host.ls.ceiling, host.ls.ceiling_path = 0, "system.slice"

    decision = host.tick()

    assert wants(decision, LS) == {}
    said = view(decision, "ls.slice").protection or ""
    assert "system.slice" in said
    assert "MemoryLow=" in said


def test_an_ancestor_with_less_caps_it() -> None:
    host = Host(Config())
    host.ls.active = 300
    host.ls.ceiling, host.ls.ceiling_path = 128 * MIB, "app.slice"

    assert wants(host.tick(), LS) == {"memory.low": 128 * MIB}


def test_memory_min_alone_is_written_only_when_asked_for() -> None:
    host = Host(changed(Config(), "protection", enforce=Protect.MIN))
    host.ls.active = 300
    assert wants(host.tick(), LS) == {"memory.min": 360 * MIB}

    host = Host(changed(Config(), "protection", enforce=Protect.OFF))
    host.ls.active = 100
    assert wants(host.tick(), LS) == {}


def test_unknown_use_keeps_the_protection_for_a_while_and_never_raises_it() -> None:
    host = Host(Config())
    host.ls.active = 100
    before = wants(host.tick(), LS)
    host.ls.known = False
    seen = [wants(host.tick(), LS) for _ in range(40)]

    assert seen[0] == before
    assert seen[-1] == {}


SIZES = st.floats(0, 900, allow_nan=False)


@given(st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=1, max_size=12))
def test_protection_stays_within_its_bound_and_needs_no_second_write(
    loads: list[tuple[float, float, float]],
) -> None:
    host = Host(Config())
    for anon, active, inactive in loads:
        host.ls.anon, host.ls.active, host.ls.inactive = anon, active, inactive
        first = wants(host.tick(5), LS)
        assert first.get("memory.low", 0) <= 512 * MIB
        assert wants(host.tick(0.001), LS) == first
        assert wants(host.tick(0.001), BE) == {}
