"""A workload's cgroup between two ticks, by the fds that the sensor keeps of it.

LS waits meanwhile: each path that is walked is a dozen calls, and a kept fd is none. What nothing is kept of
is opened by its path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from qosd.model import CgroupId, CgroupSample
from qosd.sys import Sys, open_same_cgroup, read_interface

_SIZE = 4096


class Root(Protocol):
    @property
    def dir_fd(self) -> int: ...

    def kept_fd(self, file: str) -> int | None: ...


class Look:
    def __init__(self, sys: Sys, root_fd: int, root: Callable[[CgroupId], Root | None]) -> None:
        self.sys = sys
        self.root_fd = root_fd
        self._root = root

    def directory(self, cgroup_id: CgroupId) -> int | None:
        """The kept fd, which is not the caller's to close. Gone cgroups say so themselves, by ENODEV."""
        root = self._root(cgroup_id)
        return None if root is None else root.dir_fd

    def file(self, sample: CgroupSample, file: str) -> bytes:
        """What it says right now. Raises OSError, and CgroupGone where another cgroup has the path now."""
        root = self._root(sample.id)
        fd = None if root is None else root.kept_fd(file)
        if fd is not None:
            return self.sys.pread(fd, _SIZE, 0)
        dir_fd = open_same_cgroup(self.sys, self.root_fd, sample.path, sample.id)
        try:
            return read_interface(self.sys, dir_fd, file)
        finally:
            self.sys.close(dir_fd)
