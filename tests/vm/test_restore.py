"""After any exit, every value is what it was, unless somebody else changed it since."""

from __future__ import annotations

import pytest
from vm.guest import CGROUP, NEWER, VALUES, Guest, values_in, waiting

pytestmark = pytest.mark.vm

NO_RESTART = "[Service]\nRestart=no\n"
WEAKEST_LIMIT = "be.slice/cpu.max"


@pytest.fixture
def throttled(idle: Guest) -> tuple[Guest, dict[str, str]]:
    """A BE job under a limit of ours, and the values before the daemon ran."""
    guest = idle
    guest.job()
    # Slices that nobody needs go; these stay, so that their files are the same ones afterwards.
    guest.job("test-ls", "ls.slice")
    guest.sh(f"echo 77 >{CGROUP}/ls.slice/cpu.weight")
    before = guest.values()
    guest.sh("systemctl start qosd")
    guest.limited()
    guest.until(f"grep -qx 1000 {CGROUP}/ls.slice/cpu.weight")
    return guest, before


def test_a_stop_gives_everything_back_within_two_seconds(throttled: tuple[Guest, dict[str, str]]) -> None:
    guest, before = throttled

    asked = float(guest.sh("cut -d' ' -f1 /proc/uptime; systemctl stop qosd"))

    assert guest.values() == before
    left = int(guest.sh("systemctl show -p ExecMainExitTimestampMonotonic --value qosd")) / 1e6
    # Emulated beside other work, a second is less than one: as long as a loop takes then, that otherwise takes 0.7 s.
    loop = "import time; t = time.monotonic()\nfor _ in range(10**6): pass\nprint(time.monotonic() - t)"
    slower = float(guest.sh(f"python3 -I -S -c '{loop}'")) / 0.7
    assert left - asked < 2 * max(slower, 1)
    assert guest.sh("systemctl show -p Result --value qosd") == "success\n"


@pytest.mark.parametrize("signal", ["KILL", "SEGV", "ABRT"])
def test_a_killed_daemon_leaves_nothing_in_force(
    throttled: tuple[Guest, dict[str, str]], signal: str
) -> None:
    guest, before = throttled
    guest.drop_in(NO_RESTART)

    guest.sh(f"systemctl kill -s {signal} --kill-whom=main qosd")
    guest.until(f"grep -q ^max {CGROUP}/{WEAKEST_LIMIT}", seconds=5)
    guest.until("systemctl is-failed -q qosd")

    assert guest.values() == before


def test_a_killed_daemon_comes_back_and_adopts_nothing(throttled: tuple[Guest, dict[str, str]]) -> None:
    guest, before = throttled

    guest.sh("systemctl kill -s KILL --kill-whom=main qosd")
    guest.until("test $(systemctl show -p NRestarts --value qosd) = 1")
    guest.limited()
    guest.status_when(lambda status: status["mode"] == "enforce")

    assert guest.setting("be.slice", "cpu.max")["original"] == before[f"{CGROUP}/be.slice/cpu.max"]
    assert guest.setting("ls.slice", "cpu.weight")["original"] == "77"
    guest.sh("systemctl stop qosd")
    assert guest.values() == before


def test_the_oom_killer_taking_the_daemon_undoes_its_limits(throttled: tuple[Guest, dict[str, str]]) -> None:
    guest, before = throttled
    guest.drop_in(NO_RESTART)

    # The host's own OOM killer, with the daemon as the task it likes best.
    guest.sh("choom -n 1000 -p $(systemctl show -p MainPID --value qosd); echo f >/proc/sysrq-trigger")
    guest.until("systemctl is-failed -q qosd")

    assert "Killed process" in guest.sh("journalctl -k --no-pager -o cat --since=-1min | grep qosd")
    guest.until(f"grep -q ^max {CGROUP}/{WEAKEST_LIMIT}", seconds=5)
    assert guest.values() == before


@NEWER
def test_a_daemon_that_its_own_memory_max_kills_undoes_its_limits(
    throttled: tuple[Guest, dict[str, str]],
) -> None:
    guest, before = throttled
    guest.drop_in(NO_RESTART)

    # Below the anonymous memory of the daemon, which nothing can take, and above that of the restore.
    guest.sh(
        f"cd {CGROUP}/qosd.slice/qosd.service; awk '/^anon / {{print int($2 * 0.8)}}' memory.stat >memory.max"
    )
    guest.until("systemctl is-failed -q qosd")

    killed = "journalctl -k --no-pager -o cat --since=-1min | grep 'Memory cgroup out of memory'"
    assert "(qosd)" in guest.sh(killed)
    guest.until(f"grep -q ^max {CGROUP}/{WEAKEST_LIMIT}", seconds=5)
    assert guest.values() == before


