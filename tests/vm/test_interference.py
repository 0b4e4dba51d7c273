"""Freezing and killing on a real host: the kernel's own pressure, systemd in the way, and the daemon dying."""

from __future__ import annotations

import pytest
from vm.guest import CGROUP, Guest

pytestmark = pytest.mark.vm

NO_RESTART = "[Service]\nRestart=no\n"
FIGHT = """
[cpu.weight]
be_idle = "never"
be_weight = 10000
ls_weight = 1
[cpu.bandwidth]
enforce = "none"
[interference]
answer = "freeze"
cpu_some_pct = 5
be_share_pct = 1
quiet_pct = 10
baseline_ticks = 1
enter_ticks = 1
dwell_up = "0s"
dwell_down = "1h"
freeze_lease = "1min"
freeze_rest = "1s"
"""
"""BE is set against LS with all its weight, and everything above nothing is too much."""
FREEZE = f"{CGROUP}/be.slice/cgroup.freeze"


@pytest.fixture(autouse=True)
def one_kernel(kernel: str) -> None:
    if kernel != "6.12":
        pytest.skip("freezer and cgroup.kill are the same in 6.1; the kernel itself is in tests/native")


def test_a_killed_daemon_leaves_nothing_frozen(idle: Guest) -> None:
    """And while it lives, systemd's own thaw is undone."""
    guest = idle
    guest.configure(FIGHT)
    guest.hog(threads=2, name="test-ls", slice_="ls.slice")
    guest.sh("systemd-run -q --collect --unit=test-other --slice=be.slice sleep 10000")
    before = guest.values()
    guest.drop_in(NO_RESTART)
    guest.sh("systemctl start qosd")
    guest.status_when(lambda status: status["tick"] >= 5)
    guest.hog(threads=4, name="test-hog")
    guest.until(f"grep -qx 1 {FREEZE}", seconds=60)
    guest.until(f"grep -qx 'frozen 1' {CGROUP}/be.slice/cgroup.events", seconds=10)

    guest.sh("systemctl stop test-other")
    guest.until(f"grep -qx 1 {FREEZE}", seconds=20)
    why = guest.setting("be.slice", "cgroup.freeze")["reason"]["text"]
    assert "frozen for 60 s at most: ls.slice waits through BE" in why

    guest.sh("systemctl kill -s KILL --kill-whom=main qosd")
    guest.until(f"grep -qx 0 {FREEZE}", seconds=5)
    guest.until("systemctl is-failed -q qosd")
    assert {file: value for file, value in guest.values().items() if "test-" not in file} == {
        file: value for file, value in before.items() if "test-" not in file
    }
