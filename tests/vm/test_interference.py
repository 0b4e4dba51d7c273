"""Freezing and killing on a real host: the kernel's own pressure, systemd in the way, and the daemon dying."""

from __future__ import annotations

import json
from typing import Any

import pytest
from vm.guest import CGROUP, NEWER, Guest

from qosd.lab.tiers import tiers

pytestmark = [pytest.mark.vm, NEWER]

NO_RESTART = "[Service]\nRestart=no\n"
FIGHT = """
[cpu.weight]
be_idle = "never"
be_weight = 10000
ls_weight = 1
[cpu.bandwidth]
enforce = "none"
[cpu.cpuset]
mode = "never"
[interference]
answer = "freeze"
cpu_some_pct = 5
be_share_pct = 1
be_seen_pct = 1
quiet_pct = 10
baseline_ticks = 1
enter_ticks = 1
dwell_up = "0s"
dwell_down = "1h"
freeze_lease = "1min"
freeze_rest = "1s"
"""
"""BE is set against LS with all its weight, and everything above nothing is too much. A mask would end it before a
freeze has to."""
FREEZE = f"{CGROUP}/be.slice/cgroup.freeze"


def test_a_killed_daemon_leaves_nothing_frozen(idle: Guest) -> None:
    """And while it lives, somebody else's thaw is undone."""
    guest = idle
    guest.configure(FIGHT)
    guest.hog(threads=2, name="test-ls", slice_="ls.slice")
    guest.sh("systemd-run -q --collect --unit=test-other --slice=be.slice sleep 10000")
    before = guest.values()
    guest.drop_in(NO_RESTART)
    guest.sh("systemctl start qosd")
    guest.status_when(lambda status: status["tick"] >= 5)
    guest.hog(threads=4, name="test-hog")
    guest.until(f"grep -qx 1 {FREEZE}", seconds=180)
    guest.until(f"grep -q frozen.1 {CGROUP}/be.slice/cgroup.events", seconds=20)

    guest.sh(f"echo 0 >{FREEZE}")
    guest.until(f"grep -qx 1 {FREEZE}", seconds=20)
    why = guest.setting("be.slice", "cgroup.freeze")["reason"]["text"]
    assert "frozen for 60 s at most" in why

    guest.sh("systemctl kill -s KILL --kill-whom=main qosd")
    guest.until(f"grep -qx 0 {FREEZE}", seconds=5)
    guest.until("systemctl is-failed -q qosd")
    after = guest.values()
    both = {file for file in before.keys() & after.keys() if "test-" not in file}
    assert {file: after[file] for file in both} == {file: before[file] for file in both}


KILL = """
interval = "500ms"
[host]
cpu_target_pct = 1
[cpu.bandwidth]
enforce = "{enforce}"
period = "100ms"
floor_pct = 1
[interference]
answer = "kill"
memory_some_pct = 1
enter_ticks = 2
leave_ticks = 1000
dwell_up = "0s"
dwell_down = "1h"
freeze_lease = "1s"
freeze_rest = "1s"
[interference.kill]
after = "1s"
mem_available_pct = 80
term_grace = "1s"
settle = "1s"
cooldown = "1s"
per_window = {kills}
""" + tiers("kill = true", ls=("test.slice/test-ls.slice", "ls.slice"))
HOG = "import signal, time; signal.signal(15, signal.SIG_IGN); held = b'x' * ({} << 20); time.sleep(10000)"
"""Deaf to SIGTERM."""
FORKS = """
import os, signal, time
signal.signal(15, signal.SIG_IGN)
held = b'x' * ({} << 20)
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.2)
"""
"""The same as a fork bomb: every process of it forks whenever pids.max lets it."""
PIDS = 12


def waiting_ls(guest: Guest) -> str:
    """An LS service that waits for memory all the time, through no limit of its own: its parent has it."""
    guest.sh("rm -f /run/qosd/kills.json")  # the budget outlives the daemons of other tests too
    guest.sh("systemctl set-property --runtime test.slice MemoryHigh=40M")
    guest.sh(
        "systemd-run -q --collect --unit=test-ls --slice=test-ls.slice -p MemoryAccounting=yes -p KillSignal=SIGKILL"
        " stress-ng --quiet --vm 1 --vm-bytes 80M --vm-keep"
    )
    return guest.sh("systemctl show -p MainPID --value test-ls").strip()


