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
    """Without PSI, though the kernel has it, and without BTF's friend, the cpuset controller."""
    with Machine.boot(share=deb.parent, append="psi=0 cgroup_disable=cpuset") as machine:
        guest = Guest(machine)
        guest.install(deb.name)
        yield guest


def test_without_psi_the_daemon_limits_be_all_the_same_and_says_what_is_missing(poor: Guest) -> None:
    poor.hog()
    poor.limited()

    status = poor.status()
    pressure = next(sensor for sensor in status["sensors"] if sensor["name"] == "pressure")
    assert pressure["ok"] is False
    assert pressure["age_ms"] is None
    assert "Traceback" not in poor.journal_text()
    said = poor.status_of("qosctl doctor")[1]
    assert "psi=1" in said


def test_without_a_controller_its_files_are_absent_and_the_rest_is_written(poor: Guest) -> None:
    poor.configure('[cpu.bandwidth]\nenforce = "cpuset"')
    poor.sh("systemctl restart qosd; sleep 5")

    assert poor.sh("systemctl is-active qosd") == "active\n"
    assert poor.read("ls.slice/cpu.weight") == "1000"
    assert [s for s in poor.status()["settings"] if s["file"] == "cpuset.cpus"] == []
    assert "Traceback" not in poor.journal_text()


def test_a_hybrid_hierarchy_ends_with_78_one_line_and_no_restart(deb: Path) -> None:
    with Machine.boot(share=deb.parent, append="systemd.unified_cgroup_hierarchy=0") as machine:
        guest = Guest(machine)
        guest.status_of(f"DEBIAN_FRONTEND=noninteractive apt-get install -q -y /mnt/share/{deb.name}")

        code, said = guest.status_of("qosd run")

        assert code == 78
        assert said.count("\n") == 1
        assert "systemd.unified_cgroup_hierarchy=1" in said
        assert guest.sh("systemctl show -p Result -p NRestarts --value qosd").split() == ["exit-code", "0"]


def test_the_cgroup_root_is_found_and_nothing_of_it_is_ours(poor: Guest) -> None:
    """The daemon never writes cgroup.subtree_control: what is on is what systemd turned on."""
    before = poor.sh(f"cat {CGROUP}/cgroup.subtree_control {CGROUP}/be.slice/cgroup.subtree_control")
    poor.sh("systemctl restart qosd; sleep 3")
    assert poor.sh(f"cat {CGROUP}/cgroup.subtree_control {CGROUP}/be.slice/cgroup.subtree_control") == before
