"""PSI triggers on the LS workloads: the kernel says within a window that their tasks wait.

Documentation/accounting/psi.rst, "Monitoring for pressure thresholds". What it does not say, and what is done
about it:

* Windows under 2 s want CAP_SYS_RESOURCE (without it only multiples of 2 s are taken, before Linux 6.5 none);
  6.1 wants at least 500 ms. Both are EINVAL, so each window is tried, then the next longer one.
* The kernel puts a NUL over the last byte that it is given: the newline is there to be lost.
* An fd holds one trigger (EBUSY for the second), so each one gets an fd of its own, and is written to once.
* poll() says POLLERR at once, and for ever, when the cgroup is gone: then the fd is closed.
"""

from __future__ import annotations

import errno
import os
import select
from typing import NamedTuple

from qosd.errors import CgroupGone
from qosd.model import Breach, CgroupId, Snapshot, Tier
from qosd.schema.fast import Fast
from qosd.sys import Sys, open_interface, open_same_cgroup

FILE = "cpu.pressure"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WINDOWS = (500_000, 2_000_000)
"""What Linux 6.1 takes, and what a daemon without CAP_SYS_RESOURCE gets."""
_RETRY_USEC = 60_000_000
_WHY = {
    errno.ENOENT: "no pressure file: the kernel has no PSI (boot parameter psi=1)",
    errno.EOPNOTSUPP: "PSI is off: boot parameter psi=1, or cgroup.pressure is 0",
    errno.EACCES: "no permission for the pressure file",
    errno.EPERM: "the kernel wants CAP_SYS_RESOURCE for a trigger",
    errno.EINVAL: "the kernel takes no window of 2 s or less",
}


def why(error: OSError) -> str:
    """What the kernel means by refusing a trigger."""
    return _WHY.get(error.errno or 0, str(error))


class Armed(NamedTuple):
    """A trigger in force."""

    cgroup_id: CgroupId
    path: str
    fd: int
    threshold_usec: int
    window_usec: int


def format_trigger(threshold_usec: int, window_usec: int) -> bytes:
    return b"some %d %d\n" % (threshold_usec, window_usec)


def windows(fast: Fast) -> tuple[int, ...]:
    """The configured window and what may be taken where it is not."""
    return (int(fast.window), *(window for window in _WINDOWS if window > fast.window))


def arm(sys: Sys, dir_fd: int, fast: Fast, file: str = FILE) -> tuple[int, int, int]:
    """Open a pressure file and set a trigger: the fd, threshold and window. Raises OSError."""
    refused: OSError | None = None
    for window_usec in windows(fast):
        threshold_usec = max(round(window_usec * fast.threshold_pct / 100), 1)
        fd = open_interface(sys, dir_fd, file, _FLAGS)
        try:
            sys.write(fd, format_trigger(threshold_usec, window_usec))
        except OSError as error:
            sys.close(fd)
            if error.errno != errno.EINVAL:
                raise
            refused = error
        else:
            return fd, threshold_usec, window_usec
    raise refused or OSError(errno.EINVAL, os.strerror(errno.EINVAL))


class Triggers:
    """Every trigger on one file of the LS workloads, in the epoll of the daemon's own loop.

    Not in one of their own inside that: asking a trigger clears its event (psi_trigger_poll()), and the outer
    epoll asks before the inner one could.
    """

    def __init__(self, sys: Sys, root_fd: int, file: str = FILE) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._file = file
        self.epoll: select.epoll | None = None
        """Where to wait; without one no trigger is set."""
        self._fast: Fast | None = None
        self._armed: dict[int, Armed] = {}
        self._refused: dict[CgroupId, int] = {}
        self.why_not: dict[str, str] = {}
        """LS workloads without a trigger, with the reason."""

    def owns(self, fd: int) -> bool:
        return fd in self._armed

    @property
    def armed(self) -> tuple[Armed, ...]:
        return tuple(self._armed.values())

    def follow(self, fast: Fast, now: Snapshot) -> None:
        """Have a trigger on each LS workload of the snapshot, and on nothing else."""
        if fast != self._fast:
            self.disarm()
            self._fast = fast
        if self.epoll is None:
            return
        wanted = {workload.id: workload.path for workload in now.tier(Tier.LS)}
        for armed in [armed for armed in self.armed if armed.cgroup_id not in wanted]:
            self._drop(armed)
        have = {armed.cgroup_id for armed in self.armed}
        self.why_not = {path: said for path, said in self.why_not.items() if path in wanted.values()}
        for cgroup_id, path in wanted.items():
            if cgroup_id not in have and self._refused.get(cgroup_id, 0) <= now.monotonic_usec:
                self._take(fast, cgroup_id, path, now.monotonic_usec)

    def on_event(self, fd: int, events: int, at_usec: int) -> Breach | None:
        """What the kernel reports; None for a cgroup that went away, whose trigger is let go."""
        armed = self._armed[fd]
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self._drop(armed)
            return None
        usec = float(armed.threshold_usec)
        signal = f"{self._file} some"
        return Breach(armed.cgroup_id, signal, usec, usec, at_usec, window_usec=armed.window_usec)

    def disarm(self) -> None:
        """Take every trigger off: closing the fd does."""
        for armed in self.armed:
            self._drop(armed)
        self._refused = {}
        self.why_not = {}

    def _take(self, fast: Fast, cgroup_id: CgroupId, path: str, now_usec: int) -> None:
        if len(self._armed) >= fast.max_triggers:
            self.why_not[path] = f"fast.max_triggers = {fast.max_triggers}"
            return
        try:
            self._arm_at(fast, cgroup_id, path)
        except CgroupGone:
            return
        except OSError as error:
            self._refused[cgroup_id] = now_usec + _RETRY_USEC
            self.why_not[path] = why(error)
        else:
            self.why_not.pop(path, None)

    def _arm_at(self, fast: Fast, cgroup_id: CgroupId, path: str) -> None:
        dir_fd = open_same_cgroup(self._sys, self._root_fd, path, cgroup_id)
        try:
            fd, threshold_usec, window_usec = arm(self._sys, dir_fd, fast, self._file)
        finally:
            self._sys.close(dir_fd)
        try:
            assert self.epoll is not None  # noqa: S101 - follow() looked
            self.epoll.register(fd, select.EPOLLPRI)
        except OSError:
            self._sys.close(fd)
            raise
        self._armed[fd] = Armed(cgroup_id, path, fd, threshold_usec, window_usec)

    def _drop(self, armed: Armed) -> None:
        self._sys.close(armed.fd)  # which takes it out of the epoll
        del self._armed[armed.fd]
