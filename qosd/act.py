"""Apply a plan: journal, write, read back, classify what the kernel says. The only writer of cgroup files.

Undo stands next to do: a restore goes through the same code as the one after a crash (`journal.restore`).
"""

from __future__ import annotations

import errno
from typing import NamedTuple

import msgspec

from qosd.blocking import BlockingWriter
from qosd.errors import CgroupGone
from qosd.files import Key
from qosd.journal import RESET_WEIGHT, Entry, Journal, Outcome, restore
from qosd.look import Look
from qosd.model import CgroupId
from qosd.own import own_cgroup
from qosd.plan import FileState, Ledger, Plan, Write
from qosd.sys import Sys, open_same_cgroup, read_interface, write_interface

_GONE = frozenset({errno.ENOENT, errno.ENODEV})


class Applied(NamedTuple):
    """How one write ended.

    `result`: written, unread (in force as far as is known), gone, moved (changed under us), diverged,
    refused or failed.
    """

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

    def __init__(
        self,
        sys: Sys,
        root_fd: int,
        journal: Journal,
        protected: tuple[str, ...],
        blocking: BlockingWriter | None = None,
        look: Look | None = None,
    ) -> None:
        self._sys = sys
        self._look = look
        self._blocking = blocking
        self._root_fd = root_fd
        self._journal = journal
        self._protected = protected

    def apply(self, plan: Plan, ledger: Ledger, now_usec: int, backoff: Backoff) -> tuple[Ledger, Report]:
        following = dict(ledger)
        for key in plan.forgets:
            self._journal.forget(key)
        restored = self._restore(plan.restores, following, now_usec, backoff)
        applied: list[Applied] = []
        for write in plan.writes:
            try:
                done = self._write(write, following.get(write.key, FileState()))
            except OSError as error:
                # Without a journal nothing is written: what cannot be undone is not done.
                return following, Report(tuple(applied), restored, f"journal: {error}")
            state = _remember(following.get(write.key, FileState()), done, now_usec, backoff)
            following[write.key] = self._as_on_file(write.key, state)
            applied.append(done)
        return following, Report(tuple(applied), restored)

    def _as_on_file(self, key: Key, state: FileState) -> FileState:
        """The journal knows an original that what stood there before the write does not show."""
        entry = self._journal.entries.get(key)
        if entry is None or state.original is None:
            return state
        return msgspec.structs.replace(state, original=entry.original)

    def _restore(
        self, keys: tuple[Key, ...], ledger: dict[Key, FileState], now_usec: int, backoff: Backoff
    ) -> tuple[Outcome, ...]:
        held = self._journal.entries
        outcomes = restore(self._sys, self._root_fd, {key: held[key] for key in keys if key in held})
        outcomes += [Outcome(key, "", "gone", "not in the journal") for key in keys if key not in held]
        for outcome in outcomes:
            if outcome.result == "failed":
                state = ledger.get(outcome.key, FileState())
                ledger[outcome.key] = _backed_off(state, outcome.detail, now_usec, backoff)
            else:
                self._journal.forget(outcome.key)
                ledger.pop(outcome.key, None)
        return tuple(outcomes)

    def _write(self, write: Write, state: FileState) -> Applied:
        """One write; OSError comes only from the journal, the kernel's own errors are in the result."""
        if protects(self._protected, write.path):
            return Applied(write, "refused", f"{write.path or '/'} is or contains a protected cgroup")
        if write.key.file == "cgroup.freeze" and write.new == "1":
            # Whoever moved us there since the start would have us stop ourselves, and everything with us.
            own = own_cgroup(self._sys)
            if own is None or protects((own,), write.path):
                return Applied(write, "refused", f"qosd itself is in {own or 'a cgroup it cannot find out'}")
        kept = self._look.directory(CgroupId(write.key.cgroup_id)) if self._look is not None else None
        if kept is not None:
            return self._write_at(kept, write, state)
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
            weight = self._weight_to_give_back(dir_fd, write)
        except OSError as error:
            return _failed(write, error)
        if current != write.old:
            return Applied(write, "moved", f"holds {current!r}, was {write.old!r} when it was decided")
        entry = self._entry(write, state, weight)
        self._journal.record(write.key, entry)
        try:
            came_back = self._put(dir_fd, write)
        except OSError as error:
            return self._refused(dir_fd, write, entry, error)
        if not came_back:
            return Applied(write, "unread", "the kernel is still reclaiming down to it")
        return self._read_back(dir_fd, write, entry)

    def _read_back(self, dir_fd: int, write: Write, entry: Entry) -> Applied:
        try:
            now = self._read(dir_fd, write.key.file)
        except OSError as error:
            return Applied(write, "unread", f"{write.key.file}: {error.strerror or error}")
        if now == write.new:
            return Applied(write, "written")
        self._journal.record(write.key, entry._replace(ours=(now, write.new)))
        return Applied(write, "diverged", now)

    def _put(self, dir_fd: int, write: Write) -> bool:
        """Whether the write has come back. One that may hold up its writer is not made by this thread."""
        if self._blocking is not None and self._blocking.takes(write.key.file):
            return self._blocking.write(dir_fd, write.key.cgroup_id, write.key.file, write.new)
        write_interface(self._sys, dir_fd, write.key.file, write.new)
        return True

    def _refused(self, dir_fd: int, write: Write, entry: Entry, error: OSError) -> Applied:
        """Let go of the entry only when the file is known to hold nothing of ours."""
        refusal = _failed(write, error)
        try:
            now = self._read(dir_fd, write.key.file)
        except OSError:
            now = None
        if now == write.new:
            return Applied(write, "unread", refusal.error, refusal.errno_name)
        if refusal.result == "gone" or (now == write.old and now not in entry.ours):
            self._journal.forget(write.key)
        return refusal

    def _entry(self, write: Write, state: FileState, weight: str | None) -> Entry:
        """What undoes this write.

        What stands now is ours as well if the journal says so, whatever the ledger remembers: a value that
        a failed restore left behind is no original.
        """
        held = self._journal.entries.get(write.key)
        if held is not None and write.old in held.ours:
            return Entry(write.path, held.original, (write.new, write.old), weight)
        original = write.old if state.original is None else state.original
        return Entry(write.path, self._left_by_idle(write) or original, (write.new,), weight)

    def _left_by_idle(self, write: Write) -> str | None:
        """The weight that a half-done restore of cpu.idle still owes the group: what stands is the reset."""
        if write.key.file != "cpu.weight" or write.old != RESET_WEIGHT:
            return None
        idle = self._journal.entries.get(Key(write.key.cgroup_id, "cpu.idle"))
        return idle.weight if idle is not None else None

    def _weight_to_give_back(self, dir_fd: int, write: Write) -> str | None:
        """With cpu.idle: the weight that leaving it must give back.

        The kernel shows 0 while the group is idle, and 100 after somebody else left it for us; neither says
        more than what we already know. Any other weight was chosen, and is the one to keep.
        """
        if write.key.file != "cpu.idle":
            return None
        weight = self._read(dir_fd, "cpu.weight")
        ours = self._journal.entries.get(Key(write.key.cgroup_id, "cpu.weight"))
        if ours is not None and weight in ours.ours:
            # A weight of ours that could not be restored in time cannot be any more once the group is idle.
            return ours.original
        held = self._journal.entries.get(write.key)
        known = held.weight if held is not None else None
        if write.old == "1":
            return known
        return known if known is not None and weight == RESET_WEIGHT else weight

    def _read(self, dir_fd: int, file: str) -> str:
        return read_interface(self._sys, dir_fd, file).decode("latin-1").strip()


def protects(protected: tuple[str, ...], path: str) -> bool:
    """Whether the cgroup at `path` is, contains, or lies inside one that must never be touched."""
    return not path or any(
        path == other or other.startswith(path + "/") or path.startswith(other + "/") for other in protected
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
        case "unread":
            return msgspec.structs.replace(state, original=original, ours=done.write.new, error=done.error)
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
