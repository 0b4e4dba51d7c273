"""The facts that `qosd.doctor` judges, found by looking. Nothing is written, nothing is left loaded."""

from __future__ import annotations

import contextlib
import ctypes
import os

import psutil

from qosd import trigger
from qosd.config import Config, WorkloadRule
from qosd.configfile import read_config
from qosd.discover import Match, resolve
from qosd.disks import find
from qosd.engine import NEVER_TOUCHED
from qosd.errors import ConfigError
from qosd.facts import (
    KERNEL_FILES,
    CgroupFacts,
    DiskFacts,
    Facts,
    IoFacts,
    PatternFacts,
    SliceFacts,
    TriggerFacts,
    UplinkFacts,
)
from qosd.host import HostFacts, probe_host
from qosd.model import Tier, printable
from qosd.net import survey as net
from qosd.oomkillers import NAMES as OOM_KILLERS
from qosd.schema.fast import Fast
from qosd.schema.io import wants_disks
from qosd.sys import DIRECTORY, Sys
from qosd.systemd import unit_property

_CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
_PMUS = ("cpu", "cpu_core", "armv8_pmuv3", "armv8_pmuv3_0")
_NOT_DISKS = ("loop", "ram", "zram", "sr", "fd", "dm-", "md")
_PERCENT = 100.0


def survey(config_path: str, *, daemon_running: bool | None, proc: str = "/proc") -> Facts:
    """Raises OSError only where /proc itself cannot be read."""
    host = probe_host(proc)
    config, error = _read_config(config_path)
    cgroups, patterns, refused = _workloads(host.cgroup_root, config.workload)
    return Facts(
        host,
        os.geteuid(),
        config_path,
        error,
        daemon_running,
        cgroups,
        patterns,
        refused,
        _kernel_files(host, cgroups),
        psutil.swap_memory().total,
        _oom_killers(),
        _slices(config),
        _unit_capabilities(),
        os.path.exists("/sys/kernel/btf/vmlinux"),
        _has_libbpf(),
        os.path.isdir("/usr/lib/python3/dist-packages/bcc"),
        any(os.path.exists(f"/sys/bus/event_source/devices/{name}") for name in _PMUS),
        _has_htb(),
        _read(_CLOCK),
        _steal_pct(),
        _disks(host.cgroup_root),
        _uplinks(config),
        _oomd_slices(config),
        io=_io(config, cgroups, proc),
        trigger=_trigger(config.fast, proc),
    )


def _read_config(path: str) -> tuple[Config, str | None]:
    try:
        return read_config(path), None
    except ConfigError as error:
        return Config(), str(error)


def _uplinks(config: Config) -> tuple[UplinkFacts, ...]:
    if not config.net.uplinks:
        return ()
    try:
        return tuple(UplinkFacts(*finding) for finding in net.survey(config.net))
    except OSError as error:
        why = f"cannot look at the devices: {error.strerror or error}"
        return (UplinkFacts("net", ok=False, text=why, remedy="run it on the host, as root"),)


def _trigger(fast: Fast, proc: str) -> TriggerFacts:
    sys = Sys()
    try:
        dir_fd = sys.open(f"{proc}/pressure", DIRECTORY)
        try:
            fd, _, window_usec = trigger.arm(sys, dir_fd, fast, "cpu")
            sys.close(fd)
        finally:
            sys.close(dir_fd)
    except OSError as error:
        return TriggerFacts(int(fast.window), None, trigger.why(error))
    return TriggerFacts(int(fast.window), window_usec)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _workloads(
    root: str | None, rules: tuple[WorkloadRule, ...]
) -> tuple[tuple[CgroupFacts, ...], tuple[PatternFacts, ...], dict[str, str]]:
    if root is None:
        return (), (), {}
    sys = Sys()
    root_fd = sys.open(root, DIRECTORY)
    try:
        matches, refused = resolve(sys, root_fd, rules, NEVER_TOUCHED)
        patterns = tuple(
            PatternFacts(rule.name, pattern, _count(sys, root_fd, rule, pattern))
            for rule in rules
            for pattern in rule.match
        )
    finally:
        sys.close(root_fd)
    taken = tuple(_cgroup(root, match) for match in matches)
    return taken, patterns, {printable(path): why for path, why in refused.items()}


def _count(sys: Sys, root_fd: int, rule: WorkloadRule, pattern: str) -> int:
    alone = WorkloadRule(name=rule.name, tier=rule.tier, match=(pattern,))
    matches, refused = resolve(sys, root_fd, (alone,), ())
    return len(matches) + len(refused)


