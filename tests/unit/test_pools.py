"""Pools and targets of their own: who gets what of the CPUs, on a host that answers to its limits."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from poolkit import NR_CPUS, THREE, Plant, three

from qosd import governors
from qosd.config import decode
from qosd.cpu import degrade
from qosd.cpu.pools import Budget
from qosd.cpu.share import Sharing, divide
from qosd.model import CgroupId, Tier
from qosd.simulate import SCENARIOS, run
from qosd.split import Claim, split


def test_an_ls_pool_reserves_by_its_band_and_is_never_limited() -> None:
    """At the middle of 30-50 % its size is 2.5 times its use; BE is kept out of all of it."""
    plant = three()
    decision = plant.run(20, web=2.0, etl=10.0, batch=10.0)

    assert plant.sizes()["front"] == pytest.approx(5.0)
    assert plant.cores["etl"] + plant.cores["batch"] <= 5.0 + 1e-3
    assert {wanted.tier for wanted in decision.desired if wanted.setting.file == "cpu.max"} == {Tier.BE}


def test_the_sizes_are_what_is_allocatable() -> None:
    plant = three()
    plant.run(20, web=2.0, etl=1.0, batch=10.0)

    assert sum(size for size in plant.sizes().values() if size is not None) == pytest.approx(10.0, abs=0.01)


def test_a_pool_above_its_band_takes_from_the_lowest_one() -> None:
    """web rises from 1 to 2 CPUs: at 40 % it needs 2.5 more, and last has them to give."""
    plant = three()
    plant.run(20, web=1.0, etl=1.0, batch=10.0)
    before = plant.sizes()
    plant.run(3, web=2.0, etl=1.0, batch=10.0)
    after = plant.sizes()

    assert after["front"] is not None
    assert before["front"] is not None
    assert after["front"] - before["front"] == pytest.approx(2.5, abs=0.01)
    assert after["middle"] == pytest.approx(before["middle"], abs=0.01)
    assert before["last"] is not None
    assert after["last"] == pytest.approx(before["last"] - 2.5, abs=0.01)


def test_the_next_lowest_gives_when_the_lowest_has_no_more_and_none_is_starved() -> None:
    """Forced: what the pools below use goes as well, and says so; a tenth between them stays."""
    plant = three()
    plant.run(30, web=1.0, etl=10.0, batch=10.0)
    decision = plant.tick(web=3.8, etl=10.0, batch=10.0)

    sizes = plant.sizes()
    assert sizes["front"] == pytest.approx(9.5, abs=0.01)
    assert sizes["middle"] is not None
    assert sizes["last"] is not None
    assert 0 < sizes["last"] < sizes["middle"] < 1.0
    text = {view.name: view.text for view in decision.cpu.pools}
    assert "CPUs in use go to the pools above it" in text["middle"]


def test_a_quiet_pool_gives_back_after_its_hold_and_not_before() -> None:
    plant = three()
    plant.run(20, web=3.0, etl=1.0, batch=10.0)
    held = plant.sizes()["front"]
    plant.run(9, web=0.4, etl=1.0, batch=10.0)
    assert plant.sizes()["front"] == held

    plant.run(4, web=0.4, etl=1.0, batch=10.0)
    assert plant.sizes()["front"] == pytest.approx(1.0)


def test_a_use_inside_the_band_moves_nothing() -> None:
    """The complaint about every agent before: limits that breathe with each tick."""
    plant = three()
    plant.run(20, web=2.0, etl=1.0, batch=10.0)
    sizes = plant.sizes()["front"], plant.sizes()["middle"]
    for web, etl in ((1.6, 0.95), (2.4, 1.1), (1.7, 1.0), (2.3, 0.9)):
        plant.tick(web=web, etl=etl, batch=10.0)
        assert (plant.sizes()["front"], plant.sizes()["middle"]) == sizes


def test_no_pool_gets_more_than_its_workloads_ask_for() -> None:
    plant = Plant(decode(THREE.replace('pool = "middle"', 'pool = "middle"\ncpu_max_pct = 20')))
    plant.run(20, web=0.5, etl=10.0, batch=1.0)

    assert plant.sizes()["middle"] == pytest.approx(2.0)
    assert plant.limit("etl") <= 2.0 + 1e-9


def test_what_no_pool_wants_flows_down_to_the_lowest() -> None:
    plant = three()
    decision = plant.run(20, web=0.5, etl=0.5, batch=0.5)

    sizes = plant.sizes()
    assert sizes["last"] is not None
    assert sizes["last"] > 7.0
    assert any("that no other pool wants" in view.text for view in decision.cpu.pools if view.name == "last")


def test_a_pool_with_no_member_takes_nothing_and_says_so() -> None:
    plant = Plant(decode(THREE.replace('match = ["etl"]\npool = "middle"', 'match = ["etl"]')))
    decision = plant.run(10, web=1.0, etl=1.0, batch=10.0)

    views = {view.name: view for view in decision.cpu.pools}
    assert (views["middle"].tier, views["middle"].size_cores, views["middle"].paths) == (None, None, ())
    assert "no workload" in views["middle"].text
    assert views["rest"].paths == ("etl",), "BE without a pool shares what is left below all pools"


def test_a_pool_above_its_band_that_can_get_no_more_holds_its_biggest_user_of_lowest_priority() -> None:
    extra = '[[workload]]\nname = "big"\ntier = "be"\npriority = 5\nmatch = ["big"]\npool = "last"\n'
    plant = three(extra)
    wants = {"web": 2.0, "etl": 0.5, "batch": 1.5, "big": 9.0}
    plant.run(25, **wants)

    last = next(view for view in plant.decision.cpu.pools if view.name == "last")  # type: ignore[union-attr]
    assert last.degraded == ("big",)
    assert last.use_cores is not None
    assert last.size_cores is not None
    assert last.use_cores / last.size_cores <= 0.82
    assert plant.cores["batch"] == pytest.approx(1.5, abs=0.05), (
        "the one with the better priority keeps its use"
    )


def test_a_check_lifts_it_again_once_the_pool_is_quiet() -> None:
    extra = '[[workload]]\nname = "big"\ntier = "be"\npriority = 5\nmatch = ["big"]\npool = "last"\n'
    plant = three(extra)
    plant.run(25, web=2.0, etl=0.5, batch=2.0, big=9.0)
    held = plant.limit("big")
    plant.run(60, web=0.2, etl=0.5, batch=0.2, big=9.0)

    assert plant.limit("big") > held


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10)), min_size=2, max_size=25))
def test_whatever_the_load_the_sizes_fit_and_nobody_is_starved(
    loads: list[tuple[float, float, float]],
) -> None:
    plant = three()
    for web, etl, batch in loads:
        decision = plant.tick(web=web, etl=etl, batch=batch)
        if decision.allowance is None or decision.allowance.cores is None:
            continue
        be = [view.size_cores for view in decision.cpu.pools if view.tier == "be"]
        assert all(size is not None and size > 0 for size in be)
        assert sum(size for size in be if size is not None) <= decision.allowance.cores + 1e-6
        assert all(0 < limit <= NR_CPUS for limit in plant.limits.values())


def test_under_a_steady_load_the_limits_come_to_rest() -> None:
    plant = three()
    plant.run(40, web=2.0, etl=1.2, batch=10.0)
    limits = []
    for _ in range(40):
        plant.tick(web=2.0, etl=1.2, batch=10.0)
        limits.append(dict(plant.limits))

    assert all(a == b for a, b in pairwise(limits))


def test_while_use_is_unknown_no_pool_is_tightened() -> None:
    plant = three()
    plant.run(20, web=1.0, etl=1.0, batch=10.0)
    sizes = plant.sizes()
    assert plant.prev is not None
    blind = msgspec.structs.replace(
        plant.prev,
        monotonic_usec=plant.usec + 1_000_000,
        workloads=tuple(
            msgspec.structs.replace(each, sample=msgspec.structs.replace(each.sample, cpu=None))
            for each in plant.prev.workloads
        ),
    )
    _, decision = governors.decide(plant.config, plant.prev, blind, plant.state)

    after = {view.name: view.size_cores for view in decision.cpu.pools}
    for name in ("middle", "last"):
        size, before = after[name], sizes[name]
        assert size is not None
        assert before is not None
        assert size >= before - 1e-6


def test_two_priorities_of_be_share_without_swinging() -> None:
    """The first one wants less than there is: what it leaves is the second one's, tick after tick."""
    plant = Plant(
        decode(
            "[cpu.bandwidth]\nenforce = 'max'\ndeadband_up_pct = 0\ndeadband_down_pct = 0\n"
            '[[workload]]\nname = "first"\ntier = "be"\nmatch = ["first"]\n'
            '[[workload]]\nname = "second"\ntier = "be"\nmatch = ["second"]\npriority = 5\n'
        )
    )
    plant.run(10, first=1.5, second=10.0)
    got = []
    for wobble in (0.0, 0.1, -0.1, 0.05) * 5:
        plant.tick(first=1.5 + wobble, second=10.0)
        got.append(plant.cores["second"])

    assert min(got) > 6.0
    assert max(got) - min(got) < 0.2
    plant.run(5, first=9.0, second=10.0)
    assert plant.cores["first"] > 8.0, "and the first one has what it wants within a few ticks"


