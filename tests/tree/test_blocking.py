"""A lowered memory.high is written by a thread of its own: what the kernel says of it, in time or later."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from treekit import Call, FakeSys, make_tree, text_of

from qosd.blocking import BlockingWriter
from qosd.sys import DIRECTORY

LONG = 10.0


@pytest.fixture
def group(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "be.slice", {"memory.high": "max\n"})


@pytest.fixture
def writer(sys: FakeSys) -> Iterator[BlockingWriter]:
    writer = BlockingWriter(sys)
    yield writer
    writer.close()


@pytest.fixture
def dir_fd(sys: FakeSys, group: Path) -> Iterator[int]:
    fd = sys.open(str(group), DIRECTORY)
    yield fd
    sys.close(fd)


def test_a_write_that_comes_back_is_done_and_leaves_no_fd(
    sys: FakeSys, writer: BlockingWriter, group: Path, dir_fd: int
) -> None:
    assert writer.write(dir_fd, 1, "memory.high", "4096")
    assert text_of(group / "memory.high") == "4096"
    assert sys.fds == {dir_fd}


def test_what_the_kernel_refuses_is_raised_as_it_says_it(
    sys: FakeSys, writer: BlockingWriter, dir_fd: int
) -> None:
    sys.fail(errno.EINVAL, file="memory.high")
    with pytest.raises(OSError, match="refused") as caught:
        writer.write(dir_fd, 1, "memory.high", "4096")
    assert caught.value.errno == errno.EINVAL
    assert sys.fds == {dir_fd}


def test_one_that_hangs_is_not_waited_for_and_the_next_is_busy_until_it_is_back(
    sys: FakeSys, writer: BlockingWriter, group: Path, dir_fd: int
) -> None:
    released, entered = threading.Event(), threading.Event()

    def hang(call: Call) -> None:
        if call.name == "write":
            entered.set()
            assert released.wait(LONG)

    sys.hooks.append(hang)
    assert writer.write(dir_fd, 1, "memory.high", "4096") is False
    assert entered.wait(LONG)
    with pytest.raises(OSError, match="earlier") as caught:
        writer.write(dir_fd, 1, "memory.high", "8192")
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="earlier"):
        writer.write(dir_fd, 2, "memory.high", "8192")
    released.set()
    assert writer.worker.wait_idle(LONG)
    assert writer.write(dir_fd, 1, "memory.high", "8192")
    assert text_of(group / "memory.high") == "8192"
    assert sys.fds == {dir_fd}


def test_without_a_file_there_is_nothing_to_hand_over(
    sys: FakeSys, writer: BlockingWriter, group: Path, dir_fd: int
) -> None:
    os.unlink(group / "memory.high")
    with pytest.raises(FileNotFoundError):
        writer.write(dir_fd, 1, "memory.high", "4096")
    assert sys.fds == {dir_fd}
