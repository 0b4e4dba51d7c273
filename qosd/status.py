"""The last tick as one frozen value: what qosctl, the metrics and the audit records are made of. Pure."""

from __future__ import annotations

import msgspec

from qosd.act import Report
from qosd.cgroupfs import format_setting
from qosd.cpu.allowance import Usage, workload_cores
from qosd.cpu.view import CpuView
from qosd.ebpf.status import ProbesView
from qosd.files import Key, value_of
from qosd.governors import Decision
from qosd.interference.view import InterferenceView
from qosd.memory.decide import MemoryView, WorkloadMemory
from qosd.model import DiskIo, Feed, Pressure, Snapshot, Tier, Workload, printable
from qosd.net.status import NetView
from qosd.plan import Desired, FileState, Ledger, Plan, Reason
from qosd.policies import PolicyStatus
from qosd.reflex import ReflexStatus
from qosd.stalls import Waits, tier_waits


class HostStatus(msgspec.Struct, frozen=True):
    nr_cpus: int
    capacity_cores: float | None
    system_cores: float | None
    mem_total_bytes: int | None
    mem_available_bytes: int | None
    cpu_pressure: Pressure | None
    memory_pressure: Pressure | None
    io_pressure: Pressure | None


class TierStatus(msgspec.Struct, frozen=True):
    cpu_cores: float | None
    cpu_allowance_cores: float | None = None
    """For BE: what it may use now. None for LS, and while BE is not limited."""
    reason: Reason | None = None
    waits: Waits = Waits()
    """Of the last tick, the worst of the tier's workloads."""


class WorkloadStatus(msgspec.Struct, frozen=True):
    name: str
    tier: Tier
    priority: int
    path: str
    cgroup_id: int
    cpu_cores: float | None
    memory_bytes: int | None
    cpu_pressure: Pressure | None
    memory_pressure: Pressure | None
    io_pressure: Pressure | None
    io: dict[str, DiskIo] | None = None
    """io.stat by MAJ:MIN; None where the io controller is off."""


class SettingStatus(msgspec.Struct, frozen=True):
    """One interface file that qosd wants something of, or still holds something of ours."""

    path: str
    file: str
    cgroup_id: int
    value: str | None
    """What the file held when this tick read it, or after this tick wrote it."""
    wanted: str
    original: str | None
    """What stood there before qosd's first write; None while nothing of ours is in force."""
    state: str
    reason: Reason
    error: str | None = None


class SensorStatus(msgspec.Struct, frozen=True):
    name: str
    ok: bool
    age_ms: int | None
    """Since it last said something; None if it never did."""
    detail: str | None = None


class DecisionRecord(msgspec.Struct, frozen=True):
    """One write or restore: the audit record."""

    id: int
    time: float
    tick: int
    path: str
    file: str
    old: str
    new: str
    result: str
    reason: Reason
    error: str | None = None


class Status(msgspec.Struct, frozen=True):
    version: str
    mode: str
    """enforce, observe, paused, starting, failed."""
    tick: int
    time: float
    interval_ms: int
    late_ticks: int
    tick_ms: float
    config: str
    config_error: str | None
    host: HostStatus
    tiers: dict[str, TierStatus]
    workloads: tuple[WorkloadStatus, ...]
    settings: tuple[SettingStatus, ...]
    sensors: tuple[SensorStatus, ...]
    refused: dict[str, str]
    """Cgroups that a rule matches and qosd does not take, with the reason."""
    paused_until: float | None = None
    net: NetView | None = None
    """None while `[net] uplinks` lists nothing."""
    reflex: ReflexStatus | None = None
    """What is found and done between two ticks."""
    interference: InterferenceView | None = None
    cpu: CpuView = CpuView()
    ebpf: ProbesView | None = None
    feeds: tuple[Feed, ...] = ()
    """What each `[[signal]]`, and each signal of a policy, last said."""
    policies: tuple[PolicyStatus, ...] = ()
    memory: MemoryView | None = None
    oom_killers: tuple[str, ...] = ()
    """Other daemons here that kill when memory runs out."""