def test_a_hung_daemon_is_found_by_the_watchdog_and_its_limits_go(
    throttled: tuple[Guest, dict[str, str]],
) -> None:
    guest, before = throttled
    guest.drop_in("[Service]\nRestartSec=10min\nWatchdogSec=4\n")
    guest.sh("systemctl restart qosd")
    guest.limited()

    guest.sh("kill -STOP $(systemctl show -p MainPID --value qosd)")
    guest.until("test $(systemctl show -p SubState --value qosd) = auto-restart", seconds=30)

    assert guest.sh("systemctl show -p Result --value qosd") == "watchdog\n"
    assert guest.values() == before


def test_a_value_that_somebody_else_chose_meanwhile_is_left_alone(
    throttled: tuple[Guest, dict[str, str]],
) -> None:
    guest, before = throttled
    guest.drop_in(NO_RESTART)

    guest.sh(
        f"kill -STOP $(systemctl show -p MainPID --value qosd); echo '33333 100000' >{CGROUP}/be.slice/cpu.max;"
        " systemctl kill -s KILL --kill-whom=main qosd"
    )
    guest.until("systemctl is-failed -q qosd")

    assert guest.values() == before | {f"{CGROUP}/be.slice/cpu.max": "33333 100000"}


def test_an_administrators_own_limit_comes_back_and_no_drop_in_of_ours_is_left(idle: Guest) -> None:
    guest = idle
    guest.sh("systemctl set-property be.slice CPUQuota=150% MemoryHigh=300M")
    guest.job()
    before = guest.values()
    assert before[f"{CGROUP}/be.slice/cpu.max"] == "150000 100000"
    drop_ins = guest.sh("find /etc/systemd /run/systemd -name '*.conf' | sort")

    guest.sh("systemctl start qosd")
    guest.until(f'grep -q " 10000$" {CGROUP}/be.slice/cpu.max')
    guest.sh("systemctl stop qosd")

    assert guest.values() == before
    assert guest.sh("find /etc/systemd /run/systemd -name '*.conf' | sort") == drop_ins


def test_a_burst_above_the_new_limit_is_taken_first_and_given_back_last(idle: Guest) -> None:
    guest = idle
    guest.job()
    guest.sh(f"echo '200000 100000' >{CGROUP}/be.slice/cpu.max; echo 90000 >{CGROUP}/be.slice/cpu.max.burst")
    before = guest.values()

    guest.sh("systemctl start qosd")
    guest.until(f'grep -q " 10000$" {CGROUP}/be.slice/cpu.max')
    assert guest.read("be.slice/cpu.max.burst") == "0"
    guest.sh("systemctl stop qosd")

    assert guest.values() == before


@NEWER
def test_sigkill_at_any_point_of_a_write_is_undone(idle: Guest, kernel: str) -> None:
    """The N-th effect of the daemon is its last, for each N from the first to past the first writes.

    What is left at a point is the daemon's doing, not the kernel's: each has half of them.
    """
    guest = idle
    guest.configure(
        'interval = "200ms"\n[cpu.bandwidth]\ndeadband_up_pct = 0\ndeadband_down_pct = 0'  # a write each tick
    )
    guest.job()
    guest.job("test-ls", "ls.slice")
    guest.sh("install -m 755 /dev/stdin /usr/local/lib/die_at.py <<'END'\n" + DIE_AT + "END\n")

    guest.drop_in(
        "[Service]\nRestart=no\nEnvironmentFile=/run/die_at.env\nExecStart=\n"
        "ExecStart=/usr/lib/qosd/bin/python3 -I /usr/local/lib/die_at.py run --config /etc/qosd/qosd.toml\n"
    )
    # Not before: the reload of the drop-in writes the unit's own weight.
    guest.sh(f"echo 77 >{CGROUP}/ls.slice/cpu.weight")
    before = guest.values()

    for point in range(1 if kernel == "6.1" else 2, 21, 2):
        said = guest.sh(
            f"echo DIE_AT={point} >/run/die_at.env; systemctl start qosd; {waiting('systemctl is-failed -q qosd')};"
            f" systemctl show -p Result --value qosd; systemctl reset-failed qosd; {VALUES}",
            timeout=120,
        )
        result, _, values = said.partition("\n")
        assert result == "signal", f"not killed at effect {point}"
        assert values_in(values) == before, f"killed at effect {point} on {kernel}"


DIE_AT = '''
import os, signal, sys
import qosd.sys, qosd.__main__

point = int(os.environ["DIE_AT"])
class Dying(qosd.sys.Sys):
    """Counts the calls of every effect, and those around them, once the daemon writes."""
    def _count(self):
        global point
        point -= 1
        if point == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def write(self, fd, data):
        self._count()
        done = os.write(fd, data)
        self._count()
        return done
    def ftruncate(self, fd, length):
        self._count()
        return os.ftruncate(fd, length)
    def rename(self, old, new):
        self._count()
        os.rename(old, new)
        self._count()

qosd.sys.Sys = Dying
sys.exit(qosd.__main__.main())
'''
