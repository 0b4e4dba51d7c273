"""HTB on the uplinks through pyroute2, which this module alone imports, and only when a connection is opened.

    a001:   htb, default 10
     └ a001:1   rate = ceil = link
        ├ a001:10  LS, the system, everything unclassified: rate link - floor, ceil link, prio 0
        └ a001:2   the BE tier     rate floor, ceil = BE ceiling (what the governor moves)
           ├ a001:20  BE workloads, prio 7
           └ a001:30… BE workloads with egress_max, prio 7, ceil = egress_max

Both tiers need the common parent: HTB lets a class borrow beyond its `rate` from a parent only. A class with
children takes no packets (htb_classify() sends what selects one to the default class), so BE packets select
a001:20, which is always a leaf. LS's own rate leaves out the floor: a class within its rate is served before
all that borrow, so LS at full link speed cannot starve BE below its floor, and up to there HTB serves prio 0
first.
"""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from qosd.net import undo
from qosd.net.device import BE_CLASS, BE_TIER, HANDLE, LINK_CLASS, LS_CLASS
from qosd.net.model import ClassSample, Shape

if TYPE_CHECKING:
    from collections.abc import Callable

TC_H_ROOT = 0xFFFF_FFFF
_MIN_BURST = 64 * 1024  # the largest GSO packet: a smaller bucket would go into debt with every one of them
_BURST_SECONDS = 0.001  # more than a timer slack; pyroute2's own default is 0 above 13 Gbit/s
_BE_BURST_SECONDS = (
    0.01  # on a busy host senders and softirqs wait for a CPU some milliseconds, see docs/network.md
)
_QUANTUM = 60_000  # the kernel warns above 200000 and below 1000
_MIN_RATE_BPS = 8_000  # a largest packet takes a minute at it; much less overflows the kernel's 32-bit bucket
_LS_PRIO, _BE_PRIO = 0, 7
_REQUESTS_PER_SOCKET = 20_000  # pyroute2 0.9 runs out of sequence numbers after some 100 000 on one socket
_U32_BYTES_PER_SECOND = (1 << 32) - 1


class Fault(enum.Enum):
    """Why the kernel refused, as far as it changes what to do."""

    MISSING = "the kernel has no such qdisc"
    GONE = "the device or class is gone"
    BUSY = "something else is there already"
    DENIED = "not permitted"
    OTHER = "refused"


_FAULTS = {
    errno.ENODEV: Fault.GONE,
    errno.ENXIO: Fault.GONE,
    errno.EEXIST: Fault.BUSY,
    errno.EPERM: Fault.DENIED,
    errno.EACCES: Fault.DENIED,
}


class TcError(Exception):
    def __init__(self, fault: Fault, what: str, code: int) -> None:
        super().__init__(f"{what}: {fault.value} ({errno.errorcode.get(code, code)})")
        self.fault = fault
        self.code = code


class Request(msgspec.Struct, frozen=True, gc=False):
    """One netlink request in pyroute2's words: pure, so that tests can read what would be sent."""

    command: str
    kind: str
    ifindex: int
    handle: int
    options: tuple[tuple[str, int], ...] = ()
    optional: bool = False
    """A refusal for want of the kernel module is no failure: fq_codel leaves."""


def burst_bytes(bps: int, seconds: float = _BURST_SECONDS) -> int:
    """The bucket for a rate: one largest packet, or one millisecond's worth."""
    return max(_MIN_BURST, int(bps / 8 * seconds))


