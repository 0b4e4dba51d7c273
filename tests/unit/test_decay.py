"""A histogram that forgets."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd.decay import Histogram

HOUR = 3_600_000_000
EMPTY = Histogram(half_life_usec=HOUR, first=0.01)

values = st.floats(0, 1e6)


def filled(*samples: tuple[float, int]) -> Histogram:
    histogram = EMPTY
    for value, at in samples:
        histogram = histogram.add(value, 1.0, at)
    return histogram


def test_an_empty_histogram_knows_nothing() -> None:
    assert EMPTY.quantile(0.95) is None
    assert EMPTY.total(5) == 0
    assert EMPTY.is_cold(1e-9, 0)


@given(st.lists(values, min_size=1, max_size=60), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_a_quantile_is_at_most_one_bucket_above_the_true_one(samples: list[float], p: float) -> None:
    """It errs upwards only: what it predicts is never below what was seen."""
    true = sorted(samples)[math.ceil(p * len(samples) - 1e-9) - 1]

    found = filled(*((sample, 0) for sample in samples)).quantile(p)

    assert found is not None
    assert true * (1 - 1e-9) <= found <= max(true * 1.05 * (1 + 1e-9), EMPTY.first)


def test_what_was_added_a_half_life_ago_counts_half() -> None:
    histogram = EMPTY.add(1.0, 8.0, 0)

    assert histogram.total(HOUR) == pytest.approx(4.0)
    assert histogram.total(3 * HOUR) == pytest.approx(1.0)


def test_the_old_loses_to_the_new() -> None:
    old = filled(*((8.0, at) for at in range(100)))

    new = old
    for at in range(10):
        new = new.add(1.0, 1.0, 6 * HOUR + at)

    assert old.quantile(0.5) == pytest.approx(8.0, rel=0.05)
    assert new.quantile(0.5) == pytest.approx(1.0, rel=0.05)


def test_years_of_samples_neither_overflow_nor_grow() -> None:
    histogram = EMPTY
    for day in range(3000):
        histogram = histogram.add(day % 7 + 1.0, 1.0, day * 24 * HOUR)

    assert len(histogram.weights) <= 14
    assert math.isfinite(histogram.total(3000 * 24 * HOUR))
    assert histogram.quantile(1.0) is not None


@given(st.lists(st.tuples(values, st.integers(0, 10**15)), max_size=40))
def test_the_buckets_are_bounded_and_every_value_has_one(samples: list[tuple[float, int]]) -> None:
    histogram = filled(*samples)

    assert all(0 <= bucket <= 512 for bucket in histogram.weights)
    assert all(math.isfinite(weight) and weight > 0 for weight in histogram.weights.values())


@given(st.lists(st.tuples(values, st.integers(0, 10**14)), max_size=40))
def test_a_histogram_comes_back_from_its_json(samples: list[tuple[float, int]]) -> None:
    histogram = filled(*samples)

    assert msgspec.json.decode(msgspec.json.encode(histogram), type=Histogram) == histogram


def test_a_clock_that_goes_back_or_jumps_ahead_leaves_it_usable() -> None:
    histogram = filled((1.0, 100 * HOUR), (2.0, 0), (3.0, 10_000 * HOUR), (4.0, 5))

    assert histogram.quantile(1.0) == pytest.approx(3.0, rel=0.05)
    assert math.isfinite(histogram.total(0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_adds_nothing(value: float) -> None:
    assert EMPTY.add(value, 1.0, 0) == EMPTY
    assert EMPTY.add(1.0, value if value < 0 or value != value else 0.0, 0) == EMPTY  # noqa: PLR0124 - NaN


def test_it_is_cold_until_enough_was_added_and_again_once_that_is_forgotten() -> None:
    histogram = filled(*((1.0, at) for at in range(10)))

    assert histogram.is_cold(10.5, 10)
    assert not histogram.is_cold(9.5, 10)
    assert histogram.is_cold(9.5, HOUR)


def test_moving_to_another_clock_forgets_by_the_time_between() -> None:
    histogram = filled((1.0, 50 * HOUR), (2.0, 51 * HOUR))

    moved = histogram.as_of(51 * HOUR).moved(7, HOUR)

    assert moved.total(7) == pytest.approx(histogram.total(51 * HOUR) / 2)
    assert histogram.as_of(51 * HOUR).total(51 * HOUR) == pytest.approx(1.5)
    assert moved.quantile(1.0) == histogram.quantile(1.0)


@pytest.mark.parametrize(
    "damage",
    [{"half_life_usec": 0}, {"first": -1}, {"growth": 1.0}, {"weights": {"5": -2.0}}, {"first": "x"}],
)
def test_a_damaged_histogram_does_not_decode(damage: dict[str, object]) -> None:
    whole = msgspec.to_builtins(filled((1.0, 0)), str_keys=True)

    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({**whole, **damage}), type=Histogram)