def claim(number: int, demand: float = float("inf"), cap: float = float("inf"), priority: int = 0) -> Claim:
    return Claim(CgroupId(number), priority, demand, cap)


def test_a_workload_with_a_lower_target_gives_way_earlier() -> None:
    """Host 95, batch 60: with LS at 3 of 10 CPUs batch has 3 at most, the other the rest of 6.5."""
    config = decode(
        "[host]\ncpu_target_pct = 95\n"
        "[cpu.bandwidth]\nenforce = 'max'\ndeadband_up_pct = 0\ndeadband_down_pct = 0\n"
        '[[workload]]\nname = "web"\ntier = "ls"\nmatch = ["web"]\n'
        '[[workload]]\nname = "etl"\ntier = "be"\nmatch = ["etl"]\n'
        '[[workload]]\nname = "batch"\ntier = "be"\nmatch = ["batch"]\ncpu_target_pct = 60\n'
    )
    plant = Plant(config)
    plant.run(10, web=3.0, etl=10.0, batch=10.0)
    assert plant.limit("etl") + plant.limit("batch") == pytest.approx(6.5, abs=0.01)
    assert plant.limit("batch") <= 3.0 + 1e-6

    plant.run(10, web=7.0, etl=10.0, batch=10.0)
    assert plant.limit("batch") == pytest.approx(0.5, abs=0.26), "its floor"
    assert plant.limit("etl") > 1.9


