"""What `qosctl top` shows: a status and what came before it, in so many columns and rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.segment import Segment
from rich.text import Text

from qosd.ctl import screen, signals
from qosd.ctl import status as whole
from qosd.model import Pressure
from qosd.status import DecisionRecord, Status, WorkloadStatus

_LEVELS = " .:-=+*#%@"
_LABEL = 14
_WORKLOADS, _SIGNALS, _VERDICTS = 8, 4, 2
_DECISIONS_FROM = 3  # rows that a list of decisions needs to be worth its heading


class Moment(NamedTuple):
    """What is drawn over time."""

    ls: float | None
    be: float | None
    allowed: float | None
    waits: float | None


class View(NamedTuple):
    status: Status
    records: tuple[DecisionRecord, ...]
    history: tuple[Moment, ...]


def moment(status: Status) -> Moment:
    ls, be = status.tiers.get("ls"), status.tiers.get("be")
    return Moment(
        ls.cpu_cores if ls is not None else None,
        be.cpu_cores if be is not None else None,
        be.cpu_allowance_cores if be is not None else None,
        ls_waits(status),
    )


def ls_waits(status: Status) -> float | None:
    """The longest wait of any LS workload for anything, as a share of the last ten seconds."""
    known = [
        pressure.some.avg10
        for workload in status.workloads
        if workload.tier.value == "ls"
        for pressure in (workload.cpu_pressure, workload.memory_pressure, workload.io_pressure)
        if pressure is not None
    ]
    return max(known, default=None)


def render(view: View, now: float, width: int, height: int) -> Group:
    """As many lines as there are; what does not fit is left out from the bottom."""
    status = view.status
    parts: list[RenderableType] = [whole.headline(status, now), *whole.warnings(status, now)]
    parts += [whole.cpu_bar(status, width), _allowed(status), Text(), *_courses(view, width), Text()]
    parts.append(_workloads(status, width))
    parts += _interference(view)
    if status.feeds:
        parts += [Text(), signals.table(status.feeds[:_SIGNALS], max(now - status.time, 0.0))]
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    room = height - 1
    lines = _lines(console, Group(*parts))[:room]
    left = room - len(lines) - 2
    if left >= _DECISIONS_FROM and view.records:
        lines += [Text(), *_decisions(view.records, now, left + 1)]
    return Group(*lines, *[Text()] * (room - len(lines)), footer(width))


def _lines(console: Console, part: RenderableType) -> list[Text]:
    """Each line of it as a text of its own, so that lines can be counted and cut."""
    return [
        Text.assemble(*((segment.text, segment.style or "") for segment in Segment.simplify(line)))
        for line in console.render_lines(part, pad=False)
    ]


def _decisions(records: tuple[DecisionRecord, ...], now: float, rows: int) -> Iterator[Text]:
    """The newest first, each on one line: what does not fit is in `qosctl decisions`."""
    yield Text("LATEST DECISIONS", "bold")
    for record in tuple(reversed(records))[: rows - 1]:
        ago = screen.duration(max(now - record.time, 0.0))
        change = f"{record.old} -> {record.new}" if record.old else record.new
        failed = record.error is not None
        words = f"{ago:>7} ago  {record.path} {record.file}: {change}"
        yield Text(
            words + (f"  ! {record.error}" if failed else ""),
            "yellow" if failed else "",
            no_wrap=True,
            overflow="crop",
        )


def footer(width: int) -> Text:
    return Text("q quits   qosctl explain CGROUP says why"[:width], "reverse")


def _allowed(status: Status) -> Text:
    be = status.tiers.get("be")
    if be is None or be.reason is None:
        return Text("BE is not limited")
    return Text(be.reason.text.partition(":")[0], "bold blue")


def _courses(view: View, width: int) -> Iterator[Text]:
    """The last ticks as columns of a height of ten; the newest on the right."""
    columns = max(width - _LABEL - 12, 10)
    shown = view.history[-columns:]
    cpus = float(view.status.host.nr_cpus)
    rows = (
        ("LS CPUs", [each.ls for each in shown], cpus, "green", ""),
        ("BE CPUs", [each.be for each in shown], cpus, "blue", ""),
        ("BE may use", [each.allowed for each in shown], cpus, "bold blue", ""),
        ("LS waits", [each.waits for each in shown], 100.0, "red", "%"),
    )
    for label, values, highest, style, unit in rows:
        last = values[-1] if values else None
        said = "-" if last is None else f"{last:.0f}{unit}" if unit else f"{last:.2f}"
        yield Text.assemble(
            (label.ljust(_LABEL), "bold"),
            said.rjust(8) + "  |",
            (course(values, highest).rjust(columns), style),
            "|",
        )


def course(values: list[float | None], highest: float) -> str:
    """One character a tick; `?` where the value was not known."""
    return "".join("?" if value is None else _level(value, highest) for value in values)


def _level(value: float, highest: float) -> str:
    if value <= 0:
        return _LEVELS[0]
    share = min(value / highest, 1.0)
    return _LEVELS[max(round(share * (len(_LEVELS) - 1)), 1)]


def _workloads(status: Status, width: int) -> RenderableType:
    numbers = ("CPUs", "MEMORY", "CPU WAIT", "MEM WAIT", "IO WAIT")
    table = screen.table("WORKLOAD", "TIER", *numbers, right=numbers)
    ranked = sorted(status.workloads, key=whole.importance)
    for workload in ranked[:_WORKLOADS]:
        table.add_row(
            screen.tail(workload.name, max(width - 56, 12)),
            workload.tier.value.upper(),
            screen.cores(workload.cpu_cores),
            screen.size(workload.memory_bytes),
            *(_wait(pressure) for pressure in _pressures(workload)),
        )
    more = len(ranked) - _WORKLOADS
    return Group(table, *([Text(f"and {more} more")] if more > 0 else []))


def _interference(view: View) -> list[RenderableType]:
    """How long tasks of LS wait for a CPU, how far the answers have gone, and who is said to suffer."""
    lines: list[RenderableType] = []
    probes = view.status.ebpf
    waits = (
        [each for each in probes.latencies if each.signal == "runq" and each.tier == "ls"] if probes else []
    )
    if known := [each for each in waits if each.p99_usec is not None]:
        words = (f"{each.workload} {each.p99_usec:.0f} us{' !' if each.breach else ''}" for each in known)
        lines.append(_labelled("Run queue p99", "  ".join(words)))
    if view.status.interference is not None:
        rungs = "  ".join(f"{each.kind} {each.rung}" for each in view.status.interference.rungs)
        if rungs:
            lines.append(_labelled("Rungs", rungs))
        lines += [
            _labelled("Verdict", record.verdict.text, "bold yellow")
            for record in view.status.interference.verdicts[:_VERDICTS]
        ]
    return [Text(), *lines] if lines else []


def _labelled(label: str, text: str, style: str = "") -> Text:
    line = Text.assemble((label.ljust(_LABEL), "bold"), (f"  {text}", style))
    line.no_wrap, line.overflow = True, "crop"
    return line


def _pressures(workload: WorkloadStatus) -> tuple[Pressure | None, ...]:
    return workload.cpu_pressure, workload.memory_pressure, workload.io_pressure


def _wait(pressure: Pressure | None) -> Text:
    high = pressure is not None and pressure.some.avg10 >= 10  # noqa: PLR2004 - worth a look
    return Text(screen.stalled(pressure), "bold red" if high else "")


def line(status: Status) -> str:
    """One tick in a line, for a log or a pipe."""
    now = moment(status)
    clock = time.strftime("%H:%M:%S", time.localtime(status.time))
    waits = "-" if now.waits is None else f"{now.waits:.0f}%"
    used = (
        f"LS {screen.cores(now.ls)} system {screen.cores(status.host.system_cores)} BE {screen.cores(now.be)}"
    )
    fed = "".join(f" {feed.name} {signals.amount(feed.value, feed.unit)}" for feed in status.feeds)
    return f"{clock} {status.mode} {used} BE may use {screen.cores(now.allowed)} LS waits {waits}{fed}"
