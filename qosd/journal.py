"""The originals of everything we have written, kept in /run so that any exit can be undone exactly.

One line a record: CRC-32 of the JSON, a space, the JSON. A record is on file before the write it speaks of;
tmpfs needs no fsync, and a torn or damaged line is no record. Cgroup state, /run and the journal die
together at a reboot; the boot id guards against a /run that does not.

Standard library only: the same restore runs from ExecStopPost, at start-up and in `qosctl restore`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from binascii import crc32
from typing import TYPE_CHECKING, NamedTuple

from qosd.errors import CgroupGone
from qosd.files import Key, restore_rank
from qosd.sys import Sys, open_same_cgroup, read_interface, write_interface

if TYPE_CHECKING:
    from collections.abc import Iterable

BOOT_ID = "/proc/sys/kernel/random/boot_id"
POSSIBLE_CPUS = "/sys/devices/system/cpu/possible"
ONLINE_CPUS = "/sys/devices/system/cpu/online"
FILE = "journal.jsonl"

_COMPACT_AFTER = 4096


RESET_WEIGHT = "100"  # what the kernel makes of cpu.weight when cpu.idle is left


class Entry(NamedTuple):
    """What a file held before us, and the values it may hold that are ours.

    These are the one about to be written, and the one that stands until the kernel has taken it.
    """

    path: str
    original: str
    ours: tuple[str, ...]
    weight: str | None = None
    """With cpu.idle: the group's cpu.weight, which leaving idle resets to 100 (sched_group_set_idle())."""


def read_boot_id() -> str:
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


class Journal:
    """The journal of a running daemon. Any OSError from `record` means: then do not write either.

    It goes on from what is on file: entries that a restore could not undo keep their true originals.
    Raises OSError when there is a file that cannot be read.
    """

    def __init__(self, sys: Sys, directory: str, boot_id: str) -> None:
        self._sys = sys
        self.directory = directory
        self._path = os.path.join(directory, FILE)
        self._boot_id = boot_id
        self._fd: int | None = None
        self._lines = 0
        self.entries: dict[Key, Entry] = load(_text(directory), boot_id)

    def record(self, key: Key, entry: Entry) -> None:
        """Put on file what undoes the next write. Raises OSError: then do not write."""
        if self.entries.get(key) != entry or self._unlinked():
            self._append(_set(key, entry))
            self.entries[key] = entry

    def forget(self, key: Key) -> None:
        """The file is at its original again, or somebody else's: it is no longer ours to restore."""
        if self.entries.pop(key, None) is not None:
            # A record that cannot be written leaves a stale entry, which restore meets with a file that
            # does not hold our value: harmless, so the release itself must not fail.
            with contextlib.suppress(OSError):
                self._append({"clear": [key.cgroup_id, key.file]})

    def close(self) -> None:
        if self._fd is not None:
            self._sys.close(self._fd)
            self._fd = None

    def _unlinked(self) -> bool:
        """Somebody removed the file, or the directory: what is appended to it now would undo nothing."""
        return self._fd is not None and self._sys.fstat(self._fd).st_nlink == 0

    def _append(self, record: dict[str, object]) -> None:
        if self._fd is None or self._unlinked() or self._lines >= _COMPACT_AFTER:
            self._rewrite()
        assert self._fd is not None  # noqa: S101 - _rewrite opened it or raised
        data = _line(record)
        written = self._sys.write(self._fd, data)
        if written != len(data):
            # The torn line is no record; start the next one on a line of its own.
            self._lines = _COMPACT_AFTER
            raise OSError(errno.ENOSPC, "short write to the journal", self._path)
        self._lines += 1

    def _rewrite(self) -> None:
        """Replace the file by one record per entry, or raise OSError and leave the old file."""
        self.close()
        temporary = self._path + ".new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = self._sys.open(temporary, flags, 0o600)
        try:
            lines = [_line({"boot": self._boot_id})]
            lines += [_line(_set(key, entry)) for key, entry in self.entries.items()]
            data = b"".join(lines)
            if self._sys.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, "short write to the journal", temporary)  # noqa: TRY301 - one cleanup
            self._sys.rename(temporary, self._path)
        except OSError:
            self._sys.close(fd)
            raise
        self._fd = fd
        self._lines = len(lines)