def test_a_workload_with_a_higher_target_than_the_host_may_use_it() -> None:
    config = decode(
        '[host]\ncpu_target_pct = 50\n[[workload]]\nname = "web"\ntier = "ls"\nmatch = ["web"]\n'
        '[[workload]]\nname = "etl"\ntier = "be"\nmatch = ["etl"]\ncpu_target_pct = 90\n'
    )
    plant = Plant(config)
    plant.run(10, web=3.0, etl=10.0)

    assert plant.limit("etl") == pytest.approx(6.0, abs=0.01)


def test_a_pause_beats_every_target_of_its_own() -> None:
    """Pausing BE leaves all of it together its floor, whatever its pools and rules say."""
    config = decode(
        '[[window]]\nname = "off"\nhours = "00:00-24:00"\nzone = "UTC"\npause_be = true\n'
        '[[pool]]\nname = "p"\ncpu_target_pct = 80\n'
        '[[workload]]\nname = "etl"\ntier = "be"\nmatch = ["etl"]\ncpu_target_pct = 90\npool = "p"\n'
        '[[workload]]\nname = "batch"\ntier = "be"\nmatch = ["batch"]\ncpu_target_pct = 90\n'
    )
    plant = Plant(config)
    plant.local_minutes = {"UTC": 0}
    plant.run(10, etl=10.0, batch=10.0)

    assert 0 < plant.limit("etl") + plant.limit("batch") <= 0.5