def class_options(parent: int, rate_bps: int, ceil_bps: int, prio: int) -> tuple[tuple[str, int], ...]:
    """Options of an HTB class; rates become bytes per second, which HTB counts in.

    Above 2^32 B/s (34 Gbit/s) pyroute2 adds TCA_HTB_RATE64 and TCA_HTB_CEIL64. BE's bucket up to its ceil is
    deeper, so that it makes up for the time it waited for a CPU. It cannot flood the device with that: all of
    BE borrows from the link class, whose bucket is the small one.
    """
    ceil_seconds = _BE_BURST_SECONDS if prio == _BE_PRIO else _BURST_SECONDS
    rate_bps = max(rate_bps, _MIN_RATE_BPS)
    ceil_bps = max(ceil_bps, rate_bps)
    return (
        ("parent", parent),
        ("rate", rate_bps // 8),
        ("ceil", ceil_bps // 8),
        ("burst", burst_bytes(rate_bps)),
        ("cburst", burst_bytes(ceil_bps, ceil_seconds)),
        ("quantum", _QUANTUM),
        ("prio", prio),
    )


def build_requests(shape: Shape) -> tuple[Request, ...]:
    """Everything from a bare device to the whole tree."""
    root = Request(
        "add", "htb", shape.ifindex, HANDLE, (("parent", TC_H_ROOT), ("default", LS_CLASS & 0xFFFF))
    )
    classes = (*class_requests("add-class", shape), *leaf_requests("add-class", shape))
    queues = tuple(
        fq_codel_request(shape.ifindex, request.handle)
        for request in classes
        if request.handle not in (LINK_CLASS, BE_TIER)
    )
    return (root, *classes, *queues)


def class_requests(command: str, shape: Shape) -> tuple[Request, ...]:
    """The four classes every uplink has."""
    link, floor = shape.speed_bps, shape.floor_bps
    leaf_floor = floor // (1 + len(shape.leaves))
    wanted = (
        (LINK_CLASS, class_options(HANDLE, link, link, _LS_PRIO)),
        (LS_CLASS, class_options(LINK_CLASS, link - floor, link, _LS_PRIO)),
        (BE_TIER, class_options(LINK_CLASS, floor, shape.ceil_bps, _BE_PRIO)),
        (BE_CLASS, class_options(BE_TIER, leaf_floor, link, _BE_PRIO)),
    )
    return tuple(Request(command, "htb", shape.ifindex, classid, options) for classid, options in wanted)


def leaf_requests(command: str, shape: Shape) -> tuple[Request, ...]:
    """One class per BE workload with an egress_max."""
    leaf_floor = shape.floor_bps // (1 + len(shape.leaves))
    return tuple(
        Request(
            command,
            "htb",
            shape.ifindex,
            leaf.classid,
            class_options(BE_TIER, min(leaf_floor, leaf.ceil_bps), leaf.ceil_bps, _BE_PRIO),
        )
        for leaf in shape.leaves
    )


def fq_codel_request(ifindex: int, classid: int) -> Request:
    """A leaf queue with a handle of our own, a0NN:, so that two dumps of the same tree are equal."""
    handle = (0xA000 | (classid & 0xFFF)) << 16
    return Request("add", "fq_codel", ifindex, handle, (("parent", classid),), optional=True)


def change_requests(applied: Shape, wanted: Shape) -> tuple[Request, ...] | None:
    """What leads from one shape to the other in place; None if the tree must be built anew.

    In the steady case nothing; in the usual case the one class whose ceil moved.
    """
    if applied.leaves != wanted.leaves or applied.ifindex != wanted.ifindex:
        return None
    if (applied.speed_bps, applied.floor_bps) != (wanted.speed_bps, wanted.floor_bps):
        # The link class first: children may not be checked against it, but they borrow from it.
        return class_requests("change-class", wanted)
    if applied.ceil_bps == wanted.ceil_bps:
        return ()
    return tuple(request for request in class_requests("change-class", wanted) if request.handle == BE_TIER)


class Route(Protocol):
    """The part of pyroute2.IPRoute that is used here."""

    def tc(self, command: str, **options: Any) -> Any: ...  # noqa: ANN401 - untyped library
    def get_classes(self, index: int) -> Any: ...  # noqa: ANN401 - same
    def close(self) -> None: ...


class Tc:
    """A netlink connection that shapes, in the network namespace of the thread that opens it."""

    def __init__(self) -> None:
        self.requests = 0
        """Sent since start, for the metric and the promise of a quiet steady state."""
        self.has_fq_codel: bool | None = None
        self.route: Route | None = None
        self.sent_here = 0

    def build(self, shape: Shape) -> None:
        """Put the whole tree on a device that has the kernel's default root; all of it or nothing."""
        try:
            for request in build_requests(shape):
                self._send(request)
        except TcError:
            undo.remove(shape.ifindex)
            raise

    def change(self, applied: Shape, wanted: Shape) -> None:
        """Move a tree of ours from one shape to another, in place where that is possible."""
        requests = change_requests(applied, wanted)
        if requests is None:
            undo.remove(wanted.ifindex)
            self.build(wanted)
            return
        for request in requests:
            self._send(request)

    def reassert(self, shape: Shape) -> None:
        """Every class as the shape says, in place."""
        for request in (*class_requests("change-class", shape), *leaf_requests("change-class", shape)):
            self._send(request)

    def classes(self, ifindex: int) -> tuple[ClassSample, ...]:
        """Counters and rates of our classes on one device; empty if it has none."""
        route = self._open()
        answer = self._asked(f"classes of device {ifindex}", lambda: list(route.get_classes(index=ifindex)))
        return tuple(parse_class(message) for message in answer if _is_ours(message, ifindex))

    def close(self) -> None:
        if self.route is not None:
            self.route.close()
            self.route = None

    def _send(self, request: Request) -> None:
        if request.kind == "fq_codel" and self.has_fq_codel is False:
            return
        what = f"{request.command} {request.kind} {request.handle >> 16:x}:{request.handle & 0xFFFF:x}"
        options = {
            **dict(request.options),
            "kind": request.kind,
            "index": request.ifindex,
            "handle": request.handle,
        }
        # For an "add" of a qdisc ENOENT means an unknown kind; for a class, that it or its parent is gone.
        absent = Fault.MISSING if request.command == "add" else Fault.GONE
        route = self._open()
        try:
            self._asked(
                f"{what} on device {request.ifindex}",
                lambda: list(route.tc(request.command, **options)),
                absent,
            )
        except TcError as error:
            if not (request.optional and error.fault is Fault.MISSING):
                raise
            self.has_fq_codel = False  # HTB's own pfifo stays in the leaf
        else:
            self.has_fq_codel = True if request.kind == "fq_codel" else self.has_fq_codel

    def _asked(self, what: str, ask: Callable[[], list[Any]], absent: Fault = Fault.GONE) -> list[Any]:
        self.requests += 1
        self.sent_here += 1
        try:
            return ask()
        except _netlink_error() as error:
            code = int(error.code)
            fault = absent if code == errno.ENOENT else _FAULTS.get(code, Fault.OTHER)
            raise TcError(fault, what, code) from error

    def _open(self) -> Route:
        if self.route is not None and self.sent_here >= _REQUESTS_PER_SOCKET:
            self.close()
        if self.route is None:
            from pyroute2 import IPRoute  # noqa: PLC0415 - 24 MB that only hosts with [net] pay for

            try:
                self.route = IPRoute()
            except OSError as error:
                raise TcError(Fault.OTHER, "open netlink", error.errno or 0) from error
            self.sent_here = 0
        return self.route


def _netlink_error() -> type[Any]:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - as above

    error: type[Any] = NetlinkError
    return error


def _is_ours(message: Any, ifindex: int) -> bool:  # noqa: ANN401 - untyped library
    """The dump has the flows of fq_codel leaves too (fq_codel_walk), which are classes of their own kind.

    pyroute2's dump filters were ignored in some versions: look at the index again.
    """
    ours: bool = message["index"] == ifindex and message["handle"] >> 16 == HANDLE >> 16
    return ours and message.get_attr("TCA_KIND") == "htb"


def parse_class(message: Any) -> ClassSample:  # noqa: ANN401 - untyped library
    """One RTM_NEWTCLASS as pyroute2 decodes it; HTB fills in all of these (htb_dump_class)."""
    stats = message.get_attr("TCA_STATS2")
    basic: dict[str, int] = stats.get_attr("TCA_STATS_BASIC")
    queue: dict[str, int] = stats.get_attr("TCA_STATS_QUEUE")
    options = message.get_attr("TCA_OPTIONS")
    parms: dict[str, int] = options.get_attr("TCA_HTB_PARMS")
    return ClassSample(
        classid=message["handle"],
        bytes=basic["bytes"],
        packets=basic["packets"],
        drops=queue["drops"],
        backlog=queue["backlog"],
        rate_bps=8 * _rate(parms["rate"], options.get_attr("TCA_HTB_RATE64")),
        ceil_bps=8 * _rate(parms["ceil"], options.get_attr("TCA_HTB_CEIL64")),
    )


def _rate(narrow: int, wide: int | None) -> int:
    return wide if narrow == _U32_BYTES_PER_SECOND and wide else narrow