def _line(record: dict[str, object]) -> bytes:
    # ASCII JSON keeps a path's undecodable bytes as lone surrogates, so they come back as they were.
    body = json.dumps(record, ensure_ascii=True).encode("ascii")
    return b"%08x %s\n" % (crc32(body), body)


def _set(key: Key, entry: Entry) -> dict[str, object]:
    record: dict[str, object] = {
        "set": [*key],
        "path": entry.path,
        "original": entry.original,
        "ours": [*entry.ours],
    }
    return record if entry.weight is None else {**record, "weight": entry.weight}


def load(text: bytes, boot_id: str) -> dict[Key, Entry]:
    """What a journal's text says is still ours; nothing when it was written in another boot."""
    entries: dict[Key, Entry] = {}
    this_boot = False
    for line in text.split(b"\n"):
        record = _record(line)
        if record is None:
            continue
        match record:
            case {"boot": str(boot)}:
                this_boot = boot == boot_id
                entries = {}
            case {
                "set": [int(cgroup_id), str(file)],
                "path": str(path),
                "original": str(original),
                "ours": [*ours],
            }:
                weight = record.get("weight")
                entries[Key(cgroup_id, file)] = Entry(
                    path, original, tuple(map(str, ours)), weight if isinstance(weight, str) else None
                )
            case {"clear": [int(cgroup_id), str(file)]}:
                entries.pop(Key(cgroup_id, file), None)
            case _:
                continue
    return entries if this_boot else {}


