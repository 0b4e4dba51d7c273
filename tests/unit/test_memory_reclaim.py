"""Background reclaim: who gives page cache, how much, and what stops it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memkit import BE, BE2, LS, MIB, PAGES, Group, Host, changed, view

from qosd.config import Config
from qosd.ctl.memory import sentences
from qosd.memsample import Reclaimed
from qosd.model import CgroupId, Tier
from qosd.schema.memory import WithoutSwappiness
from qosd.schema.units import ByteSize


def watermarks(config: Config, **by_name: Any) -> Config:
    """`page_cache_high` of workloads by name, in MiB; three quarters of it is the low one."""
    rules = {rule.name: rule for rule in config.workload}
    template = config.workload[1]
    for name, high in by_name.items():
        rule = rules.get(name, msgspec.structs.replace(template, name=name, match=(f"{name}.slice",)))
        rules[name] = msgspec.structs.replace(rule, page_cache_high=ByteSize(high * MIB))
    return msgspec.structs.replace(config, workload=tuple(rules.values()))


ON = watermarks(Config(), be=200)


def asked(host: Host, seconds: int, **answers: Any) -> int:
    """Bytes asked for in so many ticks, each answered before the next."""
    total = 0
    for _ in range(seconds):
        decision = host.tick()
        total += sum(reclaim.bytes for reclaim in decision.reclaims)
        host.answer(decision, **answers)
    return total


def test_nothing_is_reclaimed_by_default() -> None:
    host = Host(Config())
    host.be.inactive, host.available, host.free = 900, 20, 5
    assert asked(host, 30) == 0


def test_cache_above_the_high_watermark_goes_down_to_the_low_one_and_no_further() -> None:
    host = Host(ON)
    host.be.inactive, host.be.active, host.be.anon = 300, 100, 300

    asked(host, 60)

    assert 149 <= host.be.inactive + host.be.active <= 151
    host.be.inactive += 0.5
    assert view(host.tick(), "be.slice").phase == "below", "a remainder is no reason to go on"
    host.be.inactive += 40
    assert asked(host, 10) == 0, "between the watermarks nothing begins"
    host.be.inactive += 20
    assert asked(host, 10) > 0


def test_only_page_cache_is_asked_for() -> None:
    host = Host(ON)
    host.be.inactive = 400
    seen = []
    for _ in range(4):
        decision = host.tick()
        seen += [reclaim.swappiness for reclaim in decision.reclaims]
        host.answer(decision)

    assert seen == [0, 0, 0, 0]


def test_shmem_is_no_page_cache() -> None:
    """`file` counts it, reclaim cannot take it without swap."""
    host = Host(ON)
    host.be.shmem = 900

    assert asked(host, 10) == 0
    assert view(host.tick(), "be.slice").phase == "below"


def test_dirty_and_mapped_cache_is_left_alone() -> None:
    host = Host(ON)
    host.be.inactive, host.be.dirty = 400, 400
    assert asked(host, 5) == 0
    assert view(host.tick(), "be.slice").phase == "nothing"

    host = Host(ON)
    host.be.inactive, host.be.mapped = 400, 399.5
    assert asked(host, 5) == 0


def test_a_request_that_is_not_back_is_not_followed_by_another() -> None:
    host = Host(ON)
    host.be.inactive = 900
    host.tick()

    assert [reclaim for _ in range(20) for reclaim in host.tick().reclaims] == []


def test_it_looks_probes_goes_faster_while_it_goes_well_and_keeps_to_the_rate() -> None:
    host = Host(changed(watermarks(Config(), be=1), "reclaim", rate=ByteSize(64 * MIB)))
    host.be.inactive = 900
    seen = []
    for _ in range(7):
        decision = host.tick()
        seen.append(sum(reclaim.bytes for reclaim in decision.reclaims) // MIB)
        host.answer(decision)

    assert seen == [0, 1, 16, 32, 64, 64, 64]


def test_what_works_gives_a_probe_and_twice_as_much_only_after_nothing_came_back() -> None:
    host = Host(watermarks(Config(), be=1))
    host.be.inactive, host.be.cores = 900, 0.5
    seen = []
    for _ in range(24):
        decision = host.tick()
        seen += [reclaim.bytes // MIB for reclaim in decision.reclaims if reclaim.bytes]
        host.answer(decision)

    assert seen == [1, 2, 4, 8]


def test_while_the_host_lacks_memory_there_is_no_time_for_probes() -> None:
    host = Host(changed(watermarks(Config(), be=100), "reclaim", free_low_pct=10.0))
    host.be.inactive, host.be.cores, host.free = 900, 0.5, 60
    assert asked(host, 3) == 2 * 68 * MIB
    host.free = 500
    assert asked(host, 20) <= 7 * MIB, "and what was taken in a hurry says nothing of what is cold"


def below_be(host: Host) -> tuple[Group, Group]:
    """A job that works on what it holds, and one that sleeps on it."""
    hot = Group(CgroupId(11), "be.slice/hot.service", Tier.BE)
    cold = Group(CgroupId(12), "be.slice/cold.service", Tier.BE)
    hot.inactive, hot.cores, cold.inactive = 300, 0.5, 400
    host.be.inactive = 700
    host.jobs = [hot, cold]
    return hot, cold


def test_the_cold_cgroup_gives_and_the_one_that_reads_again_loses_a_probe_at_a_time() -> None:
    host = Host(ON)
    hot, cold = below_be(host)
    for _ in range(90):
        before = hot.inactive
        host.answer(host.tick())
        lost = before - hot.inactive
        hot.inactive, hot.refaults = before, hot.refaults + round(lost * PAGES)
        host.be.inactive, host.be.refaults = hot.inactive + cold.inactive, hot.refaults

    assert cold.inactive < 2
    assert hot.refaults <= 3 * PAGES
    said = view(host.tick(), "be.slice")
    assert said.phase == "held"
    assert "be.slice/hot.service" in said.reclaim
    assert said.refaulted == hot.refaults * 4096
    assert [(part.path, part.idle) for part in said.parts] == [
        ("be.slice/hot.service", False),
        ("be.slice/cold.service", True),
    ]
    lines = [text.plain for text in sentences(said)]
    assert any("hot.service" in line and "works" in line and "read again" in line for line in lines)
    assert any("cold.service" in line and "uses no CPU" in line for line in lines)


def test_a_job_that_wakes_up_is_treated_as_one_that_works() -> None:
    host = Host(watermarks(Config(), be=1))
    host.be.inactive = 900
    asked(host, 5)
    host.be.cores = 1.0
    host.answer(host.tick())

    assert asked(host, 2) <= 2 * MIB


def test_it_goes_slower_where_little_comes_of_it() -> None:
    host = Host(watermarks(Config(), be=1))
    host.be.inactive = 900
    asked(host, 5)
    fast = host.tick()
    host.answer(fast, share=0.2, result="short")

    assert host.tick().reclaims[0].bytes < fast.reclaims[0].bytes


def test_where_nothing_comes_it_is_left_alone_for_longer_and_longer() -> None:
    host = Host(ON)
    host.be.inactive = 900
    at = []
    for second in range(400):
        decision = host.tick()
        at += [second] if any(reclaim.bytes for reclaim in decision.reclaims) else []
        host.answer(decision, share=0.0, result="short")

    gaps = [after - before for before, after in pairwise(at)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= 30
    assert gaps[1] >= 60


def test_it_stops_when_what_was_freed_is_read_again() -> None:
    host = Host(ON)
    host.be.inactive = 900
    asked(host, 4)
    host.be.refaults += 20 * PAGES
    asked(host, 1)

    assert asked(host, 25) == 0
    standing = view(host.tick(), "be.slice")
    assert standing.phase == "held"
    assert "read again" in standing.reclaim
    assert standing.refaulted == 20 * MIB


def test_refaults_of_before_are_not_put_down_to_it() -> None:
    host = Host(ON)
    host.be.inactive = 100
    for _ in range(5):
        host.be.refaults += 1000
        host.tick()
    host.be.inactive = 900

    assert asked(host, 3) > 0
    assert view(host.tick(), "be.slice").refaulted == 0


def test_io_pressure_counts_only_while_it_reads_again() -> None:
    """A job that streams through files always waits for its disk: that is no reason."""
    patient = changed(ON, "reclaim", refault_pct=50.0)
    host = Host(patient)
    host.be.inactive = 900
    asked(host, 2)
    for _ in range(3):
        host.be.io_some += 800_000
        assert asked(host, 1) > 0
    host.be.refaults += 1 * PAGES
    asked(host, 1)
    host.be.io_some += 800_000
    assert asked(host, 1) == 0
    assert "io" in view(host.tick(), "be.slice").reclaim


def test_it_pauses_while_ls_waits_for_memory() -> None:
    host = Host(ON)
    host.be.inactive = 900
    asked(host, 3)
    host.ls.memory_some += 10_000
    decision = host.tick()
    assert decision.reclaims == ()
    assert "LS waited" in view(decision, "be.slice").reclaim
    assert view(decision, "be.slice").phase == "reclaiming", "a moment's pause is no event for the log"


def test_the_least_important_gives_first_and_ls_last() -> None:
    other = Group(BE2, "be2.slice", Tier.BE, priority=5)
    config = watermarks(Config(), ls=50, be=50, be2=50)
    host = Host(changed(config, "reclaim", rate=ByteSize(16 * MIB)), other)
    for group in host.groups:
        group.inactive = 100
    order = []
    for _ in range(40):
        decision = host.tick()
        order += [reclaim.cgroup_id for reclaim in decision.reclaims if reclaim.bytes]
        host.answer(decision)

    firsts = list(dict.fromkeys(order))
    assert firsts == [BE2, BE, LS]
    assert all(group.inactive <= 51 for group in host.groups)


def test_a_host_below_its_watermark_is_helped_by_be_alone_up_to_the_high_one() -> None:
    config = changed(Config(), "reclaim", free_low_pct=10.0, free_high_pct=20.0)
    host = Host(config)
    host.ls.inactive = host.be.inactive = 500
    host.free = 150
    assert asked(host, 3) == 0
    host.free = 100
    total = 0
    for _ in range(30):
        decision = host.tick()
        assert all(reclaim.cgroup_id == BE for reclaim in decision.reclaims)
        freed = host.answer(decision)
        host.free += freed / MIB
        total += freed

    assert 100 <= total / MIB <= 110
    assert host.ls.inactive == 500


def test_a_host_that_lacks_memory_is_helped_although_ls_waits_for_memory() -> None:
    host = Host(changed(Config(), "reclaim", available_low_pct=20.0))
    host.be.inactive, host.available = 500, 100
    host.ls.memory_some += 500_000
    asked(host, 3)
    host.ls.memory_some += 500_000
    assert asked(host, 2) > 0


def test_a_switch_keeps_a_workload_out_of_it() -> None:
    config = changed(ON, "reclaim", free_low_pct=50.0)
    rules = tuple(msgspec.structs.replace(rule, page_cache_reclaim=False) for rule in config.workload)
    host = Host(msgspec.structs.replace(config, workload=rules))
    host.be.inactive, host.free = 900, 10

    assert asked(host, 10) == 0
    assert view(host.tick(), "be.slice").phase == "off"


def without_key(config: Config, *, swap: float) -> Host:
    """After a kernel has said that it does not know the key."""
    host = Host(config)
    host.be.inactive = 900
    host.swap_total = host.swap_free = swap
    host.answer(host.tick())
    host.tick()
    host.answers.append(Reclaimed(BE, "no-swappiness"))
    return host


def test_a_kernel_without_the_key_is_asked_without_it_where_there_is_no_swap() -> None:
    host = without_key(ON, swap=0)

    assert [reclaim.swappiness for reclaim in host.tick().reclaims] == [None]


def test_a_kernel_without_the_key_is_not_asked_where_it_might_swap() -> None:
    host = without_key(ON, swap=1024)

    assert host.tick().reclaims == ()
    assert "swappiness" in view(host.tick(), "be.slice").reclaim
    host.swap_total = host.swap_free = 0
    assert len(host.tick().reclaims) == 1, "swap was taken away while running"


def test_cautious_asks_for_little_and_stops_when_it_swaps() -> None:
    host = without_key(changed(ON, "reclaim", without_swappiness=WithoutSwappiness.CAUTIOUS), swap=1024)
    sizes = [asked(host, 1) for _ in range(6)]
    assert max(sizes) == 4 * MIB
    host.be.swap = 3
    assert asked(host, 20) == 0
    assert "swap" in view(host.tick(), "be.slice").reclaim


@pytest.mark.parametrize("result", ["absent", "failed", "refused", "gone", "busy"])
def test_a_request_that_fails_is_counted_and_not_repeated_at_once(result: str) -> None:
    host = Host(ON)
    host.be.inactive = 900
    host.answer(host.tick())
    decision = host.tick()
    host.answers.append(Reclaimed(decision.reclaims[0].cgroup_id, result, error="no such file"))

    assert asked(host, 25) == 0
    assert view(host.tick(), "be.slice").errors == {result: 1}
    assert view(host.tick(), "be.slice").freed == 0


def test_what_observe_mode_did_not_run_freed_nothing_and_is_decided_again() -> None:
    host = Host(ON)
    host.be.inactive = 900
    decision = host.tick()
    host.answers.append(Reclaimed(decision.reclaims[0].cgroup_id, "not-run"))
    assert len(host.tick().reclaims) == 1
    assert view(host.tick(), "be.slice").asked == 0


LOADS = st.lists(
    st.tuples(st.floats(0, 500), st.floats(0, 500), st.floats(0, 500), st.integers(0, 3000), st.floats(0, 1)),
    min_size=1,
    max_size=20,
)


@given(LOADS)
def test_nothing_is_asked_beyond_the_watermark_the_clean_cache_and_the_rate(
    loads: list[tuple[float, float, float, int, float]],
) -> None:
    host = Host(ON)
    for inactive, active, dirty, refaults, share in loads:
        host.be.inactive, host.be.active, host.be.dirty = inactive, active, min(dirty, inactive + active)
        host.be.refaults += refaults
        decision = host.tick()
        for reclaim in decision.reclaims:
            cache = (inactive + active) * MIB
            assert reclaim.cgroup_id == BE
            assert reclaim.bytes <= cache - 150 * MIB + 1
            assert reclaim.bytes <= cache - host.be.dirty * MIB + 1
            assert reclaim.bytes <= 128 * MIB
        host.answer(decision, share=share)