@pytest.mark.parametrize("name", ["steady", "coarse", "square", "step"])
def test_pools_write_less_than_the_allowance_that_follows_each_tick(name: str) -> None:
    """On the plant of qosd.simulate: a band is a wide deadband."""
    tiers = "".join(
        f'[[workload]]\nname = "{tier}"\ntier = "{tier}"\nmatch = ["{tier}.slice"]\npool = "{tier}"\n'
        f'[[pool]]\nname = "{tier}"\npriority = {priority}\n'
        for tier, priority in (("ls", 0), ("be", 2))
    )
    scenario = msgspec.structs.replace(SCENARIOS[name], seconds=300)
    result = run(scenario, decode('[cpu.bandwidth]\nenforce = "max"\n' + tiers))

    assert result.limit_writes_per_minute <= 4
    assert result.be_pct > 1


CALM = (
    '[[workload]]\nname = "a"\ntier = "be"\nmatch = ["a"]\n'
    '[[workload]]\nname = "b"\ntier = "be"\nmatch = ["b"]\n'
)


def limits_of(extra: str, minutes: dict[str, int] | None = None) -> dict[str, float]:
    """The limits wanted where `enforce` is "none", the default, and both hogs take what they can."""
    plant = Plant(decode(CALM.replace('match = ["b"]\n', 'match = ["b"]\n' + extra)))
    plant.local_minutes = minutes or {}
    plant.run(5, a=5.0, b=5.0)
    names = {cgroup_id: name for name, cgroup_id in plant.ids.items()}
    return {names[cgroup_id]: limit for cgroup_id, limit in plant.limits.items()}


def test_in_calm_only_what_was_asked_for_by_name_is_limited() -> None:
    pool = '[[pool]]\nname = "p"\n'
    window = '[[window]]\nname = "w"\nhours = "00:00-24:00"\nzone = "UTC"\n'

    assert limits_of("") == {}
    assert limits_of("cpu_max_pct = 20") == {"b": pytest.approx(2.0)}
    assert limits_of("cpu_target_pct = 40") == {"b": pytest.approx(4.0)}
    assert limits_of(window + "cpu_target_pct = 40", {"UTC": 0}) == {}, (
        "a target of the host binds with its limit"
    )
    paused = limits_of(window + "pause_be = true", {"UTC": 0})
    assert sum(paused.values()) == pytest.approx(0.5)
    assert limits_of('pool = "p"\n' + pool).keys() == {"a", "b"}


ROOMS = st.lists(
    st.tuples(st.floats(0.5, 10), st.floats(0, 10) | st.just(float("inf")), st.integers(0, 2)),
    min_size=1,
    max_size=6,
)


@given(ROOMS)
def test_those_below_a_target_share_no_more_than_it_leaves_them(rows: list[tuple[float, float, int]]) -> None:
    claims = [claim(n, demand, priority=priority) for n, (_, demand, priority) in enumerate(rows)]
    rooms = {CgroupId(n): room for n, (room, _, _) in enumerate(rows)}
    shares = divide(Sharing(max(rooms.values()), rooms), claims, split)

    assert set(shares) == set(rooms)
    for room in rooms.values():
        assert sum(share for key, share in shares.items() if rooms[key] <= room) <= room + 1e-6
    assert all(share >= 0 for share in shares.values())


def test_a_cap_of_a_degraded_workload_leaves_the_rest_to_the_others_of_its_pool() -> None:
    claims = [claim(1), claim(2)]
    rooms = {CgroupId(1): 4.0, CgroupId(2): 4.0}
    budget = Budget("p", 4.0, (CgroupId(1), CgroupId(2)), "", {CgroupId(1): 0.5})

    assert divide(Sharing(4.0, rooms, (budget,)), claims, split) == pytest.approx({1: 0.5, 2: 3.5})


def test_one_tick_above_the_band_degrades_nobody() -> None:
    load = degrade.Load(use=4.0, size=4.0, band=(50.0, 80.0), short=True)
    members = ((CgroupId(1), 0, 4.0),)
    once = degrade.decide(load, members, 0, 1, degrade.State())
    twice = degrade.decide(load, members, 0, 1, once)

    assert once.caps == {}
    assert twice.caps == {1: pytest.approx(3.2)}


def test_who_left_is_not_remembered_as_degraded() -> None:
    load = degrade.Load(use=None, size=4.0, band=(50.0, 80.0), short=True)
    before = degrade.State({CgroupId(1): 1.0, CgroupId(2): 1.0})

    assert degrade.decide(load, ((CgroupId(2), 0, None),), 0, 1, before).caps == {2: 1.0}
