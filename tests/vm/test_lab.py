"""The lab, which the other VM tests stand on: a settled Debian, cgroup v2 only, and an honest line to it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from vm.guest import NEWER

from qosd.lab.channel import CommandError
from qosd.lab.machine import Machine

pytestmark = pytest.mark.vm


def test_the_kernel_asked_for_is_the_one_that_runs(machine: Machine, kernel: str) -> None:
    assert machine.run("uname -r").stdout.startswith(f"{kernel}.")


def test_systemd_finished_booting_with_no_failed_unit(machine: Machine) -> None:
    assert machine.run("systemctl is-system-running").stdout == "running\n"
    assert machine.run("systemctl list-units --failed --no-legend").stdout == ""


def test_cgroup_v2_is_the_only_hierarchy_and_has_every_controller_qosd_uses(machine: Machine) -> None:
    assert machine.run("stat -fc %T /sys/fs/cgroup").stdout == "cgroup2fs\n"
    assert "cgroup " not in machine.run("cut -d' ' -f3,9- /proc/self/mountinfo; findmnt -no FSTYPE").stdout
    controllers = machine.run("cat /sys/fs/cgroup/cgroup.controllers").stdout.split()
    assert {"cpuset", "cpu", "io", "memory", "pids"} <= set(controllers)


def test_pressure_is_accounted_and_btf_is_there(machine: Machine) -> None:
    for resource in ("cpu", "memory", "io"):
        assert machine.run(["cat", f"/proc/pressure/{resource}"]).stdout.startswith("some avg10=")
    assert int(machine.run("stat -c %s /sys/kernel/btf/vmlinux").stdout) > 1_000_000


def test_loads_are_installed_and_none_of_them_runs(machine: Machine) -> None:
    machine.run("command -v redis-server redis-benchmark nginx stress-ng fio iperf3 curl")
    assert machine.run("pgrep -xl 'redis-server|nginx|systemd-oomd|stress-ng'", check=False).stdout == ""


@NEWER
def test_status_and_both_streams_come_back_as_they_are(machine: Machine) -> None:
    done = machine.run("echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


@NEWER
def test_a_failed_command_raises_with_its_output_unless_told_otherwise(machine: Machine) -> None:
    with pytest.raises(CommandError, match="status 1") as caught:
        machine.run("echo why >&2; false")
    assert caught.value.done.stderr == "why\n"


@NEWER
def test_a_command_that_is_not_there_is_status_127(machine: Machine) -> None:
    assert machine.run(["no-such-command"], check=False).returncode == 127


@NEWER
def test_a_list_is_run_as_it_is_with_its_input(machine: Machine) -> None:
    assert machine.run(["tr", "a-z", "A-Z"], input=b"$HOME; it's").stdout == "$HOME; IT'S"


@NEWER
def test_a_megabyte_on_each_stream_arrives_whole(machine: Machine) -> None:
    done = machine.run("head -c 1000000 /dev/zero | tr '\\0' o; head -c 1000000 /dev/zero | tr '\\0' e >&2")
    assert (done.stdout, done.stderr) == ("o" * 1_000_000, "e" * 1_000_000)


@NEWER
def test_what_a_command_leaves_running_does_not_hold_up_its_answer(machine: Machine) -> None:
    assert machine.run("sleep 300 & echo $!", timeout=20).stdout.strip().isdigit()
    machine.run("pkill -x sleep")


@NEWER
def test_several_commands_run_at_once(machine: Machine) -> None:
    first = machine.start("until test -e /run/second; do sleep 0.1; done; echo first")
    assert machine.run("touch /run/second; echo second").stdout == "second\n"
    assert first.wait(timeout=30).stdout == "first\n"


@NEWER
def test_a_command_over_its_time_is_killed_with_all_its_children(machine: Machine) -> None:
    with pytest.raises(CommandError, match="killed, not done"):
        machine.run("echo begun; sleep 301; echo ended", timeout=3)
    assert machine.run("pgrep -f 'sleep 301'", check=False).returncode == 1


@NEWER
def test_a_signal_sent_to_a_job_is_its_status(machine: Machine) -> None:
    job = machine.start(["sleep", "302"])
    job.kill(signal.SIGTERM)
    assert job.wait(timeout=20, check=False).returncode == -signal.SIGTERM


@NEWER
def test_the_line_stays_open_while_systemd_is_stopped(machine: Machine) -> None:
    # The kernel ignores SIGSTOP for PID 1; its cgroup can be frozen all the same.
    machine.run("echo 1 >/sys/fs/cgroup/init.scope/cgroup.freeze")
    try:
        machine.run("until grep -q 'frozen 1' /sys/fs/cgroup/init.scope/cgroup.events; do sleep 0.1; done")
        assert machine.run("timeout 1 systemctl is-active dbus", check=False).returncode == 124
    finally:
        machine.run("echo 0 >/sys/fs/cgroup/init.scope/cgroup.freeze")
    assert machine.run("systemctl is-active dbus").stdout == "active\n"


@NEWER
def test_the_share_is_the_host_directory_in_both_directions(machine: Machine, share: Path) -> None:
    (share / "from-host").write_text("down")
    machine.run("test $(cat /mnt/share/from-host) = down && echo -n up >/mnt/share/from-guest")
    assert (share / "from-guest").read_text() == "up"


def test_a_machine_is_what_was_asked_for_and_leaves_no_process() -> None:
    """Swap, NUMA, SMT, disks, wired NICs and the kernel's command line; then power-off."""
    with Machine.boot(
        smp="4,sockets=2,cores=1,threads=2",
        memory="2G",
        numa=2,
        swap="128M",
        extra_disks=["64M"],
        nics=2,
        append="psi=0",
    ) as vm:
        assert vm.run("cat /sys/devices/system/node/node*/cpulist").stdout == "0-1\n2-3\n"
        assert vm.run("cat /sys/devices/system/cpu/cpu3/topology/thread_siblings_list").stdout == "2-3\n"
        assert vm.run("swapon --show=TYPE --noheadings").stdout == "partition\n"
        assert vm.run("blockdev --getsize64 /dev/disk/by-id/virtio-disk0").stdout == f"{64 << 20}\n"
        assert vm.run("cat /proc/pressure/cpu", check=False).returncode != 0
        vm.run("ip netns add far && ip link set eth1 netns far")
        vm.run("ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up")
        vm.run("ip -n far addr add 10.0.0.2/24 dev eth1 && ip -n far link set eth1 up")
        vm.run("ping -c 1 -W 5 10.0.0.2")
        pid = vm.qemu_pid
        assert pid in _processes(os.getpid())
    assert pid not in _processes(os.getpid())
    assert not vm.running


def test_a_killed_parent_takes_qemu_and_virtiofsd_with_it(tmp_path: Path) -> None:
    lab = [
        sys.executable,
        "-m",
        "qosd.lab",
        "run",
        "--share",
        os.path.relpath(tmp_path),
        "--",
        "sleep",
        "600",
    ]
    with subprocess.Popen(lab, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        _until(lambda: len(_processes(parent.pid)) == 2)
        children = [os.pidfd_open(pid) for pid in _processes(parent.pid)]
        parent.kill()
    for child in children:
        # A pidfd is readable once its process is gone.
        assert select.select([child], [], [], 10)[0]
        os.close(child)


def _processes(parent: int) -> set[int]:
    """The QEMU and virtiofsd processes that a process of ours started."""
    found = set()
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in children.read_text().split():
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                if os.path.basename(os.readlink(f"/proc/{pid}/exe")) in {"qemu-system-x86_64", "virtiofsd"}:
                    found.add(int(pid))
    return found


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300  # the image may have to be built first
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
