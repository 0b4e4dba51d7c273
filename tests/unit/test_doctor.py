from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from qosd.ctl.doctor import render
from qosd.ctl.main import cli
from qosd.doctor import Finding, Severity, examine
from qosd.ebpf.status import ProbeStatus
from qosd.facts import (
    CONTROLLERS,
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
from qosd.host import HostFacts
from qosd.model import Tier
from qosd.survey import _setting_of, survey

HOST = HostFacts("/sys/fs/cgroup", hybrid=False, writable=True, controllers=frozenset(CONTROLLERS), psi=True)
ALL_FILES = frozenset({*KERNEL_FILES, *(file for file, _ in CONTROLLERS.values())})
WELL = Facts(
    host=HOST,
    uid=0,
    config="/etc/qosd/qosd.toml",
    daemon_running=True,
    cgroups=(CgroupFacts("be.slice", Tier.BE, ALL_FILES, "0"),),
    patterns=(PatternFacts("be", "be.slice", 1),),
    kernel_files=dict.fromkeys(KERNEL_FILES, True),
    swap_bytes=1 << 30,
    slices=(SliceFacts("be.slice", has_unit_file=True),),
    unit_capabilities=frozenset({"cap_sys_resource", "cap_bpf", "cap_perfmon"}),
    btf=True,
    libbpf=True,
    pmu=True,
    htb=True,
    clock_source="tsc",
    steal_pct=0.1,
    disks=(DiskFacts("vda", "bfq", io_cost=False),),
    trigger=TriggerFacts(100_000, 100_000),
)


def wrong(facts: Facts) -> list[Finding]:
    return [finding for finding in examine(facts) if finding.severity is not Severity.OK]


def changed(**changes: Any) -> Facts:
    return msgspec.structs.replace(WELL, **changes)


def host(**changes: Any) -> HostFacts:
    return msgspec.structs.replace(HOST, **changes)


def cgroup(**changes: Any) -> tuple[CgroupFacts]:
    return (msgspec.structs.replace(WELL.cgroups[0], **changes),)


def test_a_mount_that_protects_only_the_cgroup_itself_is_told() -> None:
    """effective_protection() in mm/page_counter.c: the cgroups in the slice would have none."""
    facts = msgspec.structs.replace(WELL, host=msgspec.structs.replace(HOST, recursive_protection=False))

    (finding,) = wrong(facts)
    assert "memory_recursiveprot" in finding.text
    assert finding.remedy is not None
    assert "remount" in finding.remedy


def test_an_uplink_that_is_refused_is_a_warning_with_its_remedy() -> None:
    facts = changed(
        uplinks=(
            UplinkFacts("eth0", ok=True, text="eth0 can be shaped"),
            UplinkFacts("eth1", ok=False, text="there is no device eth1", remedy="correct net.uplinks"),
        )
    )
    (finding,) = wrong(facts)
    assert (finding.check, finding.text) == ("uplink eth1", "not shaped: there is no device eth1")
    assert finding.remedy == "correct net.uplinks"


def test_a_host_with_everything_has_nothing_wrong() -> None:
    assert wrong(WELL) == []


@pytest.mark.parametrize(
    ("changes", "check", "severity", "remedy"),
    [
        ({"host": host(cgroup_root=None)}, "cgroup2", "fail", "unified_cgroup_hierarchy=1"),
        (
            {"host": host(hybrid=True, controllers=frozenset())},
            "cgroup2",
            "fail",
            "unified_cgroup_hierarchy=1",
        ),
        ({"host": host(writable=False)}, "cgroup2", "fail", "on the host"),
        ({"host": host(psi=False)}, "psi", "warn", "psi=1"),
        ({"host": host(controllers=HOST.controllers - {"io"})}, "controller io", "warn", "cgroup_disable=io"),
        ({"cgroups": cgroup(files=ALL_FILES - {"cpu.max"})}, "controller cpu", "warn", "be.slice CPUWeight="),
        (
            {"cgroups": cgroup(files=ALL_FILES - {"memory.current"})},
            "controller memory",
            "warn",
            "be.slice MemoryAccounting=yes",
        ),
        (
            {"cgroups": cgroup(files=ALL_FILES - {"cpuset.cpus"})},
            "controller cpuset",
            "warn",
            "be.slice AllowedCPUs=",
        ),
        (
            {"cgroups": cgroup(files=ALL_FILES - {"io.stat"})},
            "controller io",
            "warn",
            "be.slice IOAccounting=yes",
        ),
        ({"kernel_files": {**WELL.kernel_files, "cpu.idle": False}}, "cpu.idle", "warn", "Linux 5.15"),
        ({"kernel_files": {}}, "kernel files", "warn", "qosctl run be"),
        ({"config_error": "qosd.toml: mode 0666"}, "config", "fail", "qosctl check"),
        ({"uid": 1000}, "root", "warn", "sudo"),
        ({"patterns": (PatternFacts("be", "be.slice", 0),)}, "workload be", "warn", "qosctl run be --"),
        ({"patterns": (PatternFacts("web", "x.service", 0),)}, "workload web", "warn", "systemd-cgls"),
        ({"refused": {"a.slice": "it is b"}}, "workload a.slice", "warn", "rules"),
        ({"slices": (SliceFacts("be.slice", has_unit_file=False),)}, "be.slice", "warn", "daemon-reload"),
        ({"daemon_running": False}, "daemon", "warn", "systemctl start qosd"),
        (
            {"unit_capabilities": frozenset({"cap_bpf", "cap_perfmon"})},
            "capabilities",
            "warn",
            "CAP_SYS_RESOURCE",
        ),
        (
            {"unit_capabilities": frozenset({"cap_sys_resource", "cap_perfmon"})},
            "probe capabilities",
            "warn",
            "CapabilityBoundingSet=CAP_BPF",
        ),
        (
            {"probes": (ProbeStatus("runq", "absent", "this kernel has no sched_switch"),)},
            "probe runq",
            "warn",
            'ebpf.probes = "off"',
        ),
        (
            {"probes": (ProbeStatus("runq", "detached", "it took 2 %"),)},
            "probe runq",
            "warn",
            "ebpf.max_overhead_pct",
        ),
        ({"trigger": TriggerFacts(100_000, 500_000)}, "psi triggers", "warn", "Linux 6.5"),
        (
            {"trigger": TriggerFacts(100_000, None, "PSI is off")},
            "psi triggers",
            "warn",
            "CAP_SYS_RESOURCE",
        ),
        ({"swap_bytes": 0}, "swap", "warn", "zram"),
        (
            {"oom_killers": ("systemd-oomd",), "oomd_slices": ("be.slice",)},
            "oom killer",
            "warn",
            "ManagedOOMMemoryPressure=auto",
        ),
        ({"oom_killers": ("systemd-oomd",)}, "oom killer", "warn", "ManagedOOMPreference=omit"),
        ({"oom_killers": ("earlyoom",)}, "oom killer", "warn", "disable --now earlyoom"),
        (
            {
                "cgroups": cgroup(
                    path="a.slice/web.service", memory_low="1048576", unprotected_ancestor="a.slice"
                )
            },
            "memory.low",
            "warn",
            "systemctl set-property a.slice MemoryLow=1048576",
        ),
        (
            {
                "cgroups": cgroup(
                    path="a.slice/web.service",
                    tier=Tier.LS,
                    memory_low="0",
                    unprotected_ancestor="a.slice",
                )
            },
            "memory.low",
            "warn",
            "systemctl set-property a.slice MemoryLow=20%",
        ),
        ({"disks": (DiskFacts("vda", "none", io_cost=False),)}, "disk vda", "warn", "bfq"),
        ({"io": IoFacts(())}, "io disks", "warn", "docs/io.md"),
        ({"io": IoFacts(("8:0",), {"/pool": "zfs"})}, "io /pool", "warn", "docs/io.md"),
        (
            {"io": IoFacts(("8:0",), latency_asked=True, latency_there=False)},
            "io.latency",
            "warn",
            "CONFIG_BLK_CGROUP_IOLATENCY",
        ),
        ({"btf": False}, "btf", "warn", "CONFIG_DEBUG_INFO_BTF"),
        ({"libbpf": False}, "libbpf", "warn", "apt install libbpf1"),
        ({"pmu": False}, "pmu", "warn", "pmu=on"),
        ({"htb": False}, "htb", "warn", "CONFIG_NET_SCH_HTB"),
        ({"clock_source": "hpet"}, "clock", "warn", "clocksource=tsc"),
        ({"steal_pct": 12.0}, "steal", "warn", "dedicated"),
    ],
)
def test_each_lack_gives_one_finding_with_its_remedy(
    changes: dict[str, Any], check: str, severity: str, remedy: str
) -> None:
    (finding,) = wrong(changed(**changes))
    assert (finding.check, finding.severity) == (check, severity)
    assert finding.remedy is not None
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"swap_bytes": None},
        {"trigger": None},
        {"htb": None},
        {"clock_source": None},
        {"steal_pct": None},
        {"daemon_running": None},
        {"unit_capabilities": None},
        {"slices": ()},
        {"disks": ()},
        {"disks": (DiskFacts("vda", None, io_cost=True),)},
        {"io": IoFacts(("8:0",), latency_asked=True, latency_there=True)},
        {"io": IoFacts(("8:0",), latency_asked=True)},
        {"cgroups": cgroup(memory_low="0", unprotected_ancestor="a.slice")},
    ],
)
def test_what_could_not_be_found_out_is_not_reported_as_a_lack(changes: dict[str, Any]) -> None:
    assert wrong(changed(**changes)) == []


