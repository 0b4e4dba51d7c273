"""Other daemons that kill when memory runs out, found by their cgroups: neither of them waits for qosd.

Which slices systemd-oomd is told to kill in only systemd can say. The loop asks nobody; `qosctl doctor` does.
"""

from __future__ import annotations

from qosd.cgroupfs import parse_events
from qosd.errors import CgroupGone, Malformed
from qosd.sys import Sys, open_cgroup, read_interface

NAMES = ("systemd-oomd", "earlyoom", "oomd", "nohang", "nohang-desktop")
_AGAIN_TICKS = 30


class OomKillers:
    """Looked for now and then: such a daemon is started once in a boot."""

    def __init__(self, sys: Sys, root_fd: int) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._looked: int | None = None
        self._active: tuple[str, ...] = ()

    def sample(self, tick: int) -> tuple[str, ...]:
        if self._looked is None or tick - self._looked >= _AGAIN_TICKS:
            self._looked = tick
            self._active = tuple(name for name in NAMES if self._is_active(f"system.slice/{name}.service"))
        return self._active

    def _is_active(self, path: str) -> bool:
        try:
            dir_fd = open_cgroup(self._sys, self._root_fd, path)
        except (CgroupGone, OSError):
            return False
        try:
            events = parse_events(read_interface(self._sys, dir_fd, "cgroup.events"), "cgroup.events")
        except (OSError, Malformed):
            return False
        finally:
            self._sys.close(dir_fd)
        return events.get("populated") == 1
