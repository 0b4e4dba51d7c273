"""memory.high of BE: what is left for it, and what must never be limited."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from memkit import BE, BE2, LS, MIB, Group, Host, changed, view, wants

from qosd.config import Config
from qosd.memory.decide import Decision
from qosd.model import MAX, Tier
from qosd.schema.memory import Limit

ON = changed(Config(), "limits", enforce=Limit.HIGH)


def free_to_stay(decision: Decision, host: Host) -> bool:
    """No limit below what the job holds."""
    high = wants(decision, BE).get("memory.high")
    return high is None or high >= (host.be.anon + host.be.active - 1) * MIB


def test_nothing_is_limited_by_default() -> None:
    host = Host(Config())
    host.be.anon, host.available = 800, 10

    assert wants(host.ticks(20), BE) == {}


def test_be_may_hold_what_it_cannot_give_back_and_what_is_available_beyond_the_reserve() -> None:
    """1024 MiB, of which a fifth stays free for LS; the page cache of BE counts as available already."""
    host = Host(ON)
    host.be.anon, host.be.active, host.available = 100, 300, 600

    decision = host.ticks(40)

    assert decision.view.be_allowed is not None
    assert abs(decision.view.be_allowed / MIB - (100 + 600 - 1024 * 0.2)) <= 1024 * 0.01
    assert wants(decision, BE)["memory.high"] <= decision.view.be_allowed


def test_the_first_limit_is_no_lower_than_what_be_holds_and_goes_down_in_steps() -> None:
    host = Host(ON)
    host.be.active, host.available = 900, 300
    seen = [wants(host.tick(), BE)["memory.high"] for _ in range(30)]

    assert seen[0] >= 899 * MIB
    steps = [before - after for before, after in pairwise(seen)]
    assert all(0 <= step <= 1024 * 0.05 * MIB + MIB for step in steps)
    assert seen[-1] < 200 * MIB


def test_it_rises_again_in_steps_when_there_is_more() -> None:
    host = Host(ON)
    host.be.active, host.available = 900, 300
    low = wants(host.ticks(30), BE)["memory.high"]
    host.available = 900

    seen = [low, *(wants(host.tick(), BE)["memory.high"] for _ in range(40))]

    steps = [after - before for before, after in pairwise(seen)]
    assert all(0 <= step <= 1024 * 0.02 * MIB + MIB for step in steps)
    assert seen[-1] > 600 * MIB


def test_without_swap_a_job_of_anonymous_memory_is_not_limited_and_it_is_said() -> None:
    """Case 39: such a limit stalls the job for seconds per MiB, and nothing ends it."""
    host = Host(ON)
    host.be.anon, host.available = 600, 50

    decision = host.ticks(60)

    assert wants(decision, BE) == {}
    assert "only swap could take" in (view(decision, "be.slice").limit or "")


def test_with_swap_the_same_job_is_limited() -> None:
    host = Host(ON)
    host.be.anon, host.available, host.swap_total, host.swap_free = 600, 50, 2048, 2048

    assert wants(host.ticks(40), BE)["memory.high"] < 600 * MIB


def test_swap_that_the_job_may_not_use_is_no_swap() -> None:
    host = Host(ON)
    host.be.anon, host.available, host.swap_total, host.swap_free = 600, 50, 2048, 2048
    host.be.swap_max = 0

    assert wants(host.ticks(40), BE) == {}


def test_swap_that_comes_and_goes_while_running_is_noticed() -> None:
    host = Host(ON)
    host.be.anon, host.available = 600, 50
    assert wants(host.ticks(40), BE) == {}
    host.swap_total = host.swap_free = 2048
    assert "memory.high" in wants(host.ticks(90), BE)
    host.swap_total = host.swap_free = 0
    assert wants(host.ticks(2), BE) == {}


def test_swap_on_its_way_out_is_no_swap_although_the_kernel_calls_it_free() -> None:
    """A swapoff under a limit would be put to sleep for each page it brings back."""
    host = Host(ON)
    host.be.anon, host.available, host.swap_total, host.swap_free = 600, 50, 2048, 2048
    assert "memory.high" in wants(host.ticks(40), BE)
    host.be.anon, host.be.swap = 440, 160
    host.swap_free = 2048 - 160
    assert "memory.high" in wants(host.ticks(5), BE)

    host.swap_total = host.swap_free = 160

    assert wants(host.tick(), BE) == {}


def test_a_limit_that_stalls_the_job_is_lifted_within_its_deadline_and_stays_lifted() -> None:
    host = Host(ON)
    host.be.active, host.available = 900, 300
    host.ticks(30)
    lifted_after = None
    for second in range(1, 12):
        host.be.memory_full += 900_000
        if free_to_stay(host.tick(), host) and lifted_after is None:
            lifted_after = second
    assert lifted_after is not None
    assert lifted_after <= 5
    assert free_to_stay(host.ticks(30), host)
    assert "not limited" in (view(host.tick(), "be.slice").limit or "")


def test_a_stall_before_there_is_a_limit_is_not_blamed_on_it() -> None:
    host = Host(ON, apply=False)
    host.be.active, host.available = 100, 900
    for _ in range(10):
        host.be.memory_full += 900_000
        host.tick()
    assert "memory.high" in wants(host.tick(), BE)


def test_a_lower_limit_of_somebody_else_stands() -> None:
    """Never wider than what was asked for in the unit file, nor written over with the same."""
    host = Host(ON, apply=False)
    host.be.files["memory.high"] = str(100 * MIB)
    host.be.active, host.available = 90, 900

    assert wants(host.ticks(10), BE) == {}


def test_our_own_value_is_not_taken_for_somebody_elses() -> None:
    host = Host(ON)
    host.be.active, host.available = 900, 300
    low = wants(host.ticks(30), BE)["memory.high"]
    host.available = 900

    assert wants(host.ticks(40), BE)["memory.high"] > low


def test_unknown_use_is_held_and_then_given_up_and_never_tightens() -> None:
    host = Host(ON)
    host.be.active, host.available = 500, 500
    before = wants(host.ticks(30), BE)
    host.available = None

    held = [wants(host.tick(), BE) for _ in range(40)]

    assert held[0] == before
    assert held[-1] == {}
    assert all(each in (before, {}) for each in held)


def test_the_less_important_job_is_limited_first() -> None:
    other = Group(BE2, "be2.slice", Tier.BE, priority=5)
    host = Host(ON, other)
    host.be.active = other.active = 400
    host.available = 850

    decision = host.ticks(60)

    assert wants(decision, BE)["memory.high"] > wants(decision, BE2)["memory.high"]
    assert (
        sum(wants(decision, each)["memory.high"] for each in (BE, BE2))
        <= (decision.view.be_allowed or 0) + 1024 * MIB * 0.02
    )


def hog(host: Host, seconds: int, rate: float = 100) -> list[float]:
    """Anonymous memory at a steady rate, as far as memory.high lets it; what it holds after each second."""
    seen = []
    for _ in range(seconds):
        high = wants(host.tick(), BE).get("memory.high", 1e18) / MIB
        grown = max(min(rate, high - host.be.anon, host.available or 0), 0)
        host.be.anon += grown
        host.available = (host.available or 0) - grown
        seen.append(host.be.anon)
    return seen


def test_a_hog_without_swap_stops_before_the_last_of_ram_and_stays_there() -> None:
    """Let go it would have the OOM killer come, and until then LS waits."""
    host = Host(ON)
    host.ls.active = 90

    held = hog(host, 60)

    assert host.available is not None
    assert 1024 * 0.1 + 90 <= host.available <= 1024 * 0.12 + 90
    assert held[20] == held[-1]
    assert "the last of RAM is not BE's" in (view(host.tick(), "be.slice").limit or "")


def test_what_the_hog_gains_all_the_same_does_not_raise_its_line() -> None:
    host = Host(ON)
    hog(host, 30)
    line = wants(host.tick(), BE)["memory.high"]
    for _ in range(20):
        host.be.anon += 2
        host.available = (host.available or 0) - 2
        assert abs(wants(host.tick(), BE)["memory.high"] - line) <= 0.01 * 1024 * MIB


def test_a_line_that_ls_grows_into_is_not_drawn_below_what_the_job_holds() -> None:
    host = Host(ON)
    host.be.anon, host.available = 600, 300
    host.ticks(5)

    host.ls.anon, host.available = 200, 100

    assert wants(host.ticks(3), BE)["memory.high"] == 600 * MIB


def test_when_memory_is_nearly_gone_the_job_is_let_go() -> None:
    """The OOM killer is sooner done than a job that creeps towards it."""
    host = Host(ON)
    hog(host, 30)

    host.available = 1024 * 0.04

    assert wants(host.tick(), BE) == {}


def test_with_no_last_share_set_a_job_that_cannot_be_limited_is_let_go() -> None:
    host = Host(changed(ON, "limits", last_pct=0.0))

    hog(host, 30)

    assert host.available == 0
    assert wants(host.tick(), BE) == {}


SIZES = st.floats(0, 1000, allow_nan=False)


@given(st.lists(st.tuples(SIZES, SIZES, SIZES, st.booleans()), min_size=1, max_size=15))
def test_no_load_makes_a_limit_below_the_floor_or_one_that_only_swap_could_meet(
    loads: list[tuple[float, float, float, bool]],
) -> None:
    host = Host(ON)
    for anon, cache, available, known in loads:
        host.be.anon, host.be.active, host.available, host.be.known = anon, cache, available, known
        decision = host.tick()
        high = wants(decision, BE).get("memory.high")
        assert wants(decision, LS).get("memory.high") is None
        if high is None or not known:
            continue
        assert high is not MAX
        assert high >= 1024 * 0.1 * MIB * 0.9 - MIB
        assert anon * MIB <= high * 1.12 + 1024 * MIB * 0.01
