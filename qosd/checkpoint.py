"""What was learned, on disk: one versioned JSON file a part, replaced as a whole.

Losing one costs the time to learn it again, so a file that is absent, damaged or of another version is a
cold start and one sentence, never an error. There is no fsync: the loop must not wait for a disk, and a file
that a power cut left half written does not decode.
"""

from __future__ import annotations

import os
from typing import Generic, NamedTuple, TypeVar

import msgspec

from qosd.sys import READ, Sys, read_all

T = TypeVar("T")

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
_DAMAGED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Envelope(msgspec.Struct, frozen=True):
    version: int
    saved_at: float
    """Wall clock: the only one that goes on over a reboot."""
    value: msgspec.Raw


class Loaded(NamedTuple, Generic[T]):
    """`value` is None for a cold start, and `why` says why."""

    value: T | None
    away_usec: int
    """How long ago it was saved. 0 where the wall clock went back: then nothing is forgotten."""
    why: str


def save(sys: Sys, path: str, version: int, value: object) -> None:
    """Replace the file, or raise OSError and leave the old one."""
    body = msgspec.json.encode(_Envelope(version, sys.time(), msgspec.Raw(msgspec.json.encode(value))))
    temporary = path + ".new"
    fd = sys.open(temporary, _CREATE, 0o600)
    try:
        left = body
        while left:
            left = left[sys.write(fd, left) :]
    finally:
        sys.close(fd)
    sys.rename(temporary, path)


def load(sys: Sys, path: str, version: int, kind: type[T]) -> Loaded[T]:
    """What was saved, if it is whole and of this version."""
    try:
        envelope = msgspec.json.decode(_read(sys, path), type=_Envelope)
        if envelope.version != version:
            return Loaded(None, 0, f"{path} is of version {envelope.version}, not {version}; starting cold")
        value = msgspec.json.decode(envelope.value, type=kind)
    except FileNotFoundError:
        return Loaded(None, 0, f"{path} does not exist yet; starting cold")
    except OSError as error:
        return Loaded(None, 0, f"{path}: {error.strerror or error}; starting cold")
    except _DAMAGED as error:
        return Loaded(None, 0, f"{path} is damaged ({error}); starting cold")
    away_usec = max(round((sys.time() - envelope.saved_at) * 1e6), 0)
    return Loaded(value, away_usec, f"{path}: saved {away_usec // 1_000_000} s ago")


def _read(sys: Sys, path: str) -> bytes:
    fd = sys.open(path, READ)
    try:
        return read_all(sys, fd)
    finally:
        sys.close(fd)
