"""A device and its root qdisc, and the numbers that mark ours. Standard library only: see undo.py."""

from __future__ import annotations

from typing import NamedTuple

HANDLE = 0xA001_0000
"""Our major number on every uplink: what has it is ours to delete, what has not is never touched."""

LINK_CLASS = HANDLE | 0x1
"""Inner class that both tiers borrow from. HTB classes without a parent cannot send beyond their `rate`."""
BE_TIER = HANDLE | 0x2
"""Inner class whose `ceil` is the BE ceiling: the one number that changes from tick to tick."""
LS_CLASS = HANDLE | 0x10
"""Default class: LS, the system, and whatever nobody classified."""
BE_CLASS = HANDLE | 0x20
"""Leaf of every BE workload without a class of its own."""
WORKLOAD_CLASS_STEP = 0x10
"""Workloads with a class of their own have a001:30, a001:40, ...: devices that we do not shape look at the
low four bits of skb->priority (pfifo_fast, mqprio), and 0 is their ordinary traffic."""
MAX_WORKLOAD_CLASSES = 200


def workload_class(index: int) -> int:
    return BE_CLASS + WORKLOAD_CLASS_STEP * (1 + index)


class LinkSample(NamedTuple):
    """One network device, as RTM_GETLINK and sysfs tell it."""

    ifindex: int
    name: str
    kind: str | None = None
    """IFLA_INFO_KIND: veth, bridge, bond, vlan, ...; None for a plain device."""
    physical: bool = False
    """Backed by a device on a bus."""
    loopback: bool = False
    operstate: str = "unknown"
    carrier: bool | None = None
    speed_mbit: int | None = None
    """None where the driver does not know (virtio) or the link is down."""
    tx_queues: int = 1
    master: int | None = None
    slave_kind: str | None = None
    """IFLA_INFO_SLAVE_KIND: the kind of the master this device is enslaved to."""
    lower: int | None = None
    """IFLA_LINK: of a vlan, the device that carries it; of a veth, the other end."""


class ClassNews(NamedTuple):
    """What the kernel told of a class: made, changed or deleted."""

    classid: int
    rates_bps: tuple[int, int] | None
    """(rate, ceil); None when it was deleted."""


class QdiscSample(NamedTuple):
    """The root qdisc of a device. Major 0 means the kernel attached it by default."""

    ifindex: int
    kind: str
    handle: int
    default_class: int | None = None
    """HTB's `default`, None for other kinds."""

    @property
    def is_ours(self) -> bool:
        return self.kind == "htb" and self.handle == HANDLE and self.default_class == LS_CLASS & 0xFFFF
