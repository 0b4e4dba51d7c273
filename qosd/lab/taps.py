"""Tap devices on a bridge, in a network namespace of their own: between them packets of 64 KiB go whole.

QEMU's own hub takes no offloads, so that a guest has to cut and sum every packet itself before it sends it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

_CLONE_NEWNET = 0x4000_0000
_TUNSETIFF = 0x4004_54CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


BRIDGE = "wire"


class Wire(NamedTuple):
    """Descriptors: the namespace and all in it go with the last of them and of the processes in there."""

    ends: list[int]
    namespace: int
    """Where the bridge is a device like any other: whoever enters may be the far end of the guest's cards."""


def wired(count: int) -> Wire:
    """A wire with so many ends. Needs root."""
    with ThreadPoolExecutor(1) as thread:  # a namespace is a thread's, and goes with it
        return thread.submit(_lay, count).result()


def _lay(count: int) -> Wire:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot make a network namespace for the guest's cards")
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("link", "set", BRIDGE, "up")
    ends = []
    for index in range(count):
        name = f"end{index}"
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        ends.append(fd)
        fcntl.ioctl(
            fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        )
        _ip("link", "set", name, "master", BRIDGE, "up")
    return Wire(ends, os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
