"""The one seam to the kernel: every open, read, write and clock of the daemon goes through `Sys`.

Tests replace single calls to record them, to make them fail, or to move the clock. Standard library only,
since the restore that runs after a crash uses it too.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from qosd.errors import CgroupGone
from qosd.files import interface_file, line_of, line_to_write

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO planted under a delegated cgroup's name must not hang the tick.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Sys:
    """System calls by their own names; attributes, so that the real ones cost nothing extra."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    pread = staticmethod(os.pread)
    write = staticmethod(os.write)
    ftruncate = staticmethod(os.ftruncate)
    fstat = staticmethod(os.fstat)
    stat = staticmethod(os.stat)
    rename = staticmethod(os.rename)
    pidfd_open = staticmethod(os.pidfd_open)
    pidfd_send_signal = staticmethod(signal.pidfd_send_signal)
    monotonic_ns = staticmethod(time.monotonic_ns)
    time = staticmethod(time.time)

    def scandir(self, fd: int) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        return os.scandir(fd)

    def boottime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def open_cgroup(sys: Sys, root_fd: int, path: str) -> int:
    """Open a cgroup's directory component by component.

    One openat per component never meets PATH_MAX (cgroups nest 400 deep and more) and never follows a link.
    Raises FileNotFoundError and its kin as the kernel gives them.
    """
    fd = sys.open(".", DIRECTORY, dir_fd=root_fd)
    for name in path.split("/"):
        if not name:
            continue
        try:
            child = sys.open(name, DIRECTORY, dir_fd=fd)
        finally:
            sys.close(fd)
        fd = child
    return fd


def open_same_cgroup(sys: Sys, root_fd: int, path: str, cgroup_id: int) -> int:
    """Open the cgroup at `path` if it still is the one with this inode, else raise `CgroupGone`."""
    try:
        fd = open_cgroup(sys, root_fd, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CgroupGone(path) from error
    try:
        same = sys.fstat(fd).st_ino == cgroup_id
    except OSError:
        sys.close(fd)
        raise
    if not same:
        sys.close(fd)
        raise CgroupGone(path)
    return fd


def open_interface(sys: Sys, dir_fd: int, file: str, flags: int = READ) -> int:
    """Open an interface file if it is one: a child cgroup may be called `cpu.max`, a fake may be a FIFO.

    Raises FileNotFoundError when the name is something else than a regular file.
    """
    fd = sys.open(file, flags, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(sys.fstat(fd).st_mode):
            raise FileNotFoundError(2, "not an interface file", file)
    except OSError:
        sys.close(fd)
        raise
    return fd


def read_all(sys: Sys, fd: int) -> bytes:
    """The whole of an interface file: seq_files hand out a page at a time."""
    chunks = []
    offset = 0
    while chunk := sys.pread(fd, 4096, offset):
        chunks.append(chunk)
        offset += len(chunk)
    return b"".join(chunks)


def read_interface(sys: Sys, dir_fd: int, file: str) -> bytes:
    """Open, read and close one interface file, or a line of it; errors as the kernel gives them."""
    fd = open_interface(sys, dir_fd, interface_file(file))
    try:
        whole = read_all(sys, fd)
    finally:
        sys.close(fd)
    return line_of(file, whole.decode("latin-1")).encode("latin-1")


def write_interface(sys: Sys, dir_fd: int, file: str, text: str) -> None:
    """Write one value in one write(2), as the kernel demands; a short write is an OSError.

    The newline is part of the value: a bare "" would be no write at all, and pressure files overwrite
    the last byte they are given. EINTR is retried by Python itself (PEP 475).
    """
    fd = open_interface(sys, dir_fd, interface_file(file), WRITE)
    try:
        data = line_to_write(file, text).encode("utf-8", "surrogateescape") + b"\n"
        # Only regular files of a test tree have a length to cut; kernfs accepts and ignores it.
        sys.ftruncate(fd, 0)
        written = sys.write(fd, data)
        if written != len(data):
            raise OSError(5, f"short write ({written} of {len(data)} bytes)", file)
    finally:
        sys.close(fd)
