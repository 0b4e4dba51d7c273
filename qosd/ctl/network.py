"""What `qosctl status` and `qosctl explain` show of the uplinks."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from qosd.ctl import screen
from qosd.ctl.exits import NO, Failure
from qosd.net.status import EgressStatus, IngressStatus, NetView, UplinkView, bit_rate
from qosd.status import Status

_SENDERS = 5
_WHY = {
    None: "the target less what LS and system use",
    "deadband": "as it was: LS and system moved too little to follow",
    "ramp": "rising by up_pct a second",
    "floor": "be_floor_pct: LS and system use the target up",
}
"""By what bound the ceiling in this tick."""
_DOWN = ("down", "lowerlayerdown", "notpresent")
_INNER = ("link", "be-tier")
"""Classes that count once more what their leaves count."""


def section(net: NetView) -> Iterator[RenderableType]:
    """Of the status: the uplinks, what is refused or does not work, and which workloads send most."""
    if net.uplinks:
        table = screen.table("UPLINK", "LINK", "LS+SYSTEM", "BE", "BE MAY", "DROPS", "WHY")
        for uplink in net.uplinks:
            table.add_row(
                uplink.name,
                bit_rate(uplink.link_bps),
                bit_rate(uplink.ls_bps),
                bit_rate(uplink.be_bps),
                bit_rate(uplink.be_ceiling_bps),
                str(sum(each.drops for each in uplink.classes if each.name not in _INNER)),
                Text(_why(uplink)),
            )
        yield table
    for name, why in sorted(net.refused.items()):
        yield Text(f"! uplink {name} is not shaped: {why}", "yellow")
    for why in net.degraded:
        yield Text(f"! network: {why}", "yellow")
    if net.be_ingress is not None:
        yield Text(_ingress(net.be_ingress))
    if net.egress:
        yield _senders(net.egress)


def _senders(egress: tuple[EgressStatus, ...]) -> RenderableType:
    numbers = ("SENDS", "AT MOST", "SENT")
    table = screen.table("WORKLOAD", *numbers, "CLASS", "CGROUP", right=numbers)
    for each in sorted(egress, key=lambda each: (-(each.bps or 0.0), each.path))[:_SENDERS]:
        table.add_row(
            each.workload,
            bit_rate(each.bps),
            bit_rate(each.egress_max_bps),
            screen.size(each.sent_bytes),
            each.class_id or "LS's",
            screen.tail(each.path, 0),
        )
    return table


def _ingress(ingress: IngressStatus) -> str:
    return (
        f"BE receives {bit_rate(ingress.bps)} of its be_ingress_max {bit_rate(ingress.max_bps)};"
        f" {bit_rate(ingress.dropped_bps)} is dropped"
    )


def _why(uplink: UplinkView) -> str:
    if uplink.error is not None:
        return f"! {uplink.error}"
    if uplink.reason is None:
        return "nothing is decided yet"
    if not uplink.shaped:
        return "not shaped in this mode"
    if uplink.operstate in _DOWN:
        return "the link is down; it stays shaped"
    if not uplink.reason.rule.endswith("/ceiling"):
        return "what LS and system send is not known now"
    return _WHY.get(uplink.reason.clamp, str(uplink.reason.clamp))


def names(status: Status) -> frozenset[str]:
    """What `qosctl explain` takes for an uplink rather than a cgroup: names of before a renaming too."""
    if status.net is None:
        return frozenset()
    known = (name for uplink in status.net.uplinks for name in (uplink.name, *uplink.formerly))
    return frozenset((*known, *status.net.refused))


def those_there_are(status: Status) -> str:
    """For a name that is none of them; empty where nothing is shaped."""
    if status.net is None:
        return ""
    there = [uplink.name for uplink in status.net.uplinks]
    there += [f"{name} (not shaped)" for name in status.net.refused]
    return f"; uplinks: {', '.join(there) or 'none'}"


def sentence(egress: EgressStatus) -> str:
    """A workload's own egress, for its explanation."""
    where = "LS's class, as all that is not BE" if egress.class_id is None else f"class {egress.class_id}"
    limit = (
        "" if egress.egress_max_bps is None else f", at most {bit_rate(egress.egress_max_bps)} (egress_max)"
    )
    return f"{bit_rate(egress.bps)} now, {screen.size(egress.sent_bytes)} in all; in {where}{limit}"


def find(status: Status, name: str) -> UplinkView:
    """By its name, else by an earlier one. Raises `Failure` for an uplink that is refused."""
    uplinks = () if status.net is None else status.net.uplinks
    for uplink in uplinks:
        if uplink.name == name:
            return uplink
    refused = {} if status.net is None else status.net.refused
    for uplink in () if name in refused else uplinks:
        if name in uplink.formerly:
            return uplink
    raise Failure(f"{name} is not shaped: {refused.get(name, '[net] uplinks lists nothing')}", NO)


def headline(uplink: UplinkView, mode: str) -> Text:
    state = "shaped" if uplink.shaped else f"not shaped in mode {mode}"
    return Text.assemble(
        (uplink.name, "bold"),
        f" is an uplink of {bit_rate(uplink.link_bps)}, {uplink.operstate}, {state};"
        f" LS and system send {bit_rate(uplink.ls_bps)}, BE {bit_rate(uplink.be_bps)}",
    )


def classes(uplink: UplinkView) -> Iterator[RenderableType]:
    if uplink.classes_age_ms is not None:
        yield Text(f"Classes, as read {uplink.classes_age_ms / 1000:.0f} s ago:", "dim")
    numbers = ("RATE", "CEIL", "SENT", "DROPS", "WAITING")
    table = screen.table("CLASS", "FOR", *numbers, right=numbers)
    for each in uplink.classes:
        table.add_row(
            each.id,
            each.name,
            bit_rate(each.rate_bps),
            bit_rate(each.ceil_bps),
            screen.size(each.sent_bytes),
            str(each.drops),
            f"{each.backlog_bytes} B",
        )
    yield table
