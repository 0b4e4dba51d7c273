"""Behind whom LS waits anyway is taken off before anybody is blamed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd.interference import usual
from qosd.interference.usual import NOTHING, Usual
from qosd.model import CgroupId, Preemptor, Probed, Tier

LS, OTHER_LS, BE, JOB, KTHREAD = (CgroupId(number) for number in (1, 2, 3, 30, 99))
TIERS = {LS: Tier.LS, OTHER_LS: Tier.LS, BE: Tier.BE}
SECOND = 1_000_000
MS = 1_000_000


def probed(*, be: float = 0, system: float = 0, other: float = 0, itself: float = 0) -> Probed:
    """Milliseconds."""
    parts = ((JOB, BE, be), (KTHREAD, None, system), (OTHER_LS, OTHER_LS, other), (LS, LS, itself))
    return Probed(LS, preemptors=tuple(Preemptor(*who, round(ms * MS), 1) for *who, ms in parts if ms))


def learned(ticks: int = 50, **waits: float) -> Usual:
    known = NOTHING
    for _ in range(ticks):
        known = usual.learn(known, probed(**waits), TIERS, SECOND)
    return known


def test_without_anything_learned_the_shares_are_of_all_waits() -> None:
    seen = dict(usual.culprits(probed(be=60, system=40), TIERS, NOTHING, SECOND))
    assert seen == pytest.approx({BE: 0.6, KTHREAD: 0.4})


def test_what_the_system_always_takes_is_not_what_made_this_tick_worse() -> None:
    seen = dict(usual.culprits(probed(be=60, system=100), TIERS, learned(system=80), SECOND))
    assert seen == pytest.approx({BE: 0.75, KTHREAD: 0.25})


def test_the_usual_is_a_rate_so_a_longer_tick_has_more_of_it() -> None:
    seen = dict(usual.culprits(probed(be=60, system=180), TIERS, learned(system=80), 2 * SECOND))
    assert seen == pytest.approx({BE: 0.75, KTHREAD: 0.25})


def test_one_who_has_less_than_usual_has_nothing_and_takes_nothing_from_the_others() -> None:
    seen = dict(usual.culprits(probed(be=50, other=50, system=10), TIERS, learned(system=80), SECOND))
    assert seen == pytest.approx({BE: 0.5, OTHER_LS: 0.5, KTHREAD: 0})


def test_where_nobody_has_more_than_usual_the_shares_are_of_all() -> None:
    seen = dict(usual.culprits(probed(system=30, itself=10), TIERS, learned(system=80, itself=20), SECOND))
    assert seen == pytest.approx({KTHREAD: 0.75, LS: 0.25})


def test_of_nobody_there_is_no_share() -> None:
    assert usual.culprits(probed(), TIERS, learned(system=80), SECOND) == ()


def test_nothing_that_be_does_becomes_usual() -> None:
    assert learned(be=90, system=80) == learned(system=80)


def test_what_others_stopped_doing_is_forgotten() -> None:
    known = learned(system=80)
    for _ in range(5000):
        known = usual.learn(known, probed(), TIERS, SECOND)
    assert known.behind["system"] < 0.001


@given(st.lists(st.floats(0, 1000), min_size=8, max_size=8))
def test_shares_are_parts_of_one_and_be_never_loses_by_what_others_always_do(ms: list[float]) -> None:
    known = learned(3, system=ms[0], other=ms[1], itself=ms[2], be=ms[3])
    now = probed(system=ms[4], other=ms[5], itself=ms[6], be=ms[7])

    def of_be(before: Usual) -> float:
        seen = usual.culprits(now, TIERS, before, SECOND)
        assert not seen or sum(share for _, share in seen) == pytest.approx(1)
        return sum(share for who, share in seen if who == BE)

    assert of_be(known) >= of_be(NOTHING) - 1e-9
