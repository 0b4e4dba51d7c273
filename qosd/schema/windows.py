"""`[[window]]`: hours in which the host has another target, another floor, or no BE at all. Pure.

A window is open while a clock on the wall of its zone shows a time inside it. So it needs no arithmetic over
daylight saving: an hour that comes twice is inside twice, an hour that is left out never comes.
"""

from __future__ import annotations

import enum
import re
from typing import Annotated

from msgspec import Meta

from qosd.schema.units import Section

MINUTES_PER_DAY = 24 * 60
MINUTES_PER_WEEK = 7 * MINUTES_PER_DAY

_HOURS = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
_MINUTES_PER_HOUR = 60


class Day(enum.StrEnum):
    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


class Window(Section, frozen=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    hours: str
    days: Annotated[tuple[Day, ...], Meta(min_length=1)] = tuple(Day)
    zone: str = "localtime"
    cpu_target_pct: Annotated[float, Meta(gt=0, le=100)] | None = None
    floor_pct: Annotated[float, Meta(ge=1, le=100)] | None = None
    pause_be: bool = False


def parse_hours(text: str) -> tuple[int, int] | None:
    """`22:00-06:00` to minutes of the day (1320, 360); None for what are no hours."""
    match = _HOURS.fullmatch(text)
    if match is None:
        return None
    minutes = []
    for hour, minute in ((int(match[1]), int(match[2])), (int(match[3]), int(match[4]))):
        at = hour * _MINUTES_PER_HOUR + minute
        if minute >= _MINUTES_PER_HOUR or at > MINUTES_PER_DAY:
            return None
        minutes.append(at)
    start, end = minutes
    return None if start in (end, MINUTES_PER_DAY) else (start, end)


def minutes_left(window: Window, minute_of_week: int) -> int | None:
    """Until it closes, by the clock on the wall; None while it is not open. Monday 00:00 is minute 0.

    A window past midnight belongs to the day on which it begins.
    """
    hours = parse_hours(window.hours)
    if hours is None:
        return None
    start, end = hours
    length = (end - start) % MINUTES_PER_DAY or MINUTES_PER_DAY
    left = []
    for day in window.days:
        into = (minute_of_week - list(Day).index(day) * MINUTES_PER_DAY - start) % MINUTES_PER_WEEK
        if into < length:
            left.append(length - into)
    return max(left, default=None)


def check(windows: tuple[Window, ...]) -> str | None:
    names: set[str] = set()
    for index, window in enumerate(windows):
        if window.name in names:
            return f"window[{index}].name: {window.name!r} is used twice; give each window its own name"
        names.add(window.name)
        if parse_hours(window.hours) is None:
            return (
                f'window[{index}].hours: {window.hours!r} must be two times of the day, as "22:00-06:00";'
                ' "00:00-24:00" is all day'
            )
        if not window.pause_be and window.cpu_target_pct is None and window.floor_pct is None:
            return (
                f"window[{index}]: {window.name!r} changes nothing; set cpu_target_pct, floor_pct or pause_be"
            )
    return None