def test_many_cgroups_without_a_controller_are_one_finding() -> None:
    bare = tuple(CgroupFacts(f"be.slice/{n}", Tier.BE, ALL_FILES - {"cpu.max"}) for n in range(10))
    (finding,) = wrong(changed(cgroups=bare))
    assert "be.slice/0, be.slice/1, be.slice/2 and 7 more" in finding.text


def test_what_is_wrong_is_printed_first_with_its_remedy_below() -> None:
    out = io.StringIO()
    findings = examine(changed(swap_bytes=0, host=host(cgroup_root=None)))
    Console(width=100, file=out).print(render(findings))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines[0].startswith("FAIL  cgroup2: no cgroup v2 hierarchy")
    assert lines[1].startswith("-> boot with")
    assert lines[2].startswith("WARN  swap:")
    assert any(line.startswith("OK    ") and "psi" in line for line in lines)


def test_the_survey_of_this_very_host_gives_facts_that_can_be_judged(tmp_path: Path) -> None:
    config = tmp_path / "qosd.toml"
    config.write_text('[[workload]]\nname = "none"\ntier = "be"\nmatch = ["no-such-*.slice"]\n')
    facts = survey(str(config), daemon_running=False)
    assert facts.config_error is None
    findings = examine(facts)
    assert any(finding.check == "daemon" for finding in findings)
    if facts.host.cgroup_root is not None:
        assert facts.patterns == (PatternFacts("none", "no-such-*.slice", 0),)
    assert all(finding.remedy for finding in findings if finding.severity is not Severity.OK)