def host_status(now: Snapshot, usage: Usage | None) -> HostStatus:
    host = now.host
    return HostStatus(
        host.nr_cpus,
        usage.capacity if usage is not None else None,
        usage.system if usage is not None else None,
        host.mem_total,
        host.mem_available,
        host.cpu_pressure,
        host.memory_pressure,
        host.io_pressure,
    )


def tier_status(prev: Snapshot | None, now: Snapshot, decision: Decision) -> dict[str, TierStatus]:
    granted = decision.allowance
    usage = granted.usage if granted is not None else None
    return {
        Tier.LS.value: TierStatus(
            usage.ls if usage is not None else None, waits=tier_waits(prev, now, Tier.LS)
        ),
        Tier.BE.value: TierStatus(
            usage.be if usage is not None else None,
            granted.cores if granted is not None else None,
            granted.reason if granted is not None else None,
            tier_waits(prev, now, Tier.BE),
        ),
    }


def workload_status(prev: Snapshot | None, now: Snapshot, workload: Workload) -> WorkloadStatus:
    cores = None
    if prev is not None and now.monotonic_usec > prev.monotonic_usec:
        elapsed = now.monotonic_usec - prev.monotonic_usec
        cores = workload_cores(prev.workload(workload.id), workload, elapsed, now.host.nr_cpus)
    sample = workload.sample
    return WorkloadStatus(
        workload.name,
        workload.tier,
        workload.priority,
        printable(workload.path),
        workload.id,
        cores,
        sample.memory_current,
        sample.cpu_pressure,
        sample.memory_pressure,
        sample.io_pressure,
        sample.io,
    )


def setting_status(
    desired: tuple[Desired, ...], plan: Plan, ledger: Ledger, files: dict[Key, str], report: Report
) -> tuple[SettingStatus, ...]:
    written = {done.write.key: done for done in report.applied}
    settings = []
    for wanted in desired:
        key = Key(wanted.cgroup_id, wanted.setting.file)
        state = ledger.get(key, FileState())
        standing = plan.states[key].value if key in plan.states else "released"
        value = value_of(files, key)
        done = written.get(key)
        if done is not None and done.result == "written":
            standing, value = "in-force", done.write.new
        elif done is not None:
            standing = done.result
        settings.append(
            SettingStatus(
                printable(wanted.path),
                key.file,
                key.cgroup_id,
                value,
                format_setting(wanted.setting),
                state.original,
                standing,
                wanted.reason,
                state.error,
            )
        )
    return tuple(settings)


def memory_view(decision: Decision, stuck: int) -> MemoryView | None:
    if decision.memory is None:
        return None
    return msgspec.structs.replace(decision.memory.view, stuck=stuck)


def reclaim_records(
    seen: tuple[WorkloadMemory, ...], before: dict[str, str], at: tuple[int, float, int]
) -> tuple[DecisionRecord, ...]:
    """What background reclaim began, stopped or met; `at` is the first record's id, the time and the tick."""
    told = ("reclaiming", "held", "nothing")
    first_id, time, tick = at
    changes = [
        each
        for each in seen
        if each.phase != before.get(each.path)
        and (each.phase in told or before.get(each.path) in ("reclaiming", "held"))
    ]
    return tuple(
        DecisionRecord(
            first_id + n,
            time,
            tick,
            each.path,
            "memory.reclaim",
            before.get(each.path, ""),
            each.phase,
            "event",
            Reason("memory.reclaim", each.reclaim),
        )
        for n, each in enumerate(changes)
    )


def decision_records(report: Report, first_id: int, time: float, tick: int) -> tuple[DecisionRecord, ...]:
    records = [
        DecisionRecord(
            first_id,
            time,
            tick,
            printable(done.write.path),
            done.write.key.file,
            done.write.old,
            done.write.new,
            "reasserted" if done.write.reassert and done.result == "written" else done.result,
            done.write.reason,
            done.error,
        )
        for done in report.applied
    ]
    records += [
        DecisionRecord(
            first_id,
            time,
            tick,
            printable(outcome.path),
            outcome.key.file,
            "",
            outcome.detail,
            f"restore {outcome.result}",
            Reason("release", "no governor wants this file any more; it gets its original back"),
        )
        for outcome in report.restored
    ]
    return tuple(msgspec.structs.replace(record, id=first_id + n) for n, record in enumerate(records))
