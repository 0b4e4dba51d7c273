"""`qosctl explain`: why each setting of one cgroup is what it is, or why qosd leaves the cgroup alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qosd.ctl import client, cpu, decisions, memory, network, screen
from qosd.ctl.cgroups import exists, resolve
from qosd.ctl.exits import NO, Failure
from qosd.ctl.options import print_json
from qosd.ctl.status import MODES, STATES
from qosd.files import interface_file
from qosd.memory.decide import WorkloadMemory
from qosd.net.status import EgressStatus, UplinkView, bit_rate
from qosd.plan import Input, Reason
from qosd.procfs import cgroup2_mount
from qosd.status import DecisionRecord, SettingStatus, Status, WorkloadStatus

_RECENT = 5
_WRITES = ("written", "reasserted")


class _Rule(msgspec.Struct, frozen=True):
    name: str
    tier: str
    match: tuple[str, ...]


class _Rules(msgspec.Struct, frozen=True):
    """The part of the configuration in force that says which cgroups qosd takes."""

    workload: tuple[_Rule, ...]


class Explanation(msgspec.Struct, frozen=True):
    path: str
    exists: bool
    mode: str
    time: float
    workload: WorkloadStatus | None
    not_managed: str | None
    """Why qosd sets nothing here; None where the cgroup is a workload."""
    settings: tuple[SettingStatus, ...]
    decisions: tuple[DecisionRecord, ...]
    """Newest first."""
    egress: EgressStatus | None = None
    """What it sends, where uplinks are shaped."""
    cpu: tuple[str, ...] = ()
    """Its pool and its burst budget, as sentences."""
    memory: WorkloadMemory | None = None


class UplinkExplanation(msgspec.Struct, frozen=True):
    mode: str
    time: float
    uplink: UplinkView
    decisions: tuple[DecisionRecord, ...]
    """Newest first."""


def why_not(path: str, status: Status, rules: tuple[_Rule, ...]) -> str | None:
    """The reason for a cgroup that is no workload; None for one that is."""
    if path in {workload.path for workload in status.workloads}:
        return None
    if path in status.refused:
        return f"a rule matches it, but {status.refused[path]}"
    for workload in status.workloads:
        if path.startswith(workload.path + "/"):
            return (
                f"it lies below {workload.path} (workload {workload.name}, {workload.tier.upper()}): "
                "qosd limits that one as a whole, and its children share what it gets"
            )
    inside = [
        workload.path for workload in status.workloads if workload.path.startswith(f"{path}/" if path else "")
    ]
    if inside:
        return f"it contains {', '.join(inside)}, and qosd writes to matched cgroups only, never above them"
    known = "; ".join(f"{rule.name} ({rule.tier.upper()}): {', '.join(rule.match)}" for rule in rules)
    return f"no [[workload]] rule matches it, so it counts as system and is never written to. Rules: {known}"


def explain(
    path: str, status: Status, rules: tuple[_Rule, ...], records: tuple[DecisionRecord, ...], *, there: bool
) -> Explanation:
    workload = next((workload for workload in status.workloads if workload.path == path), None)
    return Explanation(
        path,
        there or workload is not None,
        status.mode,
        status.time,
        workload,
        why_not(path, status, rules),
        tuple(setting for setting in status.settings if setting.path == path),
        tuple(record for record in reversed(records) if record.path == path),
        next((each for each in status.net.egress if each.path == path), None)
        if status.net is not None
        else None,
        cpu.sentences(status.cpu, path),
        memory.find(status.memory, path),
    )


def only_file(explained: Explanation, file: str) -> Explanation:
    return msgspec.structs.replace(
        explained,
        settings=tuple(setting for setting in explained.settings if _is(setting.file, file)),
        decisions=tuple(record for record in explained.decisions if _is(record.file, file)),
    )


def _is(file: str, asked: str) -> bool:
    """`io.max` asks for each of its lines as well."""
    return asked in (file, interface_file(file))


def render(explained: Explanation, now: float) -> Group:
    parts: list[RenderableType] = [_headline(explained)]
    if explained.mode != "enforce":
        parts.append(Text(f"qosd is {MODES.get(explained.mode, (explained.mode, ''))[0]}", "yellow"))
    if explained.egress is not None:
        parts.append(Text(f"It sends {network.sentence(explained.egress)}."))
    if explained.memory is not None:
        parts += memory.sentences(explained.memory)
    parts += [Text(sentence) for sentence in explained.cpu]
    for setting in explained.settings:
        parts += [Text(), *_setting(setting, explained, now)]
    if explained.not_managed is None and not explained.settings:
        parts.append(Text("No governor wants anything of it now."))
    if explained.decisions:
        parts += [Text(), Text("Latest decisions, newest first", "bold")]
        parts.append(decisions.table(explained.decisions[:_RECENT], now))
    return Group(*parts)


def _headline(explained: Explanation) -> Text:
    name = explained.path or "the root cgroup"
    workload = explained.workload
    if workload is not None:
        return Text.assemble(
            (name, "bold"),
            f" is workload {workload.name}: tier {workload.tier.upper()}, priority {workload.priority};"
            f" it uses {screen.cores(workload.cpu_cores)} CPUs, {screen.size(workload.memory_bytes)} memory",
        )
    missing = "" if explained.exists else " (there is no such cgroup now)"
    return Text.assemble((name, "bold"), f"{missing}: not managed by qosd, because {explained.not_managed}")


def _setting(setting: SettingStatus, explained: Explanation, now: float) -> Iterator[RenderableType]:
    value = setting.value if setting.value is not None else "-"
    yield Text.assemble((f"{setting.file} = {value}", "bold"), f"   {_standing(setting, explained.mode)}")
    grid = _reason_grid(setting.reason, now - explained.time)
    for record in explained.decisions:
        if record.file == setting.file and record.result in _WRITES:
            grid.add_row(
                "  written",
                f"{screen.duration(now - record.time)} ago (decision {record.id}, tick {record.tick})",
            )
            break
    if setting.error is not None:
        grid.add_row("  error", setting.error)
    yield grid


def _reason_grid(reason: Reason, since_tick: float) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for label, text in _reason(reason, since_tick):
        grid.add_row(f"  {label}", text)
    return grid


def _standing(setting: SettingStatus, mode: str) -> str:
    before = f"; before qosd it was {setting.original!r}" if setting.original is not None else ""
    if setting.state == "in-force":
        return f"set by qosd{before}"
    if setting.state == "already":
        return "as wanted; it was so before qosd, which changed nothing"
    if setting.state == "writing":
        return (
            f"wanted: {setting.wanted}"
            + ("" if mode == "enforce" else ", and not written in this mode")
            + before
        )
    return f"wanted: {setting.wanted}; {STATES.get(setting.state, setting.state)}{before}"


def _quantity(given: Input) -> str:
    return bit_rate(given.value) if given.unit == "bit/s" else f"{given.value:g} {given.unit}"


def _reason(reason: Reason, since_tick: float) -> Iterator[tuple[str, str]]:
    yield "why", reason.text
    yield "rule", reason.rule
    ages: dict[str, list[str]] = {}
    for given in reason.inputs:
        age = screen.duration(given.age_ms / 1000 + max(since_tick, 0.0))
        ages.setdefault(age, []).append(f"{given.name} {_quantity(given)}")
    for age, numbers in ages.items():
        yield "inputs", f"{', '.join(numbers)} (read {age} ago)"
    for label, text in (("threshold", reason.threshold), ("margin", reason.margin), ("clamp", reason.clamp)):
        if text is not None:
            yield label, text


def render_uplink(explained: UplinkExplanation, now: float) -> Group:
    uplink = explained.uplink
    parts: list[RenderableType] = [network.headline(uplink, explained.mode)]
    if uplink.error is not None:
        parts.append(Text(f"! {uplink.error}", "yellow"))
    if uplink.reason is not None:
        parts += [Text(), _reason_grid(uplink.reason, now - explained.time)]
    if uplink.classes:
        parts += [Text(), *network.classes(uplink)]
    if explained.decisions:
        parts += [Text(), Text("Latest decisions, newest first", "bold")]
        parts.append(decisions.table(explained.decisions[:_RECENT], now))
    return Group(*parts)


def _show_uplink(socket: str, status: Status, name: str, *, json: bool) -> None:
    uplink = network.find(status, name)
    known_as = (uplink.name, *uplink.formerly)
    records = tuple(record for record in reversed(decisions.fetch(socket)) if record.path in known_as)
    explained = UplinkExplanation(status.mode, status.time, uplink, records)
    if json:
        print_json(msgspec.json.encode(explained))
        return
    if name != uplink.name:
        screen.console().print(f"The uplink that was {name} is called {uplink.name} now.")
    screen.console().print(render_uplink(explained, time.time()))


def show(socket: str, name: str, file: str | None, *, json: bool) -> None:
    """Raises `Failure` when there is no such cgroup or uplink, or qosd wants nothing of the file."""
    status = client.ask_for(socket, "status", Status)
    if file is None and name in network.names(status):
        _show_uplink(socket, status, name, json=json)
        return
    rules = client.ask_for(socket, "config", _Rules).workload
    records = decisions.fetch(socket)
    mount = cgroup2_mount()
    known: Mapping[str, str] = {workload.path: workload.name for workload in status.workloads}
    everything = [
        explain(path, status, rules, records, there=exists(path, mount))
        for path in resolve(name, known, mount)
    ]
    if file is not None:
        everything = [only_file(explained, file) for explained in everything]
    if json:
        print_json(msgspec.json.encode(everything))
    else:
        for explained in everything:
            screen.console().print(render(explained, time.time()))
    if not any(explained.exists for explained in everything):
        uplinks = "" if "/" in name else network.those_there_are(status)
        raise Failure(f"{name}: no such cgroup{uplinks}", NO)
    if file is not None and not any(explained.settings for explained in everything):
        raise Failure(f"{name}: qosd wants nothing of {file}", NO)
