"""What `qosctl status` and `qosctl explain` show of the uplinks."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from qosd.ctl import screen
from qosd.ctl.exits import NO, Failure
from qosd.net.status import EgressStatus, NetView, UplinkView, bit_rate
from qosd.status import Status

_INNER = ("link", "be-tier")
"""Classes that count once more what their leaves count."""


def section(net: NetView) -> Iterator[RenderableType]:
    """Of the status: a row for each uplink, what is refused or does not work, and workloads with a limit."""
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
    for each in net.egress:
        if each.egress_max_bps is not None:
            yield Text(
                f"{each.path} sends {bit_rate(each.bps)} of its egress_max {bit_rate(each.egress_max_bps)}"
            )


def _why(uplink: UplinkView) -> str:
    if uplink.error is not None:
        return f"! {uplink.error}"
    if uplink.reason is None:
        return "nothing is decided yet"
    if not uplink.shaped:
        return "not shaped in this mode"
    return uplink.reason.clamp or "the target less what LS uses"


def names(status: Status) -> frozenset[str]:
    """What `qosctl explain` takes for an uplink rather than a cgroup."""
    if status.net is None:
        return frozenset()
    return frozenset((*(uplink.name for uplink in status.net.uplinks), *status.net.refused))


def sentence(egress: EgressStatus) -> str:
    """A workload's own egress, for its explanation."""
    where = "LS's class, as all that is not BE" if egress.class_id is None else f"class {egress.class_id}"
    limit = (
        "" if egress.egress_max_bps is None else f", at most {bit_rate(egress.egress_max_bps)} (egress_max)"
    )
    return f"{bit_rate(egress.bps)} now, {screen.size(egress.sent_bytes)} in all; in {where}{limit}"


def find(status: Status, name: str) -> UplinkView:
    """Raises `Failure` for an uplink that is refused."""
    net = status.net
    for uplink in net.uplinks if net is not None else ():
        if uplink.name == name:
            return uplink
    why = net.refused[name] if net is not None else "[net] uplinks lists nothing"
    raise Failure(f"{name} is not shaped: {why}", NO)


def headline(uplink: UplinkView, mode: str) -> Text:
    state = "shaped" if uplink.shaped else f"not shaped in mode {mode}"
    return Text.assemble(
        (uplink.name, "bold"),
        f" is an uplink of {bit_rate(uplink.link_bps)}, {uplink.operstate}, {state};"
        f" LS and system send {bit_rate(uplink.ls_bps)}, BE {bit_rate(uplink.be_bps)}",
    )


def classes(uplink: UplinkView) -> RenderableType:
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
    return table
