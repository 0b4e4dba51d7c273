"""The kills on record, kept in /run so that a daemon that crashes and comes back has no new budget."""

from __future__ import annotations

import errno
import os

import msgspec

from qosd.interference.kills import DAY_USEC, Spent
from qosd.sys import READ, Sys, read_all

FILE = "kills.json"

_decoder = msgspec.json.Decoder(tuple[Spent, ...])


class SpentFile:
    """`records` is what counts; `error` says why nothing may be killed: nobody knows what was."""

    def __init__(self, sys: Sys, directory: str) -> None:
        self._sys = sys
        self._path = os.path.join(directory, FILE)
        self.error: str | None = None
        self.records: tuple[Spent, ...] = ()
        try:
            self.records = _decoder.decode(self._read() or b"[]")
        except (OSError, msgspec.DecodeError) as error:
            self.error = f"{self._path}: {error}"

    def add(self, spend: Spent) -> None:
        """On file before it is done. Raises OSError: then do not do it."""
        if self.error is not None:
            raise OSError(errno.EIO, self.error)
        kept = tuple(each for each in self.records if spend.boottime_usec - each.boottime_usec < DAY_USEC)
        self._write(msgspec.json.encode((*kept, spend)))
        self.records = (*kept, spend)

    def _read(self) -> bytes:
        try:
            fd = self._sys.open(self._path, READ)
        except FileNotFoundError:
            return b""
        try:
            return read_all(self._sys, fd)
        finally:
            self._sys.close(fd)

    def _write(self, data: bytes) -> None:
        temporary = self._path + ".new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = self._sys.open(temporary, flags, 0o600)
        try:
            if self._sys.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, "short write", temporary)
        finally:
            self._sys.close(fd)
        self._sys.rename(temporary, self._path)
