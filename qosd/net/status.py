"""Shaping as `qosctl` and the metrics see it: frozen values that msgspec can write and read. Pure."""

from __future__ import annotations

import msgspec

from qosd.net.device import BE_CLASS, BE_TIER, LINK_CLASS, LS_CLASS, workload_class
from qosd.plan import Reason

_FIXED_CLASSES = {LINK_CLASS: "link", BE_TIER: "be-tier", LS_CLASS: "ls", BE_CLASS: "be"}


class ClassStatus(msgspec.Struct, frozen=True):
    """A class as the kernel had it when it was last read (`classes_age_ms`)."""

    id: str
    """As `tc` writes it: a001:20."""
    name: str
    """link, ls, be-tier (all of BE), be (BE without a limit of its own), or be:NAME of a workload."""
    rate_bps: int
    ceil_bps: int
    sent_bytes: int
    packets: int
    drops: int
    backlog_bytes: int


class UplinkView(msgspec.Struct, frozen=True):
    name: str
    ifindex: int
    operstate: str
    link_bps: int
    shaped: bool
    be_ceiling_bps: int | None
    """In force on a shaped uplink, else what it would be."""
    total_bps: float | None
    ls_bps: float | None
    """With the system and everything that nobody classified."""
    classes: tuple[ClassStatus, ...]
    reason: Reason | None
    error: str | None = None
    classes_age_ms: int | None = None
    """Since the classes were read: three times a minute, unless something moves."""
    be_bps: float | None = None
    """The rest of the total."""
    formerly: tuple[str, ...] = ()
    """The names it had earlier in this run; the last is the latest."""


class EgressStatus(msgspec.Struct, frozen=True):
    """What one workload's sockets sent, over all devices, since qosd began to count."""

    path: str
    workload: str
    tier: str
    class_id: str | None
    """None: in LS's class, as everything unclassified."""
    egress_max_bps: int | None
    sent_bytes: int
    packets: int
    bps: float | None


class IngressStatus(msgspec.Struct, frozen=True):
    """What came for BE's sockets since `[net] be_ingress_max` was set."""

    max_bps: int
    bps: float | None
    received_bytes: int
    dropped_bytes: int
    dropped_packets: int
    dropped_bps: float | None


class NetView(msgspec.Struct, frozen=True):
    uplinks: tuple[UplinkView, ...]
    refused: dict[str, str]
    """Listed in `[net] uplinks` and not shaped, with the reason."""
    degraded: tuple[str, ...]
    """What of shaping does not work here, and why."""
    egress: tuple[EgressStatus, ...]
    netlink_requests: int
    be_ingress: IngressStatus | None = None
    """None without a limit, and while it is not enforced."""


def class_id(number: int) -> str:
    return f"{number >> 16:x}:{number & 0xFFFF:x}"


def class_name(number: int, limits: tuple[tuple[str, int], ...]) -> str:
    own = {workload_class(index): f"be:{name}" for index, (name, _rate) in enumerate(limits)}
    return _FIXED_CLASSES.get(number) or own.get(number, class_id(number))


def bit_rate(bps: float | None) -> str:
    """`200 Mbit/s`; three significant digits."""
    if bps is None:
        return "-"
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bps >= factor:
            return f"{bps / factor:.3g} {unit}" if bps < 1000 * factor else f"{bps / factor:.0f} {unit}"
    return f"{bps:.0f} bit/s"
