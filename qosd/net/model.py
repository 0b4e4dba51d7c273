"""The frozen values of network shaping: a link, what its classes counted, the shape wanted for it.

Rates are `_bps`, bits per second, the unit of links and of operators; counters are bytes, as the kernel keeps
them.
"""

from __future__ import annotations

import msgspec

from qosd.net.device import LinkSample
from qosd.plan import Reason


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
    be_counted_bytes: int | None = None
    """What BE handed to it, as BPF counts, before the queue; None where that does not run."""

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
