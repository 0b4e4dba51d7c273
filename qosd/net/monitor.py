"""Watches for devices that come, go and change, for root qdiscs, for our classes, and for default routes."""

from __future__ import annotations

import errno
from typing import NamedTuple

from qosd.net import rtnl
from qosd.net.device import ClassNews


class LinkEvent(NamedTuple):
    ifindex: int
    """0 for a default route, which may lead over several devices."""
    name: str | None = None
    """None for an event about a qdisc, a class or a route, which do not carry the name."""
    news: ClassNews | None = None
    vlan: bool = False
    """It may send through an uplink under its own ifindex."""
    default_route: bool = False


class Monitor:
    """A notification socket; its fd belongs in the daemon's epoll. Standard library only."""

    def __init__(self) -> None:
        self._rtnl = rtnl.RtnlSocket(rtnl.RTMGRP_LINK | rtnl.RTMGRP_TC)
        self._rtnl.sock.setblocking(False)

    def follow_routes(self, *, wanted: bool) -> None:
        """Default routes come late: with a lease, or when another uplink takes over."""
        self._rtnl.follow_routes(wanted=wanted)

    def fileno(self) -> int:
        return self._rtnl.sock.fileno()

    def read(self) -> tuple[LinkEvent, ...] | None:
        """Everything waiting; None if the kernel had to drop some, so that anything may have changed."""
        found: list[LinkEvent] = []
        lost = False
        while True:
            try:
                data = self._rtnl.sock.recv(1 << 18)
            except BlockingIOError:
                return None if lost else tuple(found)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
            else:
                found.extend(parse_events(data))

    def close(self) -> None:
        self._rtnl.sock.close()


def parse_events(data: bytes) -> tuple[LinkEvent, ...]:
    """Links, root qdiscs, classes with our handle and default routes; what we ourselves did is among them."""
    found = []
    for kind, _sequence, body in rtnl.split(data):
        if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
            link = rtnl.parse_link(body)
            found.append(LinkEvent(link.ifindex, link.name, vlan=link.kind == "vlan"))
        elif kind in (rtnl.RTM_NEWQDISC, rtnl.RTM_DELQDISC):
            qdisc = rtnl.parse_root_qdisc(body)
            if qdisc is not None:
                found.append(LinkEvent(qdisc.ifindex))
        elif kind in (rtnl.RTM_NEWTCLASS, rtnl.RTM_DELTCLASS):
            told = rtnl.parse_class(body, deleted=kind == rtnl.RTM_DELTCLASS)
            if told is not None:
                found.append(LinkEvent(told[0], news=told[1]))
        elif kind in (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE) and rtnl.is_default_route(body):
            found.append(LinkEvent(0, default_route=True))
    return tuple(found)
