"""The package's life in a real Debian: installed with apt, removed under running jobs, purged, upgraded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vm.guest import waiting

from qosd.lab.machine import Machine

pytestmark = pytest.mark.vm

INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends /mnt/share/qosd.deb"
SLICES = "/sys/fs/cgroup/ls.slice /sys/fs/cgroup/be.slice"
VALUES = (
    f"find {SLICES} -type f '(' -name 'cpu.max*' -o -name cpu.weight -o -name cpu.idle -o -name cpuset.cpus"
    " -o -name memory.low -o -name memory.min -o -name memory.high -o -name memory.max -o -name io.weight"
    " -o -name cgroup.freeze ')' -exec grep -H '' {} + | sort"
)
# What an installation of anything changes: apt's and dpkg's own records, logs, caches.
FILES = (
    r"find / -xdev '(' -path /var/log -o -path /var/cache -o -path /var/lib/apt -o -path /var/lib/dpkg"
    r" -o -path /tmp -o -path /var/tmp -o -path /mnt ')' -prune -o -print"
    r" | grep -v 'systemd/private\|~$\|-$' | sort"
)


@pytest.fixture(scope="module")
def vm(deb: Path) -> Iterator[Machine]:
    """A machine of our own: what is installed and removed here must not meet other tests."""
    with Machine.boot(share=deb.parent) as machine:
        yield machine


@pytest.fixture
def packaged(vm: Machine) -> Machine:
    """With the package, installed by the first who wants it; each test leaves its configuration as shipped."""
    vm.run(f"dpkg-query -s qosd >/dev/null 2>&1 || {INSTALL}", timeout=300)
    return vm


def until(vm: Machine, condition: str, seconds: int = 60) -> None:
    vm.run(waiting(condition, seconds), timeout=seconds + 30)


def test_removal_takes_everything_out_of_force_and_purge_leaves_neither_a_file_nor_a_group(
    vm: Machine,
) -> None:
    """The jobs run on meanwhile, untouched."""
    # The peer's weight keeps the cpu controller on, so that the values cannot go by its going.
    vm.run("systemd-run -q --unit=peer -p CPUWeight=50 sleep 1000")
    vm.run("systemd-run -q --unit=job-ls --slice=ls.slice sleep 1000")
    vm.run("systemd-run -q --unit=job-be --slice=be.slice sleep 1000")
    before = vm.run(VALUES).stdout
    files = vm.run(FILES).stdout.splitlines()
    groups = vm.run("cat /etc/group").stdout
    pids = vm.run("systemctl show -p MainPID --value job-ls job-be").stdout
    assert "be.slice/cpu.weight:100\n" in before

    vm.run(INSTALL, timeout=300)
    vm.run("printf '[cpu.bandwidth]\\nenforce = \"max\"\\n' >/etc/qosd/qosd.toml && qosctl reload")
    until(vm, "! grep -q ^max /sys/fs/cgroup/be.slice/cpu.max")
    vm.run("DEBIAN_FRONTEND=noninteractive apt-get remove -q -y qosd", timeout=120)

    assert vm.run(VALUES).stdout == before
    assert vm.run("systemctl show -p MainPID --value job-ls job-be").stdout == pids
    assert not vm.run("cd /sys/fs/cgroup && ls -d qosd.slice", check=False).stdout

    vm.run("DEBIAN_FRONTEND=noninteractive apt-get purge -q -y qosd", timeout=120)

    assert sorted(set(vm.run(FILES).stdout.splitlines()) - set(files)) == []
    assert vm.run("cat /etc/group").stdout == groups
    assert vm.run("find /run /sys/fs/cgroup -name '*qosd*' -not -path '/run/udev/*'").stdout == ""
    vm.run("systemctl stop 'job-*' peer")


def test_apt_installs_it_from_debian_alone_and_the_daemon_runs(packaged: Machine) -> None:
    vm = packaged

    assert vm.run("systemctl is-active qosd").stdout == "active\n"
    assert vm.run("systemctl is-enabled qosd").stdout == "enabled\n"
    assert vm.run("dpkg --verify qosd").stdout == ""
    assert (
        vm.run("stat -c '%U %G %a' /run/qosd /etc/qosd/qosd.toml").stdout == "root qosd 750\nroot root 644\n"
    )
    until(
        vm, "grep -q 1 /sys/fs/cgroup/be.slice/cpu.idle && grep -qx 1000 /sys/fs/cgroup/ls.slice/cpu.weight"
    )
    # Delegate= in the unit is what turns this controller on.
    assert "cpuset" in vm.run("cat /sys/fs/cgroup/be.slice/cgroup.controllers").stdout.split()
    assert "Traceback" not in vm.run("journalctl -u qosd --no-pager").stdout
    # Its own pages, and those of the interpreter and the libraries, which are charged to whoever read them first.
    assert int(vm.run("awk '/^VmLck/ {print $2}' /proc/$(pgrep -o -f 'qosd run')/status").stdout) > 0
    assert vm.run("systemctl list-units --failed --no-legend").stdout == ""


def test_a_member_of_the_group_may_look_and_nobody_else(packaged: Machine) -> None:
    vm = packaged
    vm.run("useradd --groups qosd looker; useradd stranger")

    seen = vm.run("setpriv --reuid looker --regid looker --init-groups qosctl status --json")
    refused = vm.run(
        "setpriv --reuid stranger --regid stranger --init-groups qosctl status --json", check=False
    )

    vm.run("userdel looker; userdel stranger")
    assert '"mode":' in seen.stdout
    assert refused.returncode == 4


def test_systemctl_reload_fails_when_the_configuration_is_refused(packaged: Machine) -> None:
    vm = packaged
    vm.run("systemctl reload qosd && cp -p /etc/qosd/qosd.toml /root/")
    vm.run("sed -i 's/^mode = .*/mdoe = \"observe\"/' /etc/qosd/qosd.toml")

    assert vm.run("systemctl reload qosd", check=False).returncode != 0

    assert "did you mean `mode`" in vm.run("journalctl -u qosd --no-pager -n 20").stdout
    assert vm.run("systemctl is-active qosd").stdout == "active\n"
    vm.run("cp -p /root/qosd.toml /etc/qosd/")


def test_an_upgrade_restarts_the_daemon_and_keeps_what_the_administrator_wrote(packaged: Machine) -> None:
    vm = packaged
    vm.run("sed -i '0,/^mode = .*/s//mode = \"observe\"/' /etc/qosd/qosd.toml; systemctl disable -q qosd")
    first = vm.run("systemctl show -p MainPID --value qosd").stdout

    vm.run(f"{INSTALL} --reinstall", timeout=300)

    assert vm.run("grep -m 1 ^mode /etc/qosd/qosd.toml").stdout == 'mode = "observe"\n'
    assert vm.run("systemctl is-enabled qosd", check=False).stdout == "disabled\n"
    assert vm.run("systemctl show -p MainPID --value qosd").stdout != first
