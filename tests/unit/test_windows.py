"""Time windows: open by the clock on the wall, whatever daylight saving or the clock itself does."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd import clock, governors
from qosd.config import Config, decode
from qosd.cpu import windows
from qosd.model import CgroupId, CgroupSample, CpuStat, HostSample, Snapshot, Tier, Workload
from qosd.schema.windows import MINUTES_PER_DAY, MINUTES_PER_WEEK, Day, Window, minutes_left, parse_hours

NIGHT = Window(name="night", hours="22:00-06:00", zone="UTC", cpu_target_pct=100.0)
ALL = [day.value for day in Day]


def at(day: str, hour: int, minute: int = 0) -> int:
    return ALL.index(day) * MINUTES_PER_DAY + hour * 60 + minute


def host(config: Config, wall: float | None = None, ls: float = 0.0, tick: int = 1) -> Snapshot:
    """Eight CPUs, of which LS uses `ls`; the clocks of the windows' zones as at `wall`."""
    usec = round(ls * 1e6) * tick
    groups = [
        Workload(
            tier.value,
            tier,
            0,
            CgroupSample(CgroupId(n), f"{tier.value}.slice", CpuStat(used, used, 0)),
            {"cpu.max": "max 100000"},
        )
        for n, (tier, used) in enumerate(((Tier.LS, usec), (Tier.BE, 0)))
    ]
    zones = {window.zone for window in config.window}
    minutes = {zone: clock.minute_of_week(zone, wall) for zone in zones} if wall is not None else {}
    sample = HostSample(8, tuple(range(8)), busy_usec=usec, steal_usec=0)
    return Snapshot(
        tick, tick * 1_000_000, tick * 1_000_000, sample, workloads=tuple(groups), local_minutes=minutes
    )


def allowance(config: Config, wall: float, ls: float = 0.0) -> governors.Decision:
    state, _ = governors.decide(config, None, host(config, wall, ls, 1), governors.State())
    return governors.decide(config, host(config, wall, ls, 1), host(config, wall, ls, 2), state)[1]


@pytest.mark.parametrize(
    ("minute", "left"),
    [
        (at("mon", 21, 59), None),
        (at("mon", 22), 480),
        (at("mon", 23, 59), 361),
        (at("tue", 0), 360),
        (at("tue", 5, 59), 1),
        (at("tue", 6), None),
        (at("sun", 23), 420),
        (at("mon", 5), 60),
    ],
)
def test_a_window_past_midnight_is_one_window(minute: int, left: int | None) -> None:
    assert minutes_left(NIGHT, minute) == left


def test_a_window_past_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    friday = Window(name="x", hours="22:00-06:00", days=(Day.FRI,), pause_be=True)

    assert minutes_left(friday, at("fri", 23)) == 7 * 60
    assert minutes_left(friday, at("sat", 5)) == 60
    assert minutes_left(friday, at("fri", 5)) is None
    assert minutes_left(friday, at("sat", 23)) is None


def test_sunday_night_goes_on_into_monday() -> None:
    sunday = Window(name="x", hours="22:00-06:00", days=(Day.SUN,), pause_be=True)

    assert minutes_left(sunday, at("mon", 1)) == 300
    assert minutes_left(sunday, at("tue", 1)) is None


@given(
    st.integers(0, MINUTES_PER_DAY - 1), st.integers(0, MINUTES_PER_DAY), st.integers(0, MINUTES_PER_WEEK - 1)
)
def test_an_open_window_closes_exactly_when_it_says(start: int, end: int, minute: int) -> None:
    hours = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    window = Window(name="x", hours=hours, days=(Day.WED,), pause_be=True)
    if parse_hours(hours) is None:
        assert start == end
        return
    left = minutes_left(window, minute)
    if left is not None:
        assert minutes_left(window, (minute + left - 1) % MINUTES_PER_WEEK) == 1
        assert minutes_left(window, (minute + left) % MINUTES_PER_WEEK) is None


def minute_of_week(zone: str, *when: int) -> int:
    return clock.minute_of_week(zone, dt.datetime(*when, tzinfo=dt.UTC).timestamp())


def test_an_hour_that_daylight_saving_leaves_out_never_comes_and_one_that_it_repeats_comes_twice() -> None:
    """Berlin 2026, at 01:00 UTC each: 02:00 becomes 03:00 on 29 March, 03:00 becomes 02:00 on 25 October."""
    window = Window(name="x", hours="02:00-03:00", pause_be=True)
    berlin = "Europe/Berlin"

    def is_open(*when: int) -> bool:
        return minutes_left(window, minute_of_week(berlin, *when)) is not None

    assert not any(is_open(2026, 3, 29, hour, minute) for hour in range(24) for minute in (0, 30, 59))
    assert [hour for hour in range(24) if is_open(2026, 10, 25, hour, 30)] == [0, 1]
    assert [hour for hour in range(24) if is_open(2026, 7, 1, hour, 30)] == [0]
    assert [hour for hour in range(24) if is_open(2026, 12, 1, hour, 30)] == [1]


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia"]


