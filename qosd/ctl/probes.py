"""What `qosctl status` shows of the eBPF probes."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from qosd.ctl import screen
from qosd.ebpf.status import Latency, ProbesView

_ROWS = 12
_WORDS = {
    "runq": "wait for a CPU",
    "reclaim": "stall, host short of memory",
    "reclaim_memcg": "stall at a limit of its own",
    "blkio": "block request",
    "tcp_rtt": "TCP round trip",
}
_MS = 1000.0


def detection(view: ProbesView) -> Text:
    """The probes that count, with what they cost, and why the others do not."""
    attached = [probe for probe in view.probes if probe.state == "attached"]
    names = ", ".join(
        probe.name + ("" if probe.overhead_pct is None else f" ({probe.overhead_pct:.2f} % of the CPUs)")
        for probe in attached
    )
    because = f" ({view.loader_why})" if view.loader == "bcc" else ""
    loader = view.loader or "libbpf"  # the walk needs no probe beside it
    text = Text(f"eBPF by {loader}{because}: {names}" if attached else f"no eBPF probe: {_reason(view)}")
    for probe in view.probes:
        if attached and probe.state in ("absent", "detached"):
            text.append(f"\n! {probe.name} is {probe.state}: {probe.why}", "yellow")
    losses = {
        "events lost": view.lost_events,
        "pairs thrown out": view.evicted,
        "waits not seen": view.unseen,
    }
    said = [f"{count} {what}" for what, count in losses.items() if count]
    if view.unwatched:
        said.append(f"no room for {view.unwatched} workloads")
    if said:
        text.append(f"\n! {', '.join(said)} since they were attached", "yellow")
    return text


def _reason(view: ProbesView) -> str:
    detached = (probe.why for probe in view.probes if probe.state in ("detached", "absent") and probe.why)
    return view.why or next(detached, "none is asked for")


def section(view: ProbesView) -> Iterator[RenderableType]:
    """What was waited for in the last tick; LS first."""
    seen = [each for each in view.latencies if each.count]
    if not seen:
        return
    numbers = ("COUNT", "P50", "P99", "BREACH FROM")
    table = screen.table("WORKLOAD", "WAITED FOR", *numbers, "CGROUP", right=numbers)
    ranked = sorted(seen, key=lambda each: (each.tier != "ls", not each.breach, -(each.p99_usec or 0.0)))
    for each in ranked[:_ROWS]:
        style = "bold red" if each.breach else ""
        table.add_row(
            each.workload,
            _WORDS[each.signal],
            str(each.count),
            _ms(each.p50_usec),
            Text(_ms(each.p99_usec), style),
            _threshold(each),
            each.path,
        )
    yield table
    if len(ranked) > _ROWS:
        yield Text(f"and {len(ranked) - _ROWS} more: qosctl status --json has them all")


def _threshold(latency: Latency) -> str:
    if latency.threshold_usec is None:
        return "-"
    return _ms(latency.threshold_usec) + (" (cold)" if latency.cold else "")


def _ms(usec: float | None) -> str:
    return "-" if usec is None else f"{usec / _MS:.3g} ms"
