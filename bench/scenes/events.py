"""The labelled events of events.toml, and the order and jitter in which a seed runs them."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
_JITTER = 0.15
_GAP = (3.2, 4.0)


class Beside(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    by: str
    load: str


class Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event as the file has it."""

    id: str
    by: str | None = None
    load: str | None = None
    seconds: float | None = None
    beside: Beside | None = None
    limit: str | None = None


class Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    what: str
    cause: str
    """Who is to blame if LS is harmed."""
    signals: tuple[str, ...]
    """By which it may be seen."""
    events: tuple[Written, ...]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seconds: float
    kind: tuple[Kind, ...]


class Event(msgspec.Struct, frozen=True):
    """One event of a run: what is done for how long, and how long it is calm afterwards."""

    id: str
    kind: str
    cause: str
    signals: tuple[str, ...]
    loads: tuple[tuple[str, str], ...]
    """(by, load)."""
    seconds: float
    gap: float
    limit: str | None = None


def read() -> tuple[Kind, ...]:
    return _file().kind


def _file() -> File:
    return msgspec.convert(tomllib.loads((HERE / "events.toml").read_text(encoding="utf-8")), File)


def plan(seed: int) -> tuple[Event, ...]:
    """All events, in the order, of the lengths and with the gaps of this seed."""
    chance = random.Random(seed)  # noqa: S311 - an experiment's order, not a secret
    file = _file()
    events = [_event(file, kind, written, chance) for kind in file.kind for written in kind.events]
    chance.shuffle(events)
    return tuple(events)


def _event(file: File, kind: Kind, written: Written, chance: random.Random) -> Event:
    loads = [(written.by, written.load)] if written.by and written.load else []
    if written.beside is not None:
        loads.append((written.beside.by, written.beside.load))
    seconds = written.seconds or file.seconds
    return Event(
        written.id,
        kind.name,
        kind.cause,
        kind.signals,
        tuple(loads),
        round(seconds * chance.uniform(1 - _JITTER, 1 + _JITTER), 3),
        round(chance.uniform(*_GAP), 3),
        written.limit,
    )
