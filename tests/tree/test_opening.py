"""Opening, reading and writing interface files through `Sys`, where something else is in their place."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path

import pytest
from treekit import make_tree

from qosd.sys import DIRECTORY, READ, Sys, open_cgroup, open_interface, read_interface, write_interface


def drain(fd: int) -> None:
    """All that a pipe holds."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 1 << 20)


class TestOpening:
    """Only what the cgroup directory itself holds as a regular file is an interface file."""

    def group(self, tmp_path: Path) -> int:
        make_tree(tmp_path / "g", {"cpu.max": {}, "cpu.weight": "100\n"})
        os.mkfifo(tmp_path / "g/cpu.idle")
        os.symlink("/etc/shadow", tmp_path / "g/cpuset.cpus")
        os.symlink(tmp_path / "g", tmp_path / "link")
        return open_cgroup(Sys(), os.open(tmp_path, DIRECTORY), "g")

    @pytest.mark.parametrize(
        "file", ["cpu.max", "cpu.idle", "cpuset.cpus"], ids=["directory", "fifo", "symlink"]
    )
    def test_what_is_no_interface_file_is_neither_read_nor_written_and_never_hangs(
        self, tmp_path: Path, file: str
    ) -> None:
        fd = self.group(tmp_path)
        opened = len(os.listdir("/proc/self/fd"))

        with pytest.raises(OSError, match=file) as read:
            read_interface(Sys(), fd, file)
        with pytest.raises(OSError, match=file) as written:
            write_interface(Sys(), fd, file, "1")

        refusals = {errno.ENOENT, errno.EISDIR, errno.ELOOP, errno.ENXIO}
        assert {read.value.errno, written.value.errno} <= refusals
        assert len(os.listdir("/proc/self/fd")) == opened

    def test_a_symlink_in_the_path_is_not_followed(self, tmp_path: Path) -> None:
        self.group(tmp_path)

        with pytest.raises(OSError, match="link"):
            open_cgroup(Sys(), os.open(tmp_path, DIRECTORY), "link")

    def test_a_short_write_is_an_error(self, tmp_path: Path) -> None:
        class Short(Sys):
            def write(self, fd: int, data: bytes) -> int:
                return os.write(fd, data[:1])

        with pytest.raises(OSError, match="short write"):
            write_interface(Short(), self.group(tmp_path), "cpu.weight", "50")

    def test_a_signal_in_the_middle_of_a_write_cuts_it_short_for_nobody(self) -> None:
        """EINTR is tried again, as long as it takes: here, until a full pipe is read."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        heard: list[int] = []

        def hear(*_: object) -> None:
            heard.append(1)
            if len(heard) >= 3:
                drain(reader)

        before = signal.signal(signal.SIGALRM, hear)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        try:
            assert Sys().write(writer, b"50\n") == 3
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        os.close(reader)
        os.close(writer)
        assert len(heard) >= 3

    def test_a_value_ends_with_a_newline_in_one_write(self, tmp_path: Path) -> None:
        fd = self.group(tmp_path)
        write_interface(Sys(), fd, "cpu.weight", "5")

        assert (tmp_path / "g/cpu.weight").read_bytes() == b"5\n"
        assert os.read(open_interface(Sys(), fd, "cpu.weight", READ), 10) == b"5\n"
