"""Apply a plan: journal, write, read back, classify what the kernel says. The only writer of cgroup files.

Undo stands next to do: a restore goes through the same code as the one after a crash (`journal.restore_one`).
"""

from __future__ import annotations

import errno
from typing import NamedTuple

import msgspec

from qosd.errors import CgroupGone
from qosd.files import Key
from qosd.journal import Journal, Outcome, restore_one
from qosd.plan import FileState, Ledger, Plan, Write
from qosd.sys import Sys, open_same_cgroup, read_interface, write_interface

_GONE = frozenset({errno.ENOENT, errno.ENODEV})


class Applied(NamedTuple):
    """How one write ended. `result`: written, gone, moved (changed under us), diverged, refused or failed."""

    write: Write
    result: str
    error: str | None = None
    errno_name: str | None = None


class Report(NamedTuple):
    applied: tuple[Applied, ...] = ()
    restored: tuple[Outcome, ...] = ()
    journal_error: str | None = None


class Backoff(NamedTuple):
    first_usec: int
    max_usec: int


class Actuator:
    """Owns the journal and the cgroup root's fd; keeps no memory of its own beside them."""

    def __init__(self, sys: Sys, root_fd: int, journal: Journal, protected: tuple[str, ...]) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._journal = journal
        self._protected = protected

    def apply(self, plan: Plan, ledger: Ledger, now_usec: int, backoff: Backoff) -> tuple[Ledger, Report]:
        following = dict(ledger)
        for key in plan.forgets:
            self._journal.forget(key)
        restored = tuple(self._restore(key, following, now_usec, backoff) for key in plan.restores)
        applied: list[Applied] = []
        for write in plan.writes:
            try:
                done = self._write(write, following.get(write.key, FileState()))
            except OSError as error:
                # Without a journal nothing is written: what cannot be undone is not done.
                return following, Report(tuple(applied), restored, f"journal: {error}")
            following[write.key] = _remember(following.get(write.key, FileState()), done, now_usec, backoff)
            applied.append(done)
        return following, Report(tuple(applied), restored)

    def _restore(self, key: Key, ledger: dict[Key, FileState], now_usec: int, backoff: Backoff) -> Outcome:
        entry = self._journal.entries.get(key)
        if entry is None:
            ledger.pop(key, None)
            return Outcome(key, "", "gone", "not in the journal")
        outcome = restore_one(self._sys, self._root_fd, key, entry)
        if outcome.result == "failed":
            ledger[key] = _backed_off(ledger.get(key, FileState()), outcome.detail, now_usec, backoff)
        else:
            self._journal.forget(key)
            ledger.pop(key, None)
        return outcome

    def _write(self, write: Write, state: FileState) -> Applied:
        """One write; OSError comes only from the journal, the kernel's own errors are in the result."""
        if protects(self._protected, write.path):
            return Applied(write, "refused", f"{write.path or '/'} is or contains a protected cgroup")
        try:
            dir_fd = open_same_cgroup(self._sys, self._root_fd, write.path, write.key.cgroup_id)
        except CgroupGone:
            return Applied(write, "gone")
        except OSError as error:
            return _failed(write, error)
        try:
            return self._write_at(dir_fd, write, state)
        finally:
            self._sys.close(dir_fd)

    def _write_at(self, dir_fd: int, write: Write, state: FileState) -> Applied:
        try:
            current = self._read(dir_fd, write.key.file)
            weight = self._read(dir_fd, "cpu.weight") if write.key.file == "cpu.idle" else None
        except OSError as error:
            return _failed(write, error)
        if current != write.old:
            return Applied(write, "moved", f"holds {current!r}, was {write.old!r} when it was decided")
        original = write.old if state.original is None else state.original
        held = self._journal.entries.get(write.key)
        self._journal.record(
            write.key, write.path, original, write.new, held.weight if held is not None else weight
        )
        try:
            write_interface(self._sys, dir_fd, write.key.file, write.new)
            now = self._read(dir_fd, write.key.file)
        except OSError as error:
            if state.original is None:
                self._journal.forget(write.key)
            return _failed(write, error)
        if now != write.new:
            self._journal.record(
                write.key, write.path, original, now, self._journal.entries[write.key].weight
            )
            return Applied(write, "diverged", now)
        return Applied(write, "written")

    def _read(self, dir_fd: int, file: str) -> str:
        return read_interface(self._sys, dir_fd, file).decode("latin-1").strip()


def protects(protected: tuple[str, ...], path: str) -> bool:
    """Whether the cgroup at `path` is, contains, or lies inside one that must never be touched."""
    return any(
        not path or path == other or other.startswith(path + "/") or path.startswith(other + "/")
        for other in protected
    )


def _failed(write: Write, error: OSError) -> Applied:
    if error.errno in _GONE:
        return Applied(write, "gone")
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    return Applied(write, "failed", f"{write.key.file}: {error.strerror or error}", name)


def _remember(state: FileState, done: Applied, now_usec: int, backoff: Backoff) -> FileState:
    original = done.write.old if state.original is None else state.original
    match done.result:
        case "written":
            return msgspec.structs.replace(
                state, original=original, ours=done.write.new, failures=0, retry_at=0, error=None
            )
        case "gone" | "moved":
            return state
        case "diverged":
            # The kernel took the write and made something else of it; asking again would loop.
            failed = _backed_off(state, f"kernel keeps {done.error!r}", now_usec, backoff)
            return msgspec.structs.replace(failed, original=original, ours=done.error)
        case _:
            return _backed_off(state, done.error or done.result, now_usec, backoff)


def _backed_off(state: FileState, error: str, now_usec: int, backoff: Backoff) -> FileState:
    wait = min(backoff.first_usec << min(state.failures, 20), backoff.max_usec)
    return msgspec.structs.replace(state, failures=state.failures + 1, retry_at=now_usec + wait, error=error)
