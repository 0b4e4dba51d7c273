"""The frozen values of network shaping: a link, what its classes counted, the shape wanted for it.

Rates are `_bps`, bits per second, the unit of links and of operators; counters are bytes, as the kernel keeps
them.
"""

from __future__ import annotations

import msgspec

from qosd.plan import Reason

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
FIRST_WORKLOAD_CLASS = HANDLE | 0x21
MAX_WORKLOAD_CLASSES = 200


class LinkSample(msgspec.Struct, frozen=True, gc=False):
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


class QdiscSample(msgspec.Struct, frozen=True, gc=False):
    """The root qdisc of a device. Major 0 means the kernel attached it by default."""

    ifindex: int
    kind: str
    handle: int
    default_class: int | None = None
    """HTB's `default`, None for other kinds."""

    @property
    def is_ours(self) -> bool:
        return self.kind == "htb" and self.handle == HANDLE and self.default_class == LS_CLASS & 0xFFFF


class ClassSample(msgspec.Struct, frozen=True, gc=False):
    classid: int
    bytes: int
    packets: int
    drops: int
    rate_bps: int
    ceil_bps: int
    backlog: int = 0
    """Bytes that wait in the class now."""


class UplinkSample(msgspec.Struct, frozen=True, gc=False):
    """An uplink in one tick. `classes` is None in ticks that did not ask for them: unknown, not empty."""

    link: LinkSample
    speed_bps: int
    tx_bytes: int | None
    classes: tuple[ClassSample, ...] | None = None

    def class_bytes(self, classid: int) -> int | None:
        for sample in self.classes or ():
            if sample.classid == classid:
                return sample.bytes
        return None


class NetSample(msgspec.Struct, frozen=True, gc=False):
    monotonic_usec: int
    uplinks: tuple[UplinkSample, ...] = ()

    def uplink(self, ifindex: int) -> UplinkSample | None:
        for uplink in self.uplinks:
            if uplink.link.ifindex == ifindex:
                return uplink
        return None


class Leaf(msgspec.Struct, frozen=True, gc=False):
    """The class of one BE workload that has a limit of its own."""

    workload: str
    classid: int
    ceil_bps: int


class Shape(msgspec.Struct, frozen=True, gc=False):
    """Everything wanted on one uplink: yielded whole every tick, compared with what was applied."""

    ifindex: int
    name: str
    speed_bps: int
    floor_bps: int
    ceil_bps: int
    reason: Reason
    leaves: tuple[Leaf, ...] = ()
    dscp_be: int | None = None
    dscp_ls: int | None = None
