"""memory.low of LS: as much as it uses, within bounds, and never less than what was there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from memkit import BE, LS, MIB, PAGES, Group, Host, changed, view, wants

from qosd.config import Config
from qosd.model import CgroupId, Tier
from qosd.schema.memory import Protect


def test_what_ls_uses_is_protected_with_a_margin_and_cold_cache_is_not() -> None:
    host = Host(Config())
    host.ls.anon, host.ls.active, host.ls.inactive = 100, 150, 80

    assert wants(host.tick(), LS) == {"memory.low": 300 * MIB}


def test_mapped_cache_counts_as_used() -> None:
    """The kernel learns of accesses through a mapping only when it scans: until then such pages look cold."""
    host = Host(Config())
    host.ls.inactive, host.ls.mapped = 200, 150

    assert wants(host.tick(), LS) == {"memory.low": 180 * MIB}


def test_what_had_to_be_read_again_is_added() -> None:
    host = Host(Config())
    host.ls.active = 100
    host.tick()
    host.ls.refaults = 50 * PAGES

    assert wants(host.tick(5), LS) == {"memory.low": 180 * MIB}


def test_cache_is_not_taken_for_cold_while_evicted_pages_come_back() -> None:
    """The kernel puts used pages on the inactive list, too, to see whether they are used again."""
    host = Host(Config())
    host.ls.active, host.ls.inactive = 100, 60
    assert wants(host.tick(), LS) == {"memory.low": 120 * MIB}
    host.ls.refaults += 40 * PAGES

    assert wants(host.tick(5), LS) == {"memory.low": 240 * MIB}


def test_a_pause_does_not_give_the_set_away_at_once_but_time_does() -> None:
    host = Host(Config())
    host.ls.active = 400
    host.tick()
    host.ls.active = 40
    assert wants(host.tick(5), LS) == {"memory.low": 480 * MIB}
    for _ in range(360):
        decision = host.tick(10)
    assert wants(decision, LS)["memory.low"] < 60 * MIB


def test_small_changes_are_not_written() -> None:
    host = Host(Config())
    host.ls.active = 200
    first = wants(host.tick(), LS)
    host.ls.active = 210

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


def test_memory_min_is_written_only_when_asked_for() -> None:
    host = Host(changed(Config(), "protection", enforce=Protect.MIN))
    host.ls.active = 100
    assert wants(host.tick(), LS) == {"memory.min": 120 * MIB}

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
