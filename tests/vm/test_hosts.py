"""Hosts that lack something: qosd says what, and either works with the rest or ends with one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vm.guest import CGROUP, Guest

from qosd.lab.machine import Machine

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def poor(deb: Path) -> Iterator[Guest]:
    """Without PSI, though the kernel has it, and without the cpuset controller."""
    with Machine.boot(share=deb.parent, append="psi=0 cgroup_disable=cpuset") as machine:
        guest = Guest(machine)
        guest.install(deb.name)
        yield guest


@pytest.fixture
def guest(poor: Guest) -> Guest:
    poor.reset()
    poor.sh("systemctl start qosd")
    return poor


def test_without_psi_the_daemon_limits_be_all_the_same_and_says_what_is_missing(guest: Guest) -> None:
    guest.job()
    guest.limited()

    status = guest.status()
    pressure = next(sensor for sensor in status["sensors"] if sensor["name"] == "pressure")
    assert pressure["ok"] is False
    assert pressure["age_ms"] is None
    assert "Traceback" not in guest.journal_text()
    said = guest.status_of("qosctl doctor")[1]
    assert "psi=1" in said


def test_without_a_controller_its_files_are_absent_and_the_rest_is_written(guest: Guest) -> None:
    guest.configure('[cpu.bandwidth]\nenforce = "cpuset"')
    guest.sh("systemctl restart qosd; sleep 5")

    assert guest.sh("systemctl is-active qosd") == "active\n"
    assert guest.read("ls.slice/cpu.weight") == "1000"
    assert [s for s in guest.status()["settings"] if s["file"] == "cpuset.cpus"] == []
    assert "Traceback" not in guest.journal_text()


def test_a_hybrid_hierarchy_ends_with_78_one_line_and_no_restart(deb: Path) -> None:
    with Machine.boot(share=deb.parent, append="systemd.unified_cgroup_hierarchy=0") as machine:
        guest = Guest(machine)
        # It says that the daemon did not start, and is installed.
        guest.install(deb.name)

        code, said = guest.status_of("qosd run")

        assert code == 78
        assert said.count("\n") == 1
        assert "systemd.unified_cgroup_hierarchy=1" in said
        assert guest.sh("systemctl show -p Result -p NRestarts --value qosd").split() == ["exit-code", "0"]


def test_the_cgroup_root_is_found_and_nothing_of_it_is_ours(guest: Guest) -> None:
    """The daemon never writes cgroup.subtree_control: what is on is what systemd turned on."""
    before = guest.sh(f"cat {CGROUP}/cgroup.subtree_control {CGROUP}/be.slice/cgroup.subtree_control")
    guest.sh("systemctl restart qosd; sleep 3")
    assert guest.sh(f"cat {CGROUP}/cgroup.subtree_control {CGROUP}/be.slice/cgroup.subtree_control") == before
