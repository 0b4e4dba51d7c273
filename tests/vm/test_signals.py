"""Operators' signals through the unit's sandbox: fed by those who may, from a file, from a BPF object."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from vm.guest import NEWER, Guest

pytestmark = [pytest.mark.vm, NEWER]

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
SIGNALS = """
[[signal]]
name = "ours"
workload = "ls"
slo = 20.0
[[signal]]
name = "theirs"
workload = "ls"
group_may_feed = true
[[signal]]
name = "written"
workload = "ls"
source = "file"
file = "/run/p99"
"""


def values(status: dict) -> dict[str, float | None]:
    return {feed["name"]: feed["value"] for feed in status["feeds"]}


def test_a_signal_is_fed_by_root_and_by_the_group_where_it_may_or_read_from_a_file(guest: Guest) -> None:
    guest.configure(SIGNALS)
    guest.sh("systemctl reload qosd; id feeder || useradd -G qosd feeder; echo 7.5 >/run/p99")

    guest.sh("qosctl feed ours 0.03 --unit s; su feeder -c 'qosctl feed theirs 12.5'")
    assert guest.status_of("su feeder -c 'qosctl feed ours 1'")[0] == 4
    guest.status_when(lambda status: values(status) == {"ours": 30.0, "theirs": 12.5, "written": 7.5})
    guest.status_when(lambda status: values(status)["ours"] is None)
    assert "too old" in guest.sh("qosctl status")


@pytest.fixture
def example(share: Path) -> None:
    """The example of docs/policies.md, compiled on this host: one object serves every kernel."""
    if not shutil.which("clang"):
        pytest.skip("clang is not installed")
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-idirafter", include, "-c"]
    source = EXAMPLES / "preempted.bpf.c"
    subprocess.run([*command, str(source), "-o", str(share / "preempted.bpf.o")], check=True)
    shutil.copy(EXAMPLES / "preempted.toml", share)


@pytest.mark.usefixtures("example")
def test_a_policy_is_loaded_stays_over_a_reload_and_is_gone_with_the_daemon(guest: Guest) -> None:
    guest.sh("install -D -m 644 -t /etc/qosd/policies /mnt/share/preempted.bpf.o /mnt/share/preempted.toml")
    # An emulated CPU that waits for the machine's takes 1 % for it.
    guest.sh("sed -i 's/^overhead_pct = 1.0$/overhead_pct = 5.0/' /etc/qosd/policies/preempted.toml")
    guest.hog(4, "test-ls", "ls.slice")
    guest.hog(4)

    load = "qosctl policy load /etc/qosd/policies/preempted.toml"
    guest.sh("sysctl -q -w kernel.bpf_stats_enabled=0")
    assert "sysctl kernel.bpf_stats_enabled=1" in guest.status_of(load)[1]
    guest.sh(f"sysctl -q -w kernel.bpf_stats_enabled=1; {load}")
    guest.sh("systemctl reload qosd")
    guest.status_when(lambda status: (values(status).get("preempted.rate") or 0) > 0, tries=60)
    assert "tp_btf/sched_switch for ls" in guest.sh("qosctl policy list")
    assert guest.sh("qosctl top --ticks 1").count("preempted.rate") == 1
    guest.sh("qosctl policy unload preempted")
    assert guest.sh("qosctl policy list") == "No policy is loaded.\n"
