"""What this host lacks for qosd and the exact remedy: findings from the facts of `qosd.survey`. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from qosd.facts import CONTROLLERS, KERNEL_FILES, DiskFacts, Facts
from qosd.host import HostFacts
from qosd.model import Tier

_SLOW_CLOCKS = frozenset({"hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit"})
_STEAL_PCT = 2.0
_NAMED = 3


class Severity(enum.StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    check: str
    severity: Severity
    text: str
    remedy: str | None = None


def examine(facts: Facts) -> list[Finding]:
    return [
        *_cgroup2(facts.host),
        *_controllers(facts),
        _psi(facts.host),
        *_triggers(facts),
        *_kernel_files(facts),
        *_config(facts),
        *_patterns(facts),
        *_slices(facts),
        *_daemon(facts),
        *_memory(facts),
        *_protection(facts),
        *_disks(facts),
        *_io(facts),
        *_probes(facts),
        *_uplinks(facts),
        *_clock(facts),
    ]


def _ok(check: str, text: str) -> Finding:
    return Finding(check, Severity.OK, text)


def _warn(check: str, text: str, remedy: str) -> Finding:
    return Finding(check, Severity.WARN, text, remedy)


def _fail(check: str, text: str, remedy: str) -> Finding:
    return Finding(check, Severity.FAIL, text, remedy)


def _cgroup2(host: HostFacts) -> Iterator[Finding]:
    boot = "boot with the kernel parameter systemd.unified_cgroup_hierarchy=1"
    if host.cgroup_root is None:
        yield _fail("cgroup2", "no cgroup v2 hierarchy is mounted", boot)
    elif "cpu" not in host.controllers:
        held = "cgroup v1 holds them" if host.hybrid else "the kernel has none"
        yield _fail("cgroup2", f"cgroup v2 at {host.cgroup_root} has no cpu controller ({held})", boot)
    elif not host.writable:
        yield _fail(
            "cgroup2", f"{host.cgroup_root} is mounted read-only", "run qosd on the host, not in a container"
        )
    else:
        yield _ok("cgroup2", f"mounted at {host.cgroup_root}, writable")


def _controllers(facts: Facts) -> Iterator[Finding]:
    if "cpu" not in facts.host.controllers:
        return  # said once, for all of them
    for name, (file, unit_property) in CONTROLLERS.items():
        if name not in facts.host.controllers:
            yield _warn(
                f"controller {name}",
                f"the kernel offers no {name} controller to cgroup v2",
                f"boot without cgroup_disable={name}, and mount no cgroup v1 hierarchy with {name}",
            )
            continue
        without = [cgroup.path for cgroup in facts.cgroups if file not in cgroup.files]
        if without:
            unit = without[0].rsplit("/", 1)[-1]
            hint = ", which qosd.service does by itself while it runs" if name == "cpuset" else ""
            yield _warn(
                f"controller {name}",
                f"not enabled for {_some(without)}: no {file} there",
                f"systemctl set-property {unit} {unit_property} makes systemd enable it{hint}",
            )
        else:
            yield _ok(f"controller {name}", "enabled wherever a workload is")


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more


def _psi(host: HostFacts) -> Finding:
    if host.psi:
        return _ok("psi", "pressure is measured")
    return _warn(
        "psi", "pressure (PSI) is off: qosd cannot see who waits", "boot with the kernel parameter psi=1"
    )


def _triggers(facts: Facts) -> Iterator[Finding]:
    if not facts.host.psi or facts.trigger is None:
        return
    wanted, got = facts.trigger.wanted_usec // 1000, facts.trigger.window_usec
    if got is None:
        yield _warn(
            "psi triggers",
            f"{facts.trigger.refused}: qosd sees at each tick only that LS waits",
            "sudo qosctl doctor" if facts.uid != 0 else "run qosd on the host itself, with CAP_SYS_RESOURCE",
        )
    elif got // 1000 > wanted:
        yield _warn(
            "psi triggers",
            f"the kernel reports after {got // 1000} ms that LS waits, not after {wanted} ms (fast.window)",
            "Linux 6.5 or newer for windows under 500 ms, CAP_SYS_RESOURCE for those under 2 s",
        )
    else:
        yield _ok("psi triggers", f"the kernel reports within {wanted} ms that LS waits for CPUs")


def _kernel_files(facts: Facts) -> Iterator[Finding]:
    for file, (_, version, lost) in KERNEL_FILES.items():
        there = facts.kernel_files.get(file)
        if there:
            yield _ok(file, "the kernel has it")
        if there is False:
            yield _warn(file, f"this kernel has no {file}: {lost}", f"Linux {version} or newer")
    unknown = [file for file in KERNEL_FILES if file not in facts.kernel_files]
    if unknown and "cpu" in facts.host.controllers:
        yield _warn(
            "kernel files",
            f"cannot tell whether the kernel has {', '.join(unknown)}: no cgroup has the controller now",
            "look again while a job runs: qosctl run be -- sleep 60",
        )


def _config(facts: Facts) -> Iterator[Finding]:
    if facts.config_error is not None:
        yield _fail(
            "config", facts.config_error, "qosctl check says the same after each change; then qosctl reload"
        )
    else:
        yield _ok("config", f"{facts.config} is valid, and only root can change it")
    if facts.uid != 0:
        yield _warn("root", "not run as root: some of this could not be looked at", "sudo qosctl doctor")


def _patterns(facts: Facts) -> Iterator[Finding]:
    for each in facts.patterns:
        if each.matches:
            continue
        own = each.pattern in ("ls.slice", "be.slice")
        yield _warn(
            f"workload {each.workload}",
            f"{each.pattern!r} matches no cgroup now",
            f"qosctl run {each.pattern[:2]} -- COMMAND starts something in it; it exists only as long"
            if own
            else "systemd-cgls shows the names; patterns are relative to the cgroup2 mount",
        )
    for path, why in facts.refused.items():
        yield _warn(f"workload {path}", f"matched but not taken: {why}", "change the [[workload]] rules")
    if facts.patterns and all(each.matches for each in facts.patterns):
        yield _ok("workloads", f"{len(facts.cgroups)} cgroups matched")


def _slices(facts: Facts) -> Iterator[Finding]:
    for each in facts.slices:
        if each.has_unit_file:
            yield _ok(each.name, "has a unit file: its weights hold without qosd too")
        else:
            yield _warn(
                each.name,
                f"{each.name} has no unit file: while qosd is not running, nothing sets its weight",
                "install the qosd package, or copy its systemd/*.slice to /etc/systemd/system"
                " and run systemctl daemon-reload",
            )


def _daemon(facts: Facts) -> Iterator[Finding]:
    if facts.daemon_running:
        yield _ok("daemon", "running")
    elif facts.daemon_running is False:
        yield _warn("daemon", "qosd is not running", "systemctl start qosd; why: journalctl -u qosd -n 20")
    if facts.unit_capabilities is not None and "cap_sys_resource" not in facts.unit_capabilities:
        yield _warn(
            "capabilities",
            "qosd.service lacks CAP_SYS_RESOURCE: pressure triggers react in 2 s at best",
            "systemctl edit qosd: [Service] CapabilityBoundingSet=CAP_SYS_RESOURCE (adds to the list)",
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.swap_bytes == 0:
        yield _warn(
            "swap",
            "no swap: only page cache can be taken back from BE, and a memory.high below the rest stalls it",
            "add swap (a file, or zram), or keep memory.high off BE",
        )
    elif facts.swap_bytes is not None:
        yield _ok("swap", f"{facts.swap_bytes >> 20} MiB")
    yield from _oom_killers(facts)


def _protection(facts: Facts) -> Iterator[Finding]:
    """No cgroup is protected beyond any of its ancestors; below a protected one only with a mount option."""
    if facts.host.recursive_protection is False:
        yield _warn(
            "memory.low",
            "cgroup2 is mounted without memory_recursiveprot: memory.low of a slice ends at the slice",
            f"mount -o remount,rw,nsdelegate,memory_recursiveprot {facts.host.cgroup_root}",
        )
    for cgroup in facts.cgroups:
        above = cgroup.unprotected_ancestor
        if above is None or cgroup.memory_low is None:
            continue
        unit = above.rsplit("/", 1)[-1]
        if cgroup.memory_low != "0":
            yield _warn(
                "memory.low",
                f"{cgroup.path} has memory.low={cgroup.memory_low}, worth nothing while {above} has 0",
                f"systemctl set-property {unit} MemoryLow={cgroup.memory_low}",
            )
        elif cgroup.tier is Tier.LS:
            yield _warn(
                "memory.low",
                f"qosd cannot protect the memory of {cgroup.path} while {above} has memory.low=0",
                f"systemctl set-property {unit} MemoryLow=20%",
            )


def _oom_killers(facts: Facts) -> Iterator[Finding]:
    for name in facts.oom_killers:
        if name == "systemd-oomd" and facts.oomd_slices:
            yield _warn(
                "oom killer",
                f"{name} kills in {_some(list(facts.oomd_slices))} as well, and neither waits for the other",
                f"leave it to one: systemctl set-property {facts.oomd_slices[0]} ManagedOOMSwap=auto"
                " ManagedOOMMemoryPressure=auto, or interference.answer below kill",
            )
            continue
        yield _warn(
            "oom killer",
            f"{name} is active and kills by rules of its own, LS services included",
            "systemctl set-property ls.slice ManagedOOMPreference=omit"
            if name == "systemd-oomd"
            else f"systemctl disable --now {name}, or exempt the LS services in its configuration",
        )


def _disks(facts: Facts) -> Iterator[Finding]:
    for disk in facts.disks:
        if disk.io_cost or disk.scheduler == "bfq":
            yield _ok(f"disk {disk.name}", f"weighs io by cgroup: {_weigher(disk)}")
        else:
            yield _warn(
                f"disk {disk.name}",
                f"IOWeight has no effect: scheduler {disk.scheduler or 'none'}, io.cost off",
                f"modprobe bfq; echo bfq > /sys/block/{disk.name}/queue/scheduler (udev rule to keep it);"
                " or io.cost, which is set in the root cgroup, where qosd writes nothing: docs/io.md",
            )


def _weigher(disk: DiskFacts) -> str:
    if not disk.io_cost:
        return "scheduler bfq"
    measured = "a model of your own" if disk.io_cost_model == "user" else "the kernel's model of such disks"
    return f"io.cost with {measured}"


def _io(facts: Facts) -> Iterator[Finding]:
    if facts.io is None:
        return
    if facts.io.disks:
        yield _ok("io disks", f"settings are possible at {', '.join(facts.io.disks)}")
    else:
        yield _warn("io disks", "no disk under any mounted filesystem: nothing to limit", "see docs/io.md")
    for point, why in facts.io.unsupported.items():
        yield _warn(f"io {point}", f"no limit is possible there: {why}", "see docs/io.md")
    if facts.io.latency_asked and facts.io.latency_there is False:
        yield _warn(
            "io.latency",
            "this kernel has no io.latency, so [io.latency] target does nothing",
            "a kernel with CONFIG_BLK_CGROUP_IOLATENCY (Debian's cloud kernel has none)",
        )


def _probes(facts: Facts) -> Iterator[Finding]:
    lost = "qosd does without run-queue latency"
    if not facts.btf and facts.libbpf and facts.bcc:
        yield _ok("bcc", "no BTF, but bcc is there: it compiles the run-queue probe at each start")
    elif not facts.btf:
        yield _warn(
            "btf",
            f"no /sys/kernel/btf/vmlinux: {lost}",
            "a kernel with CONFIG_DEBUG_INFO_BTF (Debian's), or python3-bpfcc and the kernel's headers",
        )
    if not facts.libbpf:
        yield _warn("libbpf", f"libbpf.so.1 is not installed: {lost}", "apt install libbpf1")
    if facts.btf and facts.libbpf:
        yield _ok("bpf", "BTF and libbpf are there")
    yield from _attached(facts)
    if facts.pmu:
        yield _ok("pmu", "the CPU counts cycles and cache misses")
    else:
        yield _warn(
            "pmu",
            "no hardware counters: qosd does without cycles per instruction",
            "in a virtual machine, have the hypervisor pass the PMU through (qemu: -cpu host,pmu=on)",
        )
    if facts.htb:
        yield _ok("htb", "the kernel can shape traffic")
    elif facts.htb is False:
        yield _warn("htb", "no sch_htb: egress cannot be shaped", "a kernel with CONFIG_NET_SCH_HTB")


def _attached(facts: Facts) -> Iterator[Finding]:
    """What the daemon says of each probe: the kernel's or the verifier's own words."""
    for probe in facts.probes or ():
        if probe.state == "attached":
            yield _ok(f"probe {probe.name}", "attached")
        elif probe.state == "detached":
            yield _warn(
                f"probe {probe.name}",
                f"detached: {probe.why}",
                "raise ebpf.max_overhead_pct, or leave the probe out of ebpf.probes; then qosctl reload",
            )
        elif probe.state == "absent":
            yield _warn(
                f"probe {probe.name}",
                f"not attached: {probe.why}",
                'docs/ebpf.md says what it needs; ebpf.probes = "off" goes without',
            )
    lacking = frozenset({"cap_bpf", "cap_perfmon"}) - (facts.unit_capabilities or frozenset())
    if facts.unit_capabilities is not None and lacking:
        named = " ".join(sorted(lacking)).upper()
        yield _warn(
            "probe capabilities",
            f"qosd.service lacks {named}: no probe can be loaded",
            f"systemctl edit qosd: [Service] CapabilityBoundingSet={named} (adds to the list)",
        )


def _uplinks(facts: Facts) -> Iterator[Finding]:
    for each in facts.uplinks:
        if each.ok:
            yield _ok(f"uplink {each.name}", each.text)
        else:
            yield _warn(
                f"uplink {each.name}", f"not shaped: {each.text}", each.remedy or "see docs/network.md"
            )


def _clock(facts: Facts) -> Iterator[Finding]:
    if facts.clock_source in _SLOW_CLOCKS:
        yield _warn(
            "clock",
            f"clock source {facts.clock_source}: each reading of the time is a slow device access",
            "boot with the kernel parameter clocksource=tsc, if available_clocksource lists it",
        )
    elif facts.clock_source is not None:
        yield _ok("clock", facts.clock_source)
    if facts.steal_pct is not None and facts.steal_pct >= _STEAL_PCT:
        yield _warn(
            "steal",
            f"the hypervisor gave {facts.steal_pct:.0f} % of the CPU time since boot to others",
            "dedicated CPUs for this machine; qosd counts only what is left as capacity",
        )