def _text(directory: str) -> bytes:
    try:
        with open(os.path.join(directory, FILE), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _record(line: bytes) -> dict[str, object] | None:
    crc, _, body = line.partition(b" ")
    try:
        record = json.loads(body) if int(crc, 16) == crc32(body) else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


class Outcome(NamedTuple):
    """How one file's restore ended: `done`, `gone`, `foreign` (left alone), `widened`, or `failed`."""

    key: Key
    path: str
    result: str
    detail: str


def restore_one(sys: Sys, root_fd: int, key: Key, entry: Entry) -> Outcome:
    """Put one file back to its original if it still holds a value of ours."""
    try:
        dir_fd = open_same_cgroup(sys, root_fd, entry.path, key.cgroup_id)
        try:
            return _restore_at(sys, dir_fd, key, entry)
        finally:
            sys.close(dir_fd)
    except CgroupGone as error:
        return Outcome(key, entry.path, "gone", str(error))
    except OSError as error:
        # Only these two say that the value is gone too; after EMFILE, EACCES or EIO it is still there.
        gone = error.errno in (errno.ENOENT, errno.ENODEV)
        return Outcome(key, entry.path, "gone" if gone else "failed", str(error))


def _restore_at(sys: Sys, dir_fd: int, key: Key, entry: Entry) -> Outcome:
    current = _read(sys, dir_fd, key.file)
    if current == entry.original:
        _give_weight_back(sys, dir_fd, entry)
        return Outcome(key, entry.path, "done", "already at its original")
    if current not in entry.ours:
        return Outcome(key, entry.path, "foreign", f"holds {current!r}, which we did not write")
    return _write_back(sys, dir_fd, key, entry)


def _write_back(sys: Sys, dir_fd: int, key: Key, entry: Entry) -> Outcome:
    try:
        write_interface(sys, dir_fd, key.file, entry.original)
        _give_weight_back(sys, dir_fd, entry)
    except OSError as error:
        if error.errno != errno.ENOSPC or key.file != "cpuset.cpus" or entry.original:
            raise
        try:
            cpus = _widen(sys, dir_fd, key.file)
        except OSError:
            # What the parent lacks says nothing of this cgroup: a restore that failed, not one that is gone.
            raise error from None
        return Outcome(
            key, entry.path, "widened", f"to {cpus}: the kernel keeps a mask while there are tasks"
        )
    return Outcome(key, entry.path, "done", entry.original)


def _widen(sys: Sys, dir_fd: int, file: str) -> str:
    """The nearest to an empty mask, which cpuset refuses while there are tasks (validate_change()).

    All CPUs that could ever be here come to the same as inheriting, also when some are offline now. Where
    that is not to be had, it is what the parent has at the moment. So it is below a root that lacks CPUs that
    are online: a partition has them, and the kernel makes it invalid when a sibling's mask names them.
    """
    with contextlib.suppress(OSError):
        possible = _cpus(sys, POSSIBLE_CPUS)
        if not _has_partition(sys, dir_fd):
            write_interface(sys, dir_fd, file, possible)
            return possible
    effective = _of_parent(sys, dir_fd, "cpuset.cpus.effective")
    write_interface(sys, dir_fd, file, effective)
    return effective


def _has_partition(sys: Sys, dir_fd: int) -> bool:
    """Whether the parent is the root, which has no mask of its own, and is not left all that is online."""
    with contextlib.suppress(OSError):
        _of_parent(sys, dir_fd, "cpuset.cpus")
        return False
    try:
        return _of_parent(sys, dir_fd, "cpuset.cpus.effective") != _cpus(sys, ONLINE_CPUS)
    except OSError:
        return False


def _of_parent(sys: Sys, dir_fd: int, file: str) -> str:
    parent = sys.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return _read(sys, parent, file)
    finally:
        sys.close(parent)


def _cpus(sys: Sys, path: str) -> str:
    fd = sys.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sys.pread(fd, 4096, 0).decode("latin-1").strip()
    finally:
        sys.close(fd)


def _give_weight_back(sys: Sys, dir_fd: int, entry: Entry) -> None:
    """After cpu.idle is left: a restore that died between the two writes finds only this one to do."""
    if entry.weight is not None and _read(sys, dir_fd, "cpu.weight") == RESET_WEIGHT != entry.weight:
        write_interface(sys, dir_fd, "cpu.weight", entry.weight)


def _read(sys: Sys, dir_fd: int, file: str) -> str:
    return read_interface(sys, dir_fd, file).decode("latin-1").strip()


def restore(sys: Sys, root_fd: int, entries: dict[Key, Entry]) -> list[Outcome]:
    """Put everything back, in the kernel's order; what another file stood in the way of, once more."""
    outcomes: dict[Key, Outcome] = {}
    pending = sorted(entries, key=restore_rank)
    for _ in range(2):
        for key in pending:
            outcomes[key] = restore_one(sys, root_fd, key, entries[key])
        pending = [key for key in pending if outcomes[key].result == "failed"]
    return list(outcomes.values())


def restore_from(sys: Sys, directory: str, root: str, boot_id: str) -> list[Outcome]:
    """Restore what the journal in `directory` holds, and keep in it only what failed.

    Raises OSError when the journal exists and cannot be read, or the cgroup root cannot be opened.
    """
    text = _text(directory)
    if not text:
        return []
    entries = load(text, boot_id)
    root_fd = sys.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        outcomes = restore(sys, root_fd, entries)
    finally:
        sys.close(root_fd)
    _keep(sys, directory, boot_id, entries, outcomes)
    return outcomes


def _keep(
    sys: Sys, directory: str, boot_id: str, entries: dict[Key, Entry], outcomes: Iterable[Outcome]
) -> None:
    failed = {outcome.key: entries[outcome.key] for outcome in outcomes if outcome.result == "failed"}
    if not failed:
        os.unlink(os.path.join(directory, FILE))
        return
    journal = Journal(sys, directory, boot_id)
    journal.entries = failed
    journal._rewrite()  # noqa: SLF001 - same module, same object
    journal.close()