def _cgroup(root: str, match: Match) -> CgroupFacts:
    files: frozenset[str] = frozenset()
    with contextlib.suppress(OSError):
        files = frozenset(os.listdir(f"{root}/{match.path}"))
    parts = match.path.split("/")
    ancestors = ["/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
    unprotected = next((path for path in ancestors if _read(f"{root}/{path}/memory.low") == "0"), None)
    return CgroupFacts(
        printable(match.path),
        match.rule.tier,
        files,
        _read(f"{root}/{match.path}/memory.low"),
        printable(unprotected) if unprotected is not None else None,
    )


def _kernel_files(host: HostFacts, cgroups: tuple[CgroupFacts, ...]) -> dict[str, bool]:
    """A cgroup other than the root shows a file if its controller is on there and the kernel has it."""
    groups = [cgroup.files for cgroup in cgroups]
    for name in ("init.scope", "system.slice", "user.slice"):
        with contextlib.suppress(OSError):
            groups.append(frozenset(os.listdir(f"{host.cgroup_root}/{name}")))
    signs = {"cpu": "cpu.weight", "memory": "memory.current", "": "cgroup.procs"}
    return {
        file: any(file in files for files in groups)
        for file, (controller, _, _) in KERNEL_FILES.items()
        if any(signs[controller] in files for files in groups)
    }


def _oom_killers() -> tuple[str, ...]:
    running = {process.info["name"] for process in psutil.process_iter(["name"])}
    return tuple(name for name in OOM_KILLERS if name in running)


def _slices(config: Config) -> tuple[SliceFacts, ...]:
    used = {pattern for rule in config.workload for pattern in rule.match}
    shown = {name: unit_property(name, "FragmentPath") for name in ("ls.slice", "be.slice") if name in used}
    return tuple(SliceFacts(name, bool(path)) for name, path in shown.items() if path is not None)


def _oomd_slices(config: Config) -> tuple[str, ...]:
    slices = {
        pattern.partition("/")[0]
        for rule in config.workload
        for pattern in rule.match
        if pattern.partition("/")[0].endswith(".slice")
    }
    settings = ("ManagedOOMMemoryPressure", "ManagedOOMSwap")
    return tuple(
        name
        for name in ("-.slice", *sorted(slices))
        if any(unit_property(name, setting) == "kill" for setting in settings)
    )


def _unit_capabilities() -> frozenset[str] | None:
    if not unit_property("qosd.service", "FragmentPath"):
        return None
    shown = unit_property("qosd.service", "CapabilityBoundingSet")
    return None if shown is None else frozenset(shown.split())


def _has_libbpf() -> bool:
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        return False
    return True


def _has_htb() -> bool | None:
    """Loaded, built in, or there to be loaded; None where no list of modules says."""
    if os.path.isdir("/sys/module/sch_htb"):
        return True
    lists = [_read(f"/lib/modules/{os.uname().release}/modules.{kind}") for kind in ("builtin", "dep")]
    known = [text for text in lists if text is not None]
    return any("/sch_htb.ko" in text for text in known) if known else None


def _steal_pct() -> float | None:
    times = psutil.cpu_times()
    total = sum(times) - times.guest - times.guest_nice  # both are inside user and nice already
    return _PERCENT * times.steal / total if total > 0 else None


def _disks(root: str | None) -> tuple[DiskFacts, ...]:
    try:
        names = sorted(os.listdir("/sys/block"))
    except OSError:
        return ()
    cost, models = (_read(f"{root}/io.cost.{kind}") or "" for kind in ("qos", "model"))
    disks = []
    for name in names:
        if name.startswith(_NOT_DISKS):
            continue
        chosen = (_read(f"/sys/block/{name}/queue/scheduler") or "").partition("[")[2].partition("]")[0]
        device = _read(f"/sys/block/{name}/dev")
        weighs = _setting_of(cost, device, "enable") == "1"
        model = _setting_of(models, device, "ctrl") if weighs else None
        disks.append(DiskFacts(name, chosen or None, weighs, model))
    return tuple(disks)


def _setting_of(text: str, device: str | None, key: str) -> str | None:
    """`1` of `8:16 enable=1 ...`: the root's io.cost files have a line for each device that was set."""
    for line in text.splitlines():
        name, *fields = line.split()
        if name == device:
            return dict(field.partition("=")[::2] for field in fields).get(key)
    return None


def _io(config: Config, cgroups: tuple[CgroupFacts, ...], proc: str) -> IoFacts | None:
    if not wants_disks(config.io):
        return None
    found = find(Sys(), proc, "/sys")
    ls = [cgroup.files for cgroup in cgroups if cgroup.tier is Tier.LS and "io.stat" in cgroup.files]
    there = any("io.latency" in files for files in ls) if ls else None
    return IoFacts(found.disks, dict(found.unsupported), config.io.latency.target > 0, there)
