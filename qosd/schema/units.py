"""Quantities with units, and the section type of the configuration: what every part's schema is made of.

Imports nothing of qosd, so that a part may keep its section of the schema beside its governors. Pure.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta


class Duration(int):
    """Microseconds; written "500ms", "2s", "10min", "1h"."""

    __slots__ = ()


class ByteSize(int):
    """Bytes; written "512KiB", "2GiB", or a plain number."""

    __slots__ = ()


_DURATION_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000}
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_LARGEST = (1 << 63) - 1
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)

Percent = Annotated[float, Meta(ge=0, le=100)]
Weight = Annotated[int, Meta(ge=1, le=10_000)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the configuration: its fields are the keys, with their defaults and ranges."""


def parse_quantity(text: str, units: dict[str, int]) -> int:
    """`2GiB` to bytes or `500ms` to microseconds; raises ValueError with the units that are known."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        raise ValueError(f"expected a number with one of the units {', '.join(units)}, got {text!r}")
    amount = float(match[1]) * units[match[2]]
    if amount > _LARGEST:
        raise ValueError(f"{text[:20]!r} is more than anything here can be")
    return round(amount)


def parse_duration(text: str) -> Duration:
    return Duration(parse_quantity(text, _DURATION_UNITS))


def parse_size(text: str) -> ByteSize:
    return ByteSize(parse_quantity(text, _SIZE_UNITS))


def within(key: str, value: int, low: int, high: int, words: str) -> str | None:
    """What is wrong with a quantity out of its range, as a sentence with the key."""
    return None if low <= value <= high else f"{key}: must be within {words}"
