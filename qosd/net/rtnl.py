"""Just enough rtnetlink on the standard library: links, root qdiscs, deletion of ours, notifications.

pyroute2 costs 24 MB and 120 ms to import; restoring after a crash, finding leftovers at start and watching
for devices need neither. Layouts: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/pkt_sched.h.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Self

from qosd.net.device import HANDLE, ClassNews, LinkSample, QdiscSample

if TYPE_CHECKING:
    from collections.abc import Iterator

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTCLASS, RTM_DELTCLASS = 40, 41
RTMGRP_LINK, RTMGRP_TC = 0x1, 0x8
_RTNLGRP_ROUTES = (7, 11)  # IPv4, IPv6
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP, _NETLINK_DROP_MEMBERSHIP = 1, 2
TC_H_ROOT = 0xFFFF_FFFF

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_RTMSG = struct.Struct("=8BI")
_TCMSG = struct.Struct("=BxxxiIII")
_ATTR = struct.Struct("=HH")
_IFF_LOOPBACK = 0x8
_IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_OPERSTATE, _IFLA_LINKINFO = 3, 5, 10, 16, 18
_IFLA_NUM_TX_QUEUES, _IFLA_CARRIER, _IFLA_PARENT_DEV_NAME = 31, 33, 56
_IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND = 1, 4
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_HTB_PARMS, _TCA_HTB_INIT, _TCA_HTB_RATE64, _TCA_HTB_CEIL64 = 1, 2, 6, 7
_HTB_RATES = struct.Struct("=8xI8xI")
"""The rates of struct tc_htb_opt: two struct tc_ratespec, each with its rate at the end."""
_U32_MAX = (1 << 32) - 1
_NLA_TYPE_MASK = 0x3FFF
_OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")


class RtnlSocket:
    """A NETLINK_ROUTE socket; `groups` makes it a listener. Raises OSError with the kernel's errno."""

    def __init__(self, groups: int = 0) -> None:
        self.sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self.sock.bind((0, groups))
        self.sock.settimeout(5)
        self.sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def dump(self, kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (type, body) of every message of a dump."""
        self._send(kind, _NLM_F_DUMP, body)
        while True:
            for kind_, sequence, payload in split(self.sock.recv(1 << 18)):
                if sequence != self.sequence:
                    continue
                if kind_ == _NLMSG_DONE:
                    return
                if kind_ == _NLMSG_ERROR:
                    _raise_error(payload)
                yield kind_, payload

    def acknowledged(self, kind: int, body: bytes) -> None:
        """Send one request and wait for the kernel's word on it."""
        self._send(kind, _NLM_F_ACK, body)
        while True:
            for kind_, sequence, payload in split(self.sock.recv(1 << 16)):
                if sequence == self.sequence and kind_ == _NLMSG_ERROR:
                    _raise_error(payload)
                    return

    def follow_routes(self, *, wanted: bool) -> None:
        """Whether a listener is told of routes too."""
        what = _NETLINK_ADD_MEMBERSHIP if wanted else _NETLINK_DROP_MEMBERSHIP
        for group in _RTNLGRP_ROUTES:
            self.sock.setsockopt(_SOL_NETLINK, what, group)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self.sequence += 1
        length = _HEADER.size + len(body)
        self.sock.send(_HEADER.pack(length, kind, flags | _NLM_F_REQUEST, self.sequence, 0) + body)


def links(sock: RtnlSocket) -> tuple[LinkSample, ...]:
    """Every device of this network namespace, without the speed (see links.py)."""
    return tuple(
        parse_link(body)
        for kind, body in sock.dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))
        if kind == RTM_NEWLINK
    )


def root_qdiscs(sock: RtnlSocket) -> tuple[QdiscSample, ...]:
    """The root qdisc of every device. The kernel lists the children too; those are left out."""
    found = (
        parse_root_qdisc(body)
        for kind, body in sock.dump(RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0))
        if kind == RTM_NEWQDISC
    )
    return tuple(qdisc for qdisc in found if qdisc is not None)


def delete_root_qdisc(sock: RtnlSocket, ifindex: int, handle: int) -> None:
    """Delete the root qdisc if it has this handle: the kernel itself compares (EINVAL when they differ)."""
    sock.acknowledged(RTM_DELQDISC, _TCMSG.pack(0, ifindex, handle, TC_H_ROOT, 0))


