"""Takes our qdisc off every device: at start-up, after a crash (ExecStopPost), at the end of a run.

Standard library only, and no journal: the handle and the default class are the mark. The kernel compares the
handle once more when it deletes, so a qdisc that replaced ours in between survives. With the root gone, the
kernel attaches its default again (noqueue, mq, pfifo_fast, fq_codel), which is the only thing we ever
replace.
"""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from qosd.net import rtnl
from qosd.net.device import HANDLE

_GONE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)
"""No root any more, no device any more, another handle now: in each case ours is not there."""


class Undone(NamedTuple):
    removed: tuple[int, ...] = ()
    """ifindexes that had our qdisc and have the kernel's default now."""
    failed: tuple[tuple[int, str], ...] = ()


def remove_all() -> Undone:
    """Delete our root qdisc wherever it is in this network namespace; OSError only if netlink fails."""
    with rtnl.RtnlSocket() as sock:
        removed = []
        failed = []
        for qdisc in rtnl.root_qdiscs(sock):
            if not qdisc.is_ours:
                continue
            try:
                rtnl.delete_root_qdisc(sock, qdisc.ifindex, HANDLE)
            except OSError as error:
                if error.errno not in _GONE:
                    failed.append((qdisc.ifindex, str(error)))
            else:
                removed.append(qdisc.ifindex)
        return Undone(tuple(removed), tuple(failed))


class Said(NamedTuple):
    lines: tuple[str, ...]
    failed: bool


def remove_all_said() -> Said:
    """`remove_all` in words for the log; raises nothing."""
    try:
        undone = remove_all()
    except OSError as error:
        return Said((f"cannot look for our root qdiscs: {error.strerror or error}",), failed=True)
    lines = [
        f"{_name(index)}: our root qdisc is off; the kernel's default is back" for index in undone.removed
    ]
    lines += [f"{_name(index)}: our root qdisc stays: {why}" for index, why in undone.failed]
    return Said(tuple(lines), failed=bool(undone.failed))


def _name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"device {ifindex}"


def remove(ifindex: int) -> bool:
    """Delete our root qdisc from one device; False if it is not (or no longer) there."""
    with rtnl.RtnlSocket() as sock:
        if not any(qdisc.is_ours and qdisc.ifindex == ifindex for qdisc in rtnl.root_qdiscs(sock)):
            return False
        try:
            rtnl.delete_root_qdisc(sock, ifindex, HANDLE)
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise
        return True
