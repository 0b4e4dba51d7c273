"""The one-shot effects: SIGTERM to what is in a cgroup, or one write to cgroup.kill. Nothing else kills.

cgroup.kill is one write for the whole subtree, fork bombs included, and knows no pids that somebody else
may have by then (`cgroup_kill_write()` in kernel/cgroup/cgroup.c). The rules about who are asked again here.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import NamedTuple

from qosd.act import protects
from qosd.cgroupfs import parse_events
from qosd.errors import CgroupGone, Malformed
from qosd.interference.kills import Effect, Means, Spent
from qosd.interference.victims import Candidate
from qosd.model import CgroupId
from qosd.own import own_cgroup
from qosd.spent import SpentFile
from qosd.sys import DIRECTORY, Sys, open_same_cgroup, read_interface, write_interface

_THREADED = "threaded"
_MAX_DEPTH = 64


class Done(NamedTuple):
    """How one effect ended: signalled, killed, gone, empty, refused, failed."""

    effect: Effect
    result: str
    detail: str = ""


class Refused(Exception):  # noqa: N818 - it is no error
    """What was true when it was decided is no longer; nothing was done."""


class Target(NamedTuple):
    dir_fd: int
    path: str


class Killer:
    """Holds the budget on file, and the pids that were seen in LS while something was about to be killed."""

    def __init__(self, sys: Sys, root_fd: int, directory: str, protected: tuple[str, ...]) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._protected = protected
        self.spent = SpentFile(sys, directory)
        self._ls_pids: frozenset[int] = frozenset()

    def populated(self, victim: Candidate) -> bool | None:
        """Whether something is in there; None: the cgroup is gone, or another one."""
        try:
            dir_fd = open_same_cgroup(self._sys, self._root_fd, victim.path, victim.id)
        except (CgroupGone, OSError):
            return None
        try:
            return self._is_populated(dir_fd)
        except (OSError, Malformed):
            return None
        finally:
            self._sys.close(dir_fd)

    def remember(self, ls: tuple[tuple[str, CgroupId], ...]) -> None:
        """Who is in LS now: nobody of these is killed, wherever it is moved until then."""
        pids: set[int] = set()
        for path, cgroup_id in ls:
            try:
                dir_fd = open_same_cgroup(self._sys, self._root_fd, path, cgroup_id)
            except (CgroupGone, OSError):
                continue
            try:
                pids |= self._members(dir_fd)
            except OSError:
                continue
            finally:
                self._sys.close(dir_fd)
        self._ls_pids = frozenset(pids)

    def act(self, effect: Effect, spend: Spent | None) -> Done:
        """Do it, or say why not. `spend` goes on file before anything happens."""
        try:
            target = self._open(effect.victim)
        except CgroupGone:
            return Done(effect, "gone")
        except Refused as refused:
            return Done(effect, "refused", str(refused))
        except OSError as error:
            return Done(effect, "failed", str(error))
        try:
            return self._act_on(effect, target, spend)
        except Refused as refused:
            return Done(effect, "refused", str(refused))
        except OSError as error:
            gone = error.errno in (errno.ENOENT, errno.ENODEV)
            return Done(effect, "gone" if gone else "failed", str(error))
        finally:
            self._sys.close(target.dir_fd)

    def _act_on(self, effect: Effect, target: Target, spend: Spent | None) -> Done:
        self._refuse_path(target.path)
        if not self._is_populated(target.dir_fd):
            return Done(effect, "empty")
        members = self._members(target.dir_fd)
        self._refuse_members(members)
        if spend is not None:
            try:
                self.spent.add(spend)
            except OSError as error:
                raise Refused(f"the budget cannot be put on file: {error}") from None
        if effect.means is Means.TERM:
            return Done(effect, "signalled", f"{self._signal(target.dir_fd, members)} processes")
        write_interface(self._sys, target.dir_fd, "cgroup.kill", "1")
        return Done(effect, "killed", f"{len(members)} processes seen, in {target.path}")

    def _open(self, victim: Candidate) -> Target:
        """The victim, or the root of the threaded domain it is in: a threaded cgroup holds threads only."""
        dir_fd = open_same_cgroup(self._sys, self._root_fd, victim.path, victim.id)
        path = victim.path
        try:
            while self._type(dir_fd) == _THREADED:
                if path == victim.root:
                    raise Refused(f"{path} is threaded, and its domain is above the workload")  # noqa: TRY301
                above = self._sys.open("..", DIRECTORY, dir_fd=dir_fd)
                self._sys.close(dir_fd)
                dir_fd, path = above, path.rpartition("/")[0]
        except (OSError, Refused):
            self._sys.close(dir_fd)
            raise
        return Target(dir_fd, path)

    def _type(self, dir_fd: int) -> str:
        return read_interface(self._sys, dir_fd, "cgroup.type").decode("latin-1").strip()

    def _refuse_path(self, path: str) -> None:
        own = own_cgroup(self._sys)
        if own is None:
            raise Refused("qosd cannot find out which cgroup it is in")
        if protects((*self._protected, own), path):
            raise Refused(f"{path} is, holds or lies in a protected cgroup")

    def _refuse_members(self, members: set[int]) -> None:
        if os.getpid() in members:
            raise Refused("qosd itself is in there")
        moved = members & self._ls_pids
        if moved:
            raise Refused(f"process {min(moved)} was latency-sensitive a moment ago")

    def _is_populated(self, dir_fd: int) -> bool:
        raw = read_interface(self._sys, dir_fd, "cgroup.events")
        return parse_events(raw, "cgroup.events").get("populated") != 0

    def _members(self, dir_fd: int, depth: int = _MAX_DEPTH) -> set[int]:
        """The processes of the whole subtree. A threaded cgroup below has none of its own (EOPNOTSUPP)."""
        pids: set[int] = set()
        try:
            pids.update(map(int, read_interface(self._sys, dir_fd, "cgroup.procs").split()))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENODEV, errno.ENOENT):
                raise
        if depth == 0:
            return pids
        try:
            with self._sys.scandir(dir_fd) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return pids
        for name in names:
            pids |= self._members_below(dir_fd, name, depth)
        return pids

    def _members_below(self, dir_fd: int, name: str, depth: int) -> set[int]:
        try:
            below = self._sys.open(name, DIRECTORY, dir_fd=dir_fd)
        except OSError:
            return set()
        try:
            return self._members(below, depth - 1)
        finally:
            self._sys.close(below)

    def _signal(self, dir_fd: int, members: set[int]) -> int:
        """SIGTERM by pidfd: opened first, then asked again who is a member, so that no number is reused."""
        pidfds: dict[int, int] = {}
        try:
            for pid in members:
                try:
                    pidfds[pid] = self._sys.pidfd_open(pid)
                except ProcessLookupError:
                    continue
            still = self._members(dir_fd)
            return sum(self._terminate(pidfd) for pid, pidfd in pidfds.items() if pid in still)
        finally:
            for pidfd in pidfds.values():
                self._sys.close(pidfd)

    def _terminate(self, pidfd: int) -> bool:
        try:
            self._sys.pidfd_send_signal(pidfd, signal.SIGTERM)
        except ProcessLookupError:
            return False
        return True
