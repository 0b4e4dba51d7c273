"""The demo's arithmetic: percentiles, spreads, counters between two looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd.lab.demo.figures import (
    Request,
    counter_at,
    median,
    percentile,
    rate,
    share_over,
    slots,
    spread,
)

finite = st.floats(min_value=0, max_value=1e6)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    hundred = [float(value) for value in range(1, 101)]

    assert percentile(hundred, 50) == 50
    assert percentile(hundred, 99) == 99
    assert percentile(hundred, 99.9) == 100
    assert percentile([7.0], 50) == 7


@given(st.lists(finite, min_size=1), st.floats(min_value=0.1, max_value=100))
def test_at_least_so_many_per_cent_are_not_above_a_percentile(values: list[float], pct: float) -> None:
    found = percentile(sorted(values), pct)

    assert sum(1 for value in values if value <= found) >= pct / 100 * len(values) - 1e-9


def test_no_requests_have_no_percentile_rather_than_0() -> None:
    with pytest.raises(ValueError, match="no requests"):
        percentile([], 99)
    with pytest.raises(ValueError, match="no requests"):
        share_over([], 5)


def test_the_median_of_an_even_number_lies_between_the_middle_two() -> None:
    assert median([4.0, 1.0, 3.0]) == 3
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.5


@given(st.lists(finite, min_size=1))
def test_a_spread_holds_its_median_between_its_ends(values: list[float]) -> None:
    found = spread(values)

    assert found.low == min(values)
    assert found.high == max(values)
    assert found.low <= found.median <= found.high


def test_spreads_that_touch_overlap() -> None:
    assert spread([1.0, 2.0]).overlaps(spread([2.0, 3.0]))
    assert not spread([1.0, 2.0]).overlaps(spread([2.1, 3.0]))


def test_a_request_just_at_the_slo_is_within_it() -> None:
    assert share_over([1.0, 5.0, 5.1, 9.0], 5) == 0.5


def test_a_slot_without_requests_is_left_out() -> None:
    found = slots([Request(0.1, 3.0), Request(0.4, 1.0), Request(1.2, 9.0)], 0.5)

    assert [(slot.at, slot.p50, slot.p99, slot.requests) for slot in found] == [
        (0.0, 1.0, 3.0, 2),
        (1.0, 9.0, 9.0, 1),
    ]


def test_a_counter_grows_evenly_between_two_looks_and_stands_still_outside() -> None:
    points = [(1.0, 10.0), (3.0, 30.0)]

    assert [counter_at(points, at) for at in (0.0, 1.0, 2.0, 3.0, 9.0)] == [10, 10, 20, 30, 30]
    assert rate(points, 1.0, 3.0) == 10