@given(st.integers(1_577_836_800, 2_114_380_800), st.sampled_from(ZONES))
def test_the_minute_of_the_week_is_what_a_clock_there_shows(seconds: int, zone: str) -> None:
    there = dt.datetime.fromtimestamp(seconds, tz=zoneinfo.ZoneInfo(zone))

    assert divmod(clock.minute_of_week(zone, seconds), MINUTES_PER_DAY) == (
        there.weekday(),
        there.hour * 60 + there.minute,
    )


def test_the_hosts_own_zone_is_one_and_an_unknown_one_is_an_error() -> None:
    assert clock.is_known(clock.LOCALTIME)
    assert 0 <= clock.minute_of_week(clock.LOCALTIME, 0.0) < MINUTES_PER_WEEK
    for zone in ("Europe/Pari", "../etc/passwd", "", "/etc/shadow", "x\0y"):
        assert not clock.is_known(zone), zone
        with pytest.raises((OSError, ValueError)):
            clock.minute_of_week(zone, 0.0)


CONFIG = decode(
    """
    [cpu.bandwidth]
    enforce = "max"
    [host]
    cpu_target_pct = 50
    [[window]]
    name = "off"
    hours = "12:00-13:00"
    zone = "UTC"
    pause_be = true
    [[window]]
    name = "night"
    hours = "22:00-06:00"
    zone = "UTC"
    cpu_target_pct = 90
    floor_pct = 20
    [[window]]
    name = "late"
    hours = "00:00-02:00"
    zone = "UTC"
    cpu_target_pct = 70
    """
)
MIDNIGHT = dt.datetime(2026, 11, 24, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    ("hour", "target", "floor", "open_windows"),
    [(9, 50, 5, []), (23, 90, 20, ["night"]), (1, 90, 20, ["night", "late"]), (13, 50, 5, [])],
)
def test_the_first_open_window_that_sets_a_key_holds(
    hour: int, target: float, floor: float, open_windows: list[str]
) -> None:
    config, opened = windows.apply(CONFIG, host(CONFIG, MIDNIGHT + hour * 3600))

    assert (config.host.cpu_target_pct, config.cpu.bandwidth.floor_pct) == (target, floor)
    assert [view.name for view in opened] == open_windows


def test_the_allowance_is_that_of_the_window_and_says_so() -> None:
    day, night = allowance(CONFIG, MIDNIGHT + 9 * 3600), allowance(CONFIG, MIDNIGHT + 23 * 3600)

    assert day.allowance is not None
    assert day.allowance.cores == pytest.approx(4.0)
    assert night.allowance is not None
    assert night.allowance.cores == pytest.approx(7.2)
    assert "window night is open for 7 h 00 min more: target 90 %, floor 20 %" in night.allowance.reason.text
    assert [view.name for view in night.cpu.windows] == ["night"]


def test_a_target_that_holds_nobody_is_called_that() -> None:
    config = decode('[[window]]\nname = "w"\nhours = "00:00-24:00"\nzone = "UTC"\ncpu_target_pct = 60')
    _, opened = windows.apply(config, host(config, MIDNIGHT))

    assert opened[0].changes == "target 60 %, which holds nobody: enforce is none"


def test_a_pause_leaves_be_its_floor_and_nothing_else() -> None:
    paused = allowance(CONFIG, MIDNIGHT + 12.5 * 3600)

    assert paused.allowance is not None
    assert paused.allowance.cores == pytest.approx(0.4)
    assert "BE is paused" in paused.allowance.reason.text


def test_a_zone_that_cannot_be_told_opens_no_window() -> None:
    snapshot = host(CONFIG)

    assert windows.apply(CONFIG, snapshot) == (CONFIG, ())


def test_nothing_is_remembered_of_a_window_when_the_clock_jumps() -> None:
    """Forth into the night and back: the same as if it had never jumped."""
    times = [9 * 3600.0, 23 * 3600.0, 9 * 3600.0 - 86_400 * 400, 9 * 3600.0]
    state, prev, cores = governors.State(), None, []
    for tick, seconds in enumerate(times, 1):
        now = host(CONFIG, MIDNIGHT + seconds, 0.0, tick)
        state, decision = governors.decide(CONFIG, prev, now, state)
        cores.append(decision.allowance.cores if decision.allowance else None)
        prev = now

    assert cores == [None, pytest.approx(7.2), pytest.approx(4.0), pytest.approx(4.0)]