def hold_memory(guest: Guest, slice_: str, *properties: str, mib: int = 600, program: str = HOG) -> None:
    """By default nearly half of the guest's memory."""
    options = " ".join(f"-p {each}" for each in properties)
    guest.sh(
        f"systemd-run -q --collect --unit=test-mem --slice={slice_} -p MemoryAccounting=yes -p KillSignal=SIGKILL {options}"
        f' /usr/bin/python3 -c "{program.format(mib)}"'
    )
    guest.until(
        f"test $(cat {CGROUP}/{slice_}/test-mem.service/memory.current) -gt {mib * 1000000}", seconds=120
    )


def killed(guest: Guest) -> list[dict[str, Any]]:
    decisions: list[dict[str, Any]] = json.loads(guest.sh("qosctl decisions --json"))
    return [each for each in decisions if each["file"] in ("SIGTERM", "cgroup.kill")]


def test_a_job_held_at_one_per_cent_has_its_limit_lifted_and_is_asked_before_it_is_killed(
    idle: Guest,
) -> None:
    """And a fork bomb, whose pids.max is reached: it dies as a whole, by one write, and LS stays."""
    guest = idle
    guest.configure(KILL.format(enforce="max", kills=1))
    hold_memory(guest, "be.slice", f"TasksMax={PIDS}", program=FORKS)
    guest.until(f"grep -qx {PIDS} {CGROUP}/be.slice/test-mem.service/pids.current", seconds=60)
    ls = waiting_ls(guest)
    guest.sh("systemctl start qosd")

    guest.until("! systemctl is-active -q test-mem", seconds=60)

    decisions = json.loads(guest.sh("qosctl decisions --json"))
    told = [(each["path"], each["file"], each["result"]) for each in decisions]
    limited = told.index(("be.slice", "cpu.max", "written"))
    lifted = told.index(("be.slice", "cpu.max", "restore done"))
    asked = told.index(("be.slice/test-mem.service", "SIGTERM", "signalled"))
    done = told.index(("be.slice/test-mem.service", "cgroup.kill", "killed"))
    assert limited < lifted < asked < done
    assert told.index(("be.slice", "cgroup.freeze", "restore done")) < asked
    reason = decisions[asked]["reason"]
    assert "candidates, the first to go first: be.slice/test-mem.service" in reason["text"]
    assert [file for _, file, _ in told].count("cgroup.kill") == 1
    assert guest.read("be.slice/cgroup.freeze") == "0"
    assert guest.sh("systemctl show -p MainPID --value test-ls").strip() == ls


def test_a_storm_of_restarts_ends_with_the_budget_and_an_alarm(idle: Guest) -> None:
    guest = idle
    guest.configure(KILL.format(enforce="none", kills=2))
    hold_memory(guest, "be.slice", "Restart=always", "RestartSec=100ms", "StartLimitIntervalSec=0")
    ls = waiting_ls(guest)
    guest.sh("systemctl start qosd")

    status = guest.status_when(lambda each: "budget" in str(each["interference"]["alarm"]), tries=90)

    assert status["interference"]["kills_left"]["window"] == 0
    assert [each["file"] for each in killed(guest)].count("cgroup.kill") == 2
    guest.sh("systemctl restart qosd")
    guest.status_when(lambda each: each["tick"] > 12)
    assert killed(guest) == [], "a daemon that comes back has no new budget"
    assert guest.sh("systemctl show -p MainPID --value test-ls").strip() == ls


@pytest.mark.parametrize(("slice_", "cause"), [("system.slice", "system"), ("ls.slice", "ls")])
def test_a_hog_that_is_not_in_be_is_reported_and_nobody_is_killed(
    idle: Guest, slice_: str, cause: str
) -> None:
    guest = idle
    guest.configure(KILL.format(enforce="none", kills=5))
    guest.sh("systemd-run -q --collect --unit=test-job --slice=be.slice -p MemoryAccounting=yes sleep 10000")
    hold_memory(guest, slice_)
    ls = waiting_ls(guest)
    guest.sh("systemctl start qosd")

    guest.status_when(lambda each: bool(each["interference"]["verdicts"]))
    guest.status_when(lambda each: each["tick"] > 25)

    verdicts = [each["verdict"] for each in json.loads(guest.sh("qosctl verdicts --json"))]
    assert {each["cause"] for each in verdicts if each["signal"] == "memory.pressure"} == {cause}
    assert killed(guest) == []
    assert guest.read("be.slice/cgroup.freeze") == "0"
    guest.sh("systemctl is-active -q test-job test-mem")
    assert guest.sh("systemctl show -p MainPID --value test-ls").strip() == ls
