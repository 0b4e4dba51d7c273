"""What `qosctl doctor` says of the uplinks: a sentence and a remedy each. Only looks, without pyroute2."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from qosd.net import links, rtnl
from qosd.net.held import Host

if TYPE_CHECKING:
    from qosd.net.config import Net
    from qosd.net.device import LinkSample, QdiscSample


_WITHOUT_IT = ("take it out of net.uplinks", "list net.uplinks by name")


class UplinkFinding(NamedTuple):
    name: str
    ok: bool
    text: str
    remedy: str | None = None


def survey(config: Net, host: Host | None = None) -> tuple[UplinkFinding, ...]:
    """One finding for each uplink; empty if the network is left alone. Raises OSError if netlink fails."""
    host = Host() if host is None else host
    names = links.read_default_uplinks(host.proc_net) if config.uplinks == "auto" else config.uplinks
    if not names:
        if config.uplinks != "auto":
            return ()
        return (UplinkFinding("auto", False, "there is no default route", "list net.uplinks by name"),)
    with rtnl.RtnlSocket() as sock:
        present = {link.name: links.with_speed(link, host.sysfs_net) for link in rtnl.links(sock)}
        roots = {qdisc.ifindex: qdisc for qdisc in rtnl.root_qdiscs(sock)}
    return tuple(_finding(name, present.get(name), roots, config, host) for name in names)


def _finding(
    name: str, link: LinkSample | None, roots: dict[int, QdiscSample], config: Net, host: Host
) -> UplinkFinding:
    if link is None:
        return UplinkFinding(name, False, f"there is no device {name}", "correct net.uplinks")
    why = links.refusal(
        link,
        roots.get(link.ifindex),
        bandwidth_manager=links.read_bandwidth_manager(host.cilium_map),
        allow_kinds=host.allow_kinds,
    )
    if why is not None:
        return UplinkFinding(name, False, why, _WITHOUT_IT[config.uplinks == "auto"])
    if name not in config.link_speed and link.speed_mbit is None:
        return UplinkFinding(name, False, links.unknown_speed(link), f"set net.link_speed.{name}")
    costly = links.reservation(link)
    if costly is not None:
        return UplinkFinding(name, config.uplinks != "auto", costly)
    return UplinkFinding(name, True, f"{name} can be shaped")
