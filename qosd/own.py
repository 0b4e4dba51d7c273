"""Where qosd itself runs now: asked anew before anything that could stop it, since anybody may move it."""

from __future__ import annotations

from qosd.procfs import parse_self_cgroup
from qosd.sys import READ, Sys, read_all

SELF_CGROUP = "/proc/self/cgroup"


def own_cgroup(sys: Sys) -> str | None:
    """The path of our cgroup relative to the cgroup2 mount; None where it cannot be found out."""
    try:
        fd = sys.open(SELF_CGROUP, READ)
    except OSError:
        return None
    try:
        return parse_self_cgroup(read_all(sys, fd))
    except OSError:
        return None
    finally:
        sys.close(fd)