def split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (type, sequence, body) of the messages in one datagram; a torn one is an error."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < _HEADER.size:
            raise ValueError(f"torn netlink header at byte {offset} of {len(data)}")
        length, kind, _flags, sequence, _pid = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise ValueError(f"netlink message of {length} bytes at byte {offset} of {len(data)}")
        yield kind, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Type → payload; NLA_F_NESTED is masked off. The last of equal types wins, as in the kernel."""
    found = {}
    offset = 0
    while offset + _ATTR.size <= len(data):
        length, kind = _ATTR.unpack_from(data, offset)
        if length < _ATTR.size or offset + length > len(data):
            raise ValueError(f"netlink attribute of {length} bytes at byte {offset} of {len(data)}")
        found[kind & _NLA_TYPE_MASK] = data[offset + _ATTR.size : offset + length]
        offset += (length + 3) & ~3
    return found


def parse_link(body: bytes) -> LinkSample:
    """Decode an ifinfomsg and its attributes."""
    _family, _type, ifindex, flags, _change = _IFINFO.unpack_from(body)
    found = attributes(body[_IFINFO.size :])
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    operstate = found.get(_IFLA_OPERSTATE, b"\0")[0]
    carrier = found.get(_IFLA_CARRIER)
    return LinkSample(
        ifindex=ifindex,
        name=_text(found.get(_IFLA_IFNAME)) or "",
        kind=_text(info.get(_IFLA_INFO_KIND)),
        physical=_IFLA_PARENT_DEV_NAME in found,
        loopback=bool(flags & _IFF_LOOPBACK),
        operstate=_OPERSTATES[operstate] if operstate < len(_OPERSTATES) else "unknown",
        carrier=None if carrier is None else carrier[0] != 0,
        tx_queues=_u32(found.get(_IFLA_NUM_TX_QUEUES)) or 1,
        master=_u32(found.get(_IFLA_MASTER)),
        slave_kind=_text(info.get(_IFLA_INFO_SLAVE_KIND)),
        lower=_u32(found.get(_IFLA_LINK)),
    )


def is_default_route(body: bytes) -> bool:
    """Of an rtmsg: no bit of the destination is given."""
    dst_len: int = _RTMSG.unpack_from(body)[1]
    return dst_len == 0


def parse_root_qdisc(body: bytes) -> QdiscSample | None:
    """Decode a tcmsg; None for a qdisc that is not its device's root."""
    _family, ifindex, handle, parent, _info = _TCMSG.unpack_from(body)
    if parent != TC_H_ROOT:
        return None
    found = attributes(body[_TCMSG.size :])
    kind = _text(found.get(_TCA_KIND)) or ""
    return QdiscSample(ifindex, kind, handle, _htb_default(found) if kind == "htb" else None)


def parse_class(body: bytes, *, deleted: bool) -> tuple[int, ClassNews] | None:
    """(ifindex, news) of an HTB class with our handle; None for any other."""
    _family, ifindex, handle, _parent, _info = _TCMSG.unpack_from(body)
    found = attributes(body[_TCMSG.size :])
    if handle >> 16 != HANDLE >> 16 or _text(found.get(_TCA_KIND)) != "htb":
        return None
    return ifindex, ClassNews(handle, None if deleted else _htb_rates(found))


def _htb_rates(found: dict[int, bytes]) -> tuple[int, int]:
    options = attributes(found.get(_TCA_OPTIONS, b""))
    rate, ceil = _HTB_RATES.unpack_from(options.get(_TCA_HTB_PARMS, bytes(_HTB_RATES.size)))
    return 8 * _wide(rate, options.get(_TCA_HTB_RATE64)), 8 * _wide(ceil, options.get(_TCA_HTB_CEIL64))


def _wide(rate: int, rate64: bytes | None) -> int:
    """Above 2^32 bytes/s the narrow number is all ones, and the other one counts (htb_dump_class)."""
    return rate if rate < _U32_MAX or rate64 is None else int.from_bytes(rate64[:8], sys.byteorder)


def _htb_default(found: dict[int, bytes]) -> int | None:
    glob = attributes(found.get(_TCA_OPTIONS, b"")).get(_TCA_HTB_INIT)
    # struct tc_htb_glob: version, rate2quantum, defcls, debug, direct_pkts
    return None if glob is None else struct.unpack_from("=5I", glob)[2]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.rstrip(b"\0").decode(errors="surrogateescape")


def _u32(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value[:4], "little" if _LITTLE else "big")


def _raise_error(payload: bytes) -> None:
    code = struct.unpack_from("=i", payload)[0]
    if code:
        raise OSError(-code, os.strerror(-code))


_LITTLE = struct.pack("=H", 1) == b"\1\0"