def test_doctor_needs_no_daemon_and_gives_json(tmp_path: Path) -> None:
    config = tmp_path / "qosd.toml"
    config.write_text("mod = 1\n")
    result = CliRunner().invoke(
        cli, ["--socket", str(tmp_path / "no"), "doctor", "--json", "--config", str(config)]
    )
    assert result.exit_code == 1
    by_check = {finding["check"]: finding for finding in json.loads(result.stdout)}
    assert by_check["config"]["severity"] == "fail"
    assert by_check["daemon"]["severity"] == "warn"
    assert "qosd cannot work here" in result.stderr


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (DiskFacts("vda", "bfq", io_cost=False), "scheduler bfq"),
        (DiskFacts("vda", "none", io_cost=True, io_cost_model="auto"), "the kernel's model of such disks"),
        (DiskFacts("vda", "none", io_cost=True, io_cost_model="user"), "a model of your own"),
    ],
)
def test_what_weighs_a_disk_is_named(disk: DiskFacts, words: str) -> None:
    (finding,) = [each for each in examine(changed(disks=(disk,))) if each.check == "disk vda"]
    assert finding.text.endswith(words)


def test_a_line_of_the_roots_io_cost_files_is_read_by_its_device() -> None:
    text = "8:0 enable=0 ctrl=auto\n8:16 enable=1 ctrl=user rpct=0.00 rlat=250000"

    assert _setting_of(text, "8:16", "enable") == "1"
    assert _setting_of(text, "8:16", "ctrl") == "user"
    assert _setting_of(text, "8:32", "enable") is None
    assert _setting_of("", None, "enable") is None
