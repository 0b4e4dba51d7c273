"""What a run knows of its uplinks, and what it tells of them."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from qosd.net import links
from qosd.net.device import LinkSample
from qosd.net.model import ClassSample, Shape

_NAMES_KEPT = 8
"""Somebody may ask for an old one; a host that renames without end is not remembered without end."""


class Host(NamedTuple):
    """Where the facts are; tests run in network namespaces, whose sysfs is mounted elsewhere."""

    sysfs_net: str = links.SYSFS_NET
    proc_net: str = "/proc/net"
    cilium_map: str = links.CILIUM_BANDWIDTH_MAP
    allow_kinds: frozenset[str] = frozenset()


class Event(NamedTuple):
    """A line for the log: what happened to an uplink. The daemon decides on the level by `failed`."""

    uplink: str
    text: str
    failed: bool = False


class Held(msgspec.Struct):
    """What this run knows of one uplink. Mutable: it is the actuator's memory, and never leaves it."""

    configured: str
    link: LinkSample
    speed_bps: int
    counter: links.TxCounter
    applied: Shape | None = None
    fights: tuple[int, ...] = ()
    retry_at: int = 0
    failures: int = 0
    error: str | None = None
    drift: str | None = None
    """How the kernel's classes were found to differ from what was applied; None once it was said."""
    reassert: bool = False
    """It was said: to be put back."""
    carriers: frozenset[int] = frozenset()
    """Itself and the devices that send through it: a bridge it is in, vlans on top."""
    read_usec: int | None = None
    """When the classes were last read."""
    formerly: tuple[str, ...] = ()
    """The names it had before its present one, the last ones of this run."""

    def now_is(self, link: LinkSample) -> bool:
        """Take what the kernel says of it now; True if it has another name than before."""
        before, self.link = self.link.name, link
        if before == link.name:
            return False
        others = [name for name in self.formerly if name not in (before, link.name)]
        self.formerly = (*others, before)[-_NAMES_KEPT:]
        return True


class UplinkStatus(msgspec.Struct, frozen=True, gc=False):
    """For `qosctl status`, `explain` and the metrics."""

    name: str
    ifindex: int
    operstate: str
    speed_bps: int
    shape: Shape | None
    classes: tuple[ClassSample, ...] | None
    error: str | None = None
    read_usec: int | None = None
    formerly: tuple[str, ...] = ()
