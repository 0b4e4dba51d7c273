"""`qosctl status`: one screen that a stranger understands in ten seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from qosd.ctl import client, cpu, memory, network, probes, reflex, screen, signals, verdicts
from qosd.model import Tier
from qosd.status import SettingStatus, Status, TierStatus, WorkloadStatus

_BAR_MIN, _BAR_MAX, _BAR_MARGIN = 10, 40, 13
_STUCK_INTERVALS = 5
_WATCH_SECONDS = 1.0
_ROWS = 20
_WORKLOAD_COLUMNS = 62  # what stands left of the cgroup
_LIMITS = ("cpu.max", "cpuset.cpus")
_AS_WANTED = ("in-force", "already", "writing")
MODES = {
    "enforce": ("enforcing", "bold green"),
    "observe": ("observing: it writes nothing and shows what it would do", "bold cyan"),
    "paused": ("paused: everything is given back", "bold yellow"),
    "starting": ("starting: it looks at the originals before its first write", "bold cyan"),
    "failed": ("FAILED: everything is given back; see journalctl -u qosd", "bold red"),
}
STATES = {
    "yielded": "left alone: somebody else set it",
    "contested": "left alone for a while: somebody keeps undoing it",
    "backoff": "failed; tried again later",
    "absent": "no such file here; qosctl doctor says why",
    "refused": "the kernel refused it",
    "failed": "the write failed",
    "diverged": "the kernel keeps another value than the one written",
    "moved": "changed while qosd was about to write; looked at again",
    "gone": "the cgroup went away",
}
"""What a state other than in-force and already means, in words."""


def render(status: Status, now: float, width: int) -> Group:
    """The whole screen; `now` is the wall clock."""
    parts: list[RenderableType] = [headline(status, now), *warnings(status, now), Text()]
    parts += [
        _facts(status, now, width),
        Text(),
        _workloads(status, width),
        Text(),
        *_settings(status, width),
    ]
    if status.interference is not None and (lines := verdicts.section(status.interference)):
        parts += [Text(), *lines]
    if extra := list(cpu.section(status.cpu)):
        parts += [Text(), *extra]
    if status.ebpf is not None and any(each.count for each in status.ebpf.latencies):
        parts += [Text(), *probes.section(status.ebpf)]
    if status.feeds:
        parts += [Text(), signals.table(status.feeds, max(now - status.time, 0.0))]
    if status.net is not None:
        parts += [Text(), *network.section(status.net)]
    if status.memory is not None and (lines := list(memory.section(status.memory))):
        parts += [Text(), *lines]
    if status.refused:
        parts += [Text(), _refused(status)]
    return Group(*parts)


def _facts(status: Status, now: float, width: int) -> RenderableType:
    grid = screen.facts()
    grid.add_row("Host", _host(status))
    grid.add_row("CPUs", cpu_bar(status, width))
    be = status.tiers.get("be")
    if be is not None and be.reason is not None:
        grid.add_row("Allowed", _allowed(status, be, be.reason.text))
    if status.reflex is not None:
        grid.add_row("Breaches", reflex.line(status.reflex, status.interval_ms))
    grid.add_row("Sensors", _sensors(status, now))
    if status.ebpf is not None:
        grid.add_row("Probes", probes.detection(status.ebpf))
    return grid


def _allowed(status: Status, tier: TierStatus, text: str) -> Text:
    """What BE may use; where nothing holds it to that, the sum is only what the others leave."""
    be = {workload.cgroup_id for workload in status.workloads if workload.tier is Tier.BE}
    held = any(
        each.cgroup_id in be and each.file in _LIMITS and each.state != "absent" for each in status.settings
    )
    sentence, colon, formula = text.partition(": ")
    if held or tier.cpu_allowance_cores is None:
        return Text.assemble((sentence, "bold blue"), f"{colon}{formula}")
    left = screen.cores(tier.cpu_allowance_cores)
    return Text.assemble(
        ("BE gets what nobody else wants", "bold blue"), f"; X leaves {left} CPUs: {formula}"
    )


def headline(status: Status, now: float) -> Text:
    words, style = MODES.get(status.mode, (status.mode, "bold"))
    text = Text.assemble(("qosd ", "bold"), f"{status.version} is ", (words, style))
    if status.mode == "paused":
        until = status.paused_until
        text.append(
            " until `qosctl resume`" if until is None else f" for {screen.duration(until - now)} more"
        )
    text.append(f"; tick {status.tick}, every {screen.duration(status.interval_ms / 1000)}")
    text.append(f", {status.late_ticks} late" if status.late_ticks else "")
    return text


def warnings(status: Status, now: float) -> Iterator[Text]:
    age = now - status.time
    if age > _STUCK_INTERVALS * status.interval_ms / 1000:
        yield Text(f"! the last tick was {screen.duration(age)} ago: the loop is stuck", "bold red")
    if status.config_error is not None:
        yield Text(
            f"! the last reload was refused, the old configuration stays: {status.config_error}", "bold red"
        )
    if status.oom_killers:
        names = ", ".join(status.oom_killers)
        yield Text(f"! also here, killing by their own rules: {names} (qosctl doctor says more)", "yellow")


def _host(status: Status) -> str:
    host = status.host
    used = None
    if host.mem_total_bytes is not None and host.mem_available_bytes is not None:
        used = host.mem_total_bytes - host.mem_available_bytes
    return (
        f"{host.nr_cpus} CPUs; {screen.size(used)} of {screen.size(host.mem_total_bytes)} memory used;"
        f" tasks waited {screen.stalled(host.cpu_pressure)} of the last 10 s for cpu,"
        f" {screen.stalled(host.memory_pressure)} for memory, {screen.stalled(host.io_pressure)} for io"
    )


def cpu_bar(status: Status, width: int) -> Text:
    """`[LLssssBBBB......]`: who uses the CPUs now."""
    empty = TierStatus(None)
    ls = status.tiers.get("ls", empty).cpu_cores
    be = status.tiers.get("be", empty).cpu_cores
    system = status.host.system_cores
    if ls is None or be is None or system is None:
        return Text("use is not known yet")
    idle = max(status.host.nr_cpus - ls - be - system, 0.0)
    words = f"LS {ls:.2f}  system {system:.2f}  BE {be:.2f}  idle {idle:.2f}"
    left = length = min(max(width - len(words) - _BAR_MARGIN, _BAR_MIN), _BAR_MAX)
    text = Text("[")
    for letter, used, style in (("L", ls, "green"), ("s", system, "yellow"), ("B", be, "blue")):
        part = min(round(used * length / status.host.nr_cpus), left)
        text.append(letter * part, style)
        left -= part
    return text.append("." * left + "]  " + words)


def _workloads(status: Status, width: int) -> RenderableType:
    if not status.workloads:
        return Text(
            "No cgroup matches a workload rule now: is there a ls.slice or be.slice? qosctl doctor", "yellow"
        )
    numbers = ("CPUs", "MEMORY", "CPU WAIT", "MEM WAIT", "IO WAIT")
    table = screen.table("WORKLOAD", "TIER", *numbers, "CGROUP", right=numbers)
    ranked = sorted(status.workloads, key=importance)
    for workload in ranked[:_ROWS]:
        table.add_row(
            workload.name,
            workload.tier.value.upper(),
            screen.cores(workload.cpu_cores),
            screen.size(workload.memory_bytes),
            screen.stalled(workload.cpu_pressure),
            screen.stalled(workload.memory_pressure),
            screen.stalled(workload.io_pressure),
            screen.tail(workload.path, width - _WORKLOAD_COLUMNS),
        )
    return Group(table, *_and_more(ranked, "workloads"))


def _and_more(rows: Sequence[object], what: str) -> Iterator[Text]:
    if len(rows) > _ROWS:
        yield Text(f"and {len(rows) - _ROWS} more {what}: qosctl status --json has them all")


def importance(workload: WorkloadStatus) -> tuple[bool, int, float]:
    return workload.tier.value != "ls", workload.priority, -(workload.cpu_cores or 0.0)


def _settings(status: Status, width: int) -> Iterator[RenderableType]:
    if not status.settings:
        yield Text("Settings: none; nothing on this host is changed")
        return
    in_force = sum(setting.original is not None for setting in status.settings)
    yield Text(_in_force(in_force), "bold")
    table = screen.table("CGROUP", "FILE", "NOW", "BEFORE", "WHY")
    ranked = sorted(status.settings, key=lambda each: (each.state in _AS_WANTED, each.path, each.file))
    for setting in ranked[:_ROWS]:
        table.add_row(
            screen.tail(setting.path, width // 3),
            setting.file,
            setting.value if setting.value is not None else "-",
            _before(setting),
            Text(_why(setting, status.mode)),
        )
    yield table
    yield from _and_more(ranked, "settings")


def _in_force(count: int) -> str:
    if not count:
        return "Nothing is changed by qosd now; what it wants:"
    plural = "setting" if count == 1 else "settings"
    return f"{count} {plural} of qosd in force; what was before comes back when qosd stops"


def _before(setting: SettingStatus) -> str:
    if setting.original is not None:
        return setting.original or "(empty)"
    return "same" if setting.state == "already" else "-"


def _why(setting: SettingStatus, mode: str) -> str:
    short = short_reason(setting.reason.text)
    if setting.state in ("in-force", "already"):
        return short
    if setting.state == "writing":
        would = "" if mode == "enforce" else "would be "
        return f"{would}{setting.wanted}: {short}"
    trouble = STATES.get(setting.state, setting.state)
    return f"! wanted {setting.wanted}; {trouble}" + (f" ({setting.error})" if setting.error else "")


def short_reason(text: str) -> str:
    """The first clause; `qosctl explain` has the whole sentence."""
    return text.partition(":")[0].partition(";")[0]


def _refused(status: Status) -> RenderableType:
    table = screen.table("NOT TAKEN", "ALTHOUGH A RULE MATCHES IT, BECAUSE")
    for path, why in sorted(status.refused.items()):
        table.add_row(path, why)
    return table


def _sensors(status: Status, now: float) -> Text:
    """The good ones on one line with the age of their last reading, each bad one on its own."""
    since_tick = max(now - status.time, 0.0)
    ages: dict[str, list[str]] = {}
    for sensor in status.sensors:
        if sensor.ok:
            age = screen.duration((sensor.age_ms or 0) / 1000 + since_tick)
            ages.setdefault(age, []).append(sensor.name)
    text = Text("; ".join(f"{', '.join(names)} read {age} ago" for age, names in ages.items()))
    for sensor in status.sensors:
        if sensor.ok:
            continue
        age = (
            ""
            if sensor.age_ms is None
            else f", last {screen.duration(sensor.age_ms / 1000 + since_tick)} ago"
        )
        detail = f": {sensor.detail}" if sensor.detail else ""
        text.append(f"\n! {sensor.name} cannot be read{age}{detail}", "yellow")
    return text


def show(socket: str, *, watch: bool) -> None:
    console = screen.console()
    if not watch:
        console.print(_current(socket, console.width))
        return
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.update(_current(socket, console.width), refresh=True)
            time.sleep(_WATCH_SECONDS)


def _current(socket: str, width: int) -> Group:
    return render(client.ask_for(socket, "status", Status), time.time(), width)
