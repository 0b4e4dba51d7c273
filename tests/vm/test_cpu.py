"""CPUs on a machine of two NUMA nodes with a core of two threads each: masks, hotplug, real-time BE, bursts, pools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vm.guest import CGROUP, Guest

from qosd.lab.machine import Machine

pytestmark = pytest.mark.vm

CORES = ("0-1", "2-3")
"""Of two sockets with one core of two threads each: core, socket and node are the same CPUs here."""
TIERS = """
[[workload]]
name = "web"
tier = "ls"
match = ["ls.slice/test-web.service"]
{ls}
[[workload]]
name = "be"
tier = "be"
match = ["be.slice"]
{be}
"""


@pytest.fixture(scope="module")
def numa(deb: Path) -> Iterator[Guest]:
    with Machine.boot(share=deb.parent, smp="4,sockets=2,cores=1,threads=2", numa=2) as machine:
        guest = Guest(machine)
        guest.install(deb.name)
        yield guest


@pytest.fixture
def guest(numa: Guest) -> Iterator[Guest]:
    """Stopped: each test starts the daemon with its own configuration."""
    numa.sh("echo 1 | tee /sys/devices/system/cpu/cpu[1-3]/online >/dev/null")
    numa.reset()
    yield numa
    numa.sh("echo 1 | tee /sys/devices/system/cpu/cpu[1-3]/online >/dev/null")
    numa.reset()


def start(guest: Guest, config: str, *, ls: str = "", be: str = "") -> None:
    guest.configure(config + TIERS.format(ls=ls, be=be))
    guest.sh("qosd check --config /etc/qosd/qosd.toml; systemctl restart qosd", timeout=120)


def web(guest: Guest, command: str = "sleep 10000", properties: str = "-p AllowedCPUs=0-3") -> None:
    """An LS service; a property of each controller turns that controller on for it."""
    guest.sh(
        f"systemd-run -q --collect --unit=test-web --slice=ls.slice {properties} -p CPUWeight=200 {command}"
    )


def effective(guest: Guest, path: str) -> str:
    return guest.read(f"{path}/cpuset.cpus.effective")


def test_masks_are_whole_cores_of_one_node_and_go_again(guest: Guest) -> None:
    """LS has a core of its own, BE what the allowance is worth on the other, by the kernel's own topology."""
    siblings = guest.sh("cat /sys/devices/system/cpu/cpu*/topology/thread_siblings_list | sort -u").split()
    nodes = guest.sh("cat /sys/devices/system/node/node*/cpulist").split()
    assert (tuple(siblings), tuple(nodes)) == (CORES, CORES)
    web(guest)
    guest.hog(4)

    start(guest, '[cpu.bandwidth]\nenforce = "cpuset"\n[host]\ncpu_target_pct = 60\n', ls="cpus = 2")
    guest.until(f"grep -qx 2-3 {CGROUP}/ls.slice/test-web.service/cpuset.cpus", seconds=60)
    guest.until(f"grep -q ^0 {CGROUP}/be.slice/cpuset.cpus", seconds=60)

    assert effective(guest, "ls.slice/test-web.service") == CORES[1]
    assert effective(guest, "be.slice") == CORES[0]
    assert "to itself" in guest.sh("qosctl explain ls.slice/test-web.service")
    # be.slice inherited its CPUs: it must inherit one that is offline meanwhile, too.
    guest.sh("echo 0 >/sys/devices/system/cpu/cpu1/online; systemctl stop qosd")
    guest.sh("echo 1 >/sys/devices/system/cpu/cpu1/online")
    assert guest.read("ls.slice/test-web.service/cpuset.cpus") == "0-3"
    assert effective(guest, "be.slice") == "0-3"


def test_a_cpu_that_goes_offline_meanwhile_costs_nobody_a_mask(guest: Guest) -> None:
    """An administrator's AllowedCPUs=1-3 comes back as it was; what is in force is what is online of it."""
    guest.sh("systemctl set-property be.slice AllowedCPUs=1-3")
    guest.hog(4)
    start(guest, '[cpu.bandwidth]\nenforce = "cpuset"\n[host]\ncpu_target_pct = 100\n')
    guest.until(f"grep -Eqx [1-3][-,1-3]* {CGROUP}/be.slice/cpuset.cpus", seconds=60)
    guest.status_when(lambda status: status["mode"] == "enforce")

    guest.sh("echo 0 >/sys/devices/system/cpu/cpu1/online")
    guest.until(f"! grep -q 1 {CGROUP}/be.slice/cpuset.cpus", seconds=60)
    assert effective(guest, "be.slice")
    guest.status_when(lambda status: status["host"]["nr_cpus"] == 3)
    assert "Traceback" not in guest.journal_text()

    guest.sh("systemctl stop qosd")
    assert guest.read("be.slice/cpuset.cpus") == "1-3"
    assert effective(guest, "be.slice") == "2-3"
    guest.sh("echo 1 >/sys/devices/system/cpu/cpu1/online")
    assert effective(guest, "be.slice") == "1-3"


