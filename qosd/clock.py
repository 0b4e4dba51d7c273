"""What a clock on the wall shows in a time zone. Decisions never read the tz database: it is read here."""

from __future__ import annotations

import datetime as dt
import zoneinfo

from qosd.schema.windows import MINUTES_PER_DAY

LOCALTIME = "localtime"
"""The host's own zone (/etc/localtime), read anew each time: an operator may move it."""
_MINUTES_PER_HOUR = 60


def minute_of_week(zone: str, wall_seconds: float) -> int:
    """Minutes since Monday 00:00 there. Raises OSError or ValueError for a zone this host does not know."""
    utc = dt.datetime.fromtimestamp(wall_seconds, tz=dt.UTC)
    there = utc.astimezone(_zone(zone))
    return there.weekday() * MINUTES_PER_DAY + there.hour * _MINUTES_PER_HOUR + there.minute


def is_known(zone: str) -> bool:
    try:
        _zone(zone)
    except (OSError, ValueError):
        return False
    return True


def knows_none() -> bool:
    """Whether this host has no tz database, as a small installation."""
    return not zoneinfo.available_timezones()


def _zone(zone: str) -> dt.tzinfo:
    if zone == LOCALTIME:
        try:
            with open("/etc/localtime", "rb") as file:
                return zoneinfo.ZoneInfo.from_file(file)
        except FileNotFoundError:
            return dt.UTC  # localtime(5): without the file it is UTC
    try:
        return zoneinfo.ZoneInfo(zone)
    except zoneinfo.ZoneInfoNotFoundError as error:  # a KeyError, of all things
        raise ValueError(str(error)) from None
