"""Which devices are uplinks, how fast they are and how many bytes they sent: sysfs and the routing tables."""

from __future__ import annotations

import errno
import os

from qosd.net.device import LinkSample, QdiscSample

_OUR_KINDS = (None, "bond", "team", "vlan")
_FOREIGN_PREFIXES = (
    "cilium", "lxc", "cali", "flannel", "cni", "docker", "virbr", "br-", "vnet", "tap", "veth", "kube-",
)  # fmt: skip
_MANY_QUEUES = 8
_FAST_MBIT = 25_000
_RTF_UP_NOT_REJECT = 0x1
_RTF_REJECT = 0x200

SYSFS_NET = "/sys/class/net"
CILIUM_BANDWIDTH_MAP = "/sys/fs/bpf/tc/globals/cilium_throttle"
"""Pinned by Cilium only while its bandwidth manager is on."""


def refusal(
    link: LinkSample,
    root: QdiscSample | None,
    *,
    bandwidth_manager: bool = False,
    allow_kinds: frozenset[str] = frozenset(),
) -> str | None:
    """Why this device is not shaped, in words for the operator; None if it may be.

    `allow_kinds` is for tests, whose uplinks are veth pairs.
    """
    if link.loopback:
        return f"{link.name} is the loopback device"
    if link.kind not in _OUR_KINDS and link.kind not in allow_kinds:
        return f"{link.name} is a {link.kind} device, not an uplink: list the device that carries its traffic"
    if link.kind not in allow_kinds and link.name.startswith(_FOREIGN_PREFIXES):
        return f"{link.name} belongs to a container network or a virtual machine by its name"
    if link.kind is None and not link.physical:
        return f"{link.name} is not backed by a device"
    if link.slave_kind in ("bond", "team"):
        return f"{link.name} is enslaved to a {link.slave_kind}: list the {link.slave_kind} instead"
    return _qdisc_refusal(link.name, root, bandwidth_manager=bandwidth_manager)


def _qdisc_refusal(name: str, root: QdiscSample | None, *, bandwidth_manager: bool) -> str | None:
    if bandwidth_manager:
        return f"{name}: Cilium's bandwidth manager owns the qdiscs of this host"
    if root is None or root.is_ours or root.handle == 0:
        return None
    return f"{name} has a root qdisc of somebody else: {root.kind} {root.handle >> 16:x}:"


def reservation(link: LinkSample) -> str | None:
    """Why `uplinks = "auto"` leaves a device alone that may be shaped: HTB has one lock per device."""
    if link.tx_queues > _MANY_QUEUES:
        return f"{link.name} has {link.tx_queues} transmit queues, which HTB would join: list it by name"
    if link.speed_mbit is not None and link.speed_mbit >= _FAST_MBIT:
        return (
            f"{link.name} runs at {link.speed_mbit} Mbit/s, where HTB's one lock costs CPU: list it by name"
        )
    return None


def read_speed_mbit(name: str, sysfs: str = SYSFS_NET) -> int | None:
    """The driver's ethtool speed, which sysfs shows; None when unknown or the link is down."""
    try:
        with open(f"{sysfs}/{name}/speed", encoding="ascii") as file:
            speed = int(file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        # net-sysfs.c speed_show(): EINVAL while the link is down or the driver has no answer.
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV):
            return None
        raise
    return speed if speed > 0 else None


def unknown_speed(link: LinkSample) -> str:
    """A driver tells it only of a link that is up."""
    return f"the speed of {link.name} is unknown{' while it is down' if link.carrier is False else ''}"


def with_speed(link: LinkSample, sysfs: str = SYSFS_NET) -> LinkSample:
    return link._replace(speed_mbit=read_speed_mbit(link.name, sysfs))


def read_bandwidth_manager(pinned: str = CILIUM_BANDWIDTH_MAP) -> bool:
    return os.path.lexists(pinned)


class TxCounter:
    """`statistics/tx_bytes` of one device on a kept fd: one pread a tick, no netlink.

    The fd stays with the device through a rename and says ENODEV once it is gone, even if the name came back.
    """

    def __init__(self, name: str, sysfs: str = SYSFS_NET) -> None:
        self.fd = os.open(f"{sysfs}/{name}/statistics/tx_bytes", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int | None:
        """Bytes sent, or None if the device is gone."""
        try:
            return int(os.pread(self.fd, 32, 0))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL):
                return None
            raise

    def close(self) -> None:
        os.close(self.fd)


def parse_default_routes(route: str, ipv6_route: str) -> tuple[str, ...]:
    """The devices of the default routes of lowest metric, from the two files of /proc/net."""
    return tuple(dict.fromkeys((*_lowest(_ipv4(route)), *_lowest(_ipv6(ipv6_route)))))


def _ipv4(text: str) -> list[tuple[int, str]]:
    found = []
    for line in text.splitlines()[1:]:
        name, destination, _gateway, flags, _ref, _use, metric, mask, *_ = line.split()
        usable = int(flags, 16) & (_RTF_UP_NOT_REJECT | _RTF_REJECT) == _RTF_UP_NOT_REJECT
        if usable and int(destination, 16) == 0 and int(mask, 16) == 0:
            found.append((int(metric), name))
    return found


def _ipv6(text: str) -> list[tuple[int, str]]:
    found = []
    for line in text.splitlines():
        destination, length, _src, _srclen, _hop, metric, _ref, _use, flags, name = line.split()
        usable = int(flags, 16) & (_RTF_UP_NOT_REJECT | _RTF_REJECT) == _RTF_UP_NOT_REJECT
        # The kernel's own "unreachable" default sits on lo.
        if usable and int(destination, 16) == 0 and int(length, 16) == 0 and name != "lo":
            found.append((int(metric, 16), name))
    return found


def _lowest(found: list[tuple[int, str]]) -> list[str]:
    best = min((metric for metric, _ in found), default=0)
    return [name for metric, name in found if metric == best]


def read_default_uplinks(proc: str = "/proc/net") -> tuple[str, ...]:
    """What `uplinks = "auto"` means now. A host without IPv6 has no ipv6_route."""
    texts = []
    for name in ("route", "ipv6_route"):
        try:
            with open(f"{proc}/{name}", encoding="ascii") as file:
                texts.append(file.read())
        except FileNotFoundError:
            texts.append("")
    return parse_default_routes(*texts)


def carried_by(uplink: int, present: dict[int, LinkSample]) -> frozenset[int]:
    """The uplink and what sends through it under its own ifindex: its bridge, vlans on top of either."""
    found = {uplink}
    while more := {link.ifindex for link in present.values() if _sends_through(link, found, present)} - found:
        found |= more
    return frozenset(found)


def _sends_through(link: LinkSample, lower: set[int], present: dict[int, LinkSample]) -> bool:
    if link.kind == "vlan":
        return link.lower in lower
    return any(present[each].master == link.ifindex for each in lower if each in present)


def resolve(names: tuple[str, ...], present: dict[int, LinkSample], held: dict[int, str]) -> dict[str, int]:
    """Configured name → ifindex. A name that no device bears any more stays with the one we hold for it."""
    by_name = {link.name: ifindex for ifindex, link in present.items()}
    renamed = {configured: ifindex for ifindex, configured in held.items() if ifindex in present}
    found: dict[str, int] = {}
    for name in names:
        ifindex = by_name.get(name, renamed.get(name))
        if ifindex is not None and ifindex not in found.values():
            found[name] = ifindex
    return found