def test_real_time_be_is_reported_and_kept_to_few_cpus(guest: Guest) -> None:
    """The bandwidth controller does not throttle SCHED_FIFO: two spinners take two CPUs under any cpu.max."""
    guest.sh("systemd-run -q --collect --unit=test-rt --slice=be.slice chrt -f 1 stress-ng --quiet --cpu 2")
    start(guest, "[host]\ncpu_target_pct = 10\n")
    status = guest.status_when(lambda status: bool(status["cpu"]["ineffective"]), tries=90)

    seen = status["cpu"]["ineffective"][0]
    assert seen["path"] == "be.slice"
    assert seen["use_cores"] > 1.5 * seen["limit_cores"]
    guest.until(f"grep -qx [0-3] {CGROUP}/be.slice/cpuset.cpus", seconds=60)
    assert "cpu.max ineffective" in guest.sh("qosctl explain be.slice --file cpuset.cpus")
    assert "cpu.max ineffective" in guest.sh("qosctl status")
    guest.sh("systemctl stop qosd")
    assert guest.read("be.slice/cpu.max") == "max 100000"


def test_a_throttled_ls_is_lent_quota_and_gets_its_own_limit_back(guest: Guest) -> None:
    """Quota before burst on the way up, burst before quota on the way down: no write is refused by the kernel."""
    web(guest, "stress-ng --quiet --cpu 1", "-p CPUQuota=20%")
    group = "ls.slice/test-web.service"
    before = (guest.read(f"{group}/cpu.max"), guest.read(f"{group}/cpu.max.burst"))
    assert before == ("20000 100000", "0")

    start(guest, '[cpu.burst]\nenforce = "both"\nmax_pct = 200\n')
    guest.until(f'test $(cut -f1 -d" " {CGROUP}/{group}/cpu.max) -gt 30000', seconds=120)
    assert guest.read(f"{group}/cpu.max.burst") == "20000"
    status = guest.status()
    assert [setting["error"] for setting in status["settings"] if setting["error"]] == []
    assert status["cpu"]["bursts"][0]["factor"] > 1
    assert "is raised to 0." in guest.sh(f"qosctl explain {group}")

    guest.sh("systemctl kill -s KILL --kill-whom=main qosd")
    guest.until("test $(systemctl show -p NRestarts --value qosd) = 1")
    guest.sh("systemctl stop qosd")
    assert (guest.read(f"{group}/cpu.max"), guest.read(f"{group}/cpu.max.burst")) == before


def test_an_ls_pool_reserves_and_a_window_pauses_be(guest: Guest) -> None:
    """Front holds 2.5 times its use at the middle of its band; then a window leaves BE its floor."""
    web(guest, "stress-ng --quiet --cpu 1 --cpu-load 40")
    guest.hog(6)
    pools = '[[pool]]\nname = "front"\npriority = 0\n[[pool]]\nname = "batch"\nload_high_pct = 100\n'
    start(guest, pools, ls='pool = "front"', be='pool = "batch"')
    status = guest.status_when(
        lambda status: (
            len(status["cpu"]["pools"]) == 2
            and all(pool["size_cores"] and pool["use_cores"] for pool in status["cpu"]["pools"])
        ),
        tries=60,
    )

    front, batch = status["cpu"]["pools"]
    assert front["size_cores"] > 1.5 * front["use_cores"]
    assert batch["size_cores"] <= status["tiers"]["be"]["cpu_allowance_cores"]
    assert front["size_cores"] + batch["size_cores"] <= 4.01
    limits = {setting["path"]: setting for setting in status["settings"] if setting["file"] == "cpu.max"}
    assert limits.keys() == {"be.slice"}
    assert "pool batch" in limits["be.slice"]["reason"]["text"]

    window = '[[window]]\nname = "always"\nhours = "00:00-24:00"\npause_be = true\n'
    guest.configure(pools + window + TIERS.format(ls='pool = "front"', be='pool = "batch"'))
    guest.sh("qosctl reload")
    status = guest.status_when(lambda status: bool(status["cpu"]["windows"]), tries=60)
    floor = 4 * 0.05
    guest.until(
        f'test $(cut -f1 -d" " {CGROUP}/be.slice/cpu.max) -le {round(floor * 10_000 * 1.05)}', seconds=60
    )
    assert "BE is paused" in guest.sh("qosctl status")
