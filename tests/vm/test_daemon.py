"""The daemon on a real kernel under a real systemd: it limits BE, keeps its limits, hears its operator."""

from __future__ import annotations

import pytest
from vm.guest import CGROUP, CONFIG, NEWER, Guest, waiting

pytestmark = pytest.mark.vm


def test_be_is_limited_to_what_ls_and_the_system_leave(guest: Guest) -> None:
    guest.hog(6)
    guest.limited()
    status = guest.status_when(lambda status: (status["tiers"]["be"]["cpu_cores"] or 0) > 0.5)

    assert status["mode"] == "enforce"
    allowance = status["tiers"]["be"]["cpu_allowance_cores"]
    (limit,) = (s for s in status["settings"] if (s["path"], s["file"]) == ("be.slice", "cpu.max"))
    quota, period = map(int, limit["value"].split())
    assert 0.05 <= allowance <= 2
    # One workload has the whole allowance; its share is not rewritten within the deadband of 5 % of 2 CPUs.
    assert quota / period == pytest.approx(allowance, abs=0.11)
    assert {workload["path"] for workload in status["workloads"]} == {"ls.slice", "be.slice"}
    assert all(sensor["ok"] for sensor in status["sensors"])
    assert "Traceback" not in guest.journal_text()


def test_the_limit_really_holds_be_back(guest: Guest) -> None:
    """With X at 50 % of two CPUs, hogs on both get at most about one, by their own cpu.stat."""
    guest.configure(
        "[host]\ncpu_target_pct = 50\n[cpu.bandwidth]\ndeadband_up_pct = 0\ndeadband_down_pct = 0"
    )
    guest.sh("systemctl restart qosd")
    guest.hog(6)
    guest.limited()

    used = int(
        guest.sh(
            f"A=$(awk '/^usage_usec/{{print $2}}' {CGROUP}/be.slice/cpu.stat); sleep 5;"
            f" B=$(awk '/^usage_usec/{{print $2}}' {CGROUP}/be.slice/cpu.stat); echo $((B - A))"
        )
    )

    assert 5_000_000 * 0.05 < used < 5_000_000 * 1.1


def test_ten_reloads_of_systemd_are_each_answered_within_two_ticks_and_start_no_war(guest: Guest) -> None:
    guest.job()
    guest.limited()

    limited = waiting(f"! grep -q ^max {CGROUP}/be.slice/cpu.max", 10)
    guest.sh(f"for _ in {{1..10}}; do systemctl daemon-reload && {limited} || exit 1; done", timeout=180)

    assert guest.setting("be.slice", "cpu.max")["state"] in ("in-force", "written")
    assert "reasserted" in guest.journal_text()


def test_a_sibling_that_needs_a_new_controller_does_not_lift_the_limit_for_long(guest: Guest) -> None:
    guest.job()
    guest.limited()

    guest.sh(
        "systemd-run -q --collect --unit=test-io --slice=be.slice -p IOWeight=50 -p AllowedCPUs=0 sleep 1000"
    )

    guest.until(f"! grep -q ^max {CGROUP}/be.slice/cpu.max", seconds=10)


def test_a_second_writer_makes_the_file_contested_and_no_war_follows(guest: Guest) -> None:
    guest.job()
    guest.limited()

    guest.sh(
        f"systemd-run -q --collect --unit=test-kubelet bash -c 'while sleep 1; do echo max 100000 >{CGROUP}/be.slice/cpu.max; done'"
    )
    guest.status_when(lambda status: any(each["state"] == "contested" for each in status["settings"]))
    guest.sh("sleep 5")

    assert guest.setting("be.slice", "cpu.max")["state"] == "contested"
    assert guest.journal_text().count("(reasserted)") <= 3
    assert "contested" in guest.sh("curl -s 127.0.0.1:9753/metrics")


def test_a_third_value_is_somebodys_choice_and_stands(guest: Guest) -> None:
    guest.job()
    guest.limited()

    guest.sh(f"echo '44444 100000' >{CGROUP}/be.slice/cpu.max")
    now = guest.status()["tick"]
    guest.status_when(lambda status: status["tick"] > now + 3)

    assert guest.read("be.slice/cpu.max") == "44444 100000"
    assert guest.setting("be.slice", "cpu.max")["state"] == "yielded"


@NEWER
def test_a_bad_configuration_is_refused_by_its_key_and_the_old_one_stays(guest: Guest) -> None:
    guest.job()
    guest.limited()
    guest.configure("[cpu.bandwidth]\nflor_pct = 7")

    code, said = guest.status_of("qosctl reload")

    assert code == 78
    assert "cpu.bandwidth.flor_pct" in said
    assert "floor_pct" in said
    assert guest.status()["config_error"] is not None
    assert guest.setting("be.slice", "cpu.max")["state"] == "in-force"


@NEWER
def test_a_configuration_that_others_may_write_is_refused(guest: Guest) -> None:
    guest.sh(f"chmod 666 {CONFIG}")

    code, said = guest.status_of("qosctl reload")

    assert code == 78
    assert "0666" in said


STORM = f"""python3 -I -S -c '
import os, sys, time
for turn in range(300):
    if turn == 299:
        os.rename("{CONFIG}.last", "{CONFIG}")
    os.kill(int(sys.argv[1]), 1)
    time.sleep(0.01)
'"""


@NEWER
def test_a_storm_of_sighup_reloads_at_most_once_a_tick_and_the_last_wins(guest: Guest) -> None:
    guest.job()
    guest.configure("[host]\ncpu_target_pct = 40")
    guest.sh(f"cp -p {CONFIG} {CONFIG}.last; sed -i 's/= 40/= 70/' {CONFIG}")
    before = guest.status()["tick"]

    guest.sh(f"{STORM} $(systemctl show -p MainPID --value qosd)")

    after = guest.status_when(lambda status: (status["tiers"]["be"]["cpu_allowance_cores"] or 9) < 0.9)
    assert 1 <= guest.journal_text().count("reloaded /etc/qosd") <= after["tick"] - before + 1
    assert guest.sh("systemctl is-active qosd") == "active\n"


def test_a_workload_taken_out_of_the_configuration_gets_its_original_back(guest: Guest) -> None:
    guest.job()
    guest.limited()
    guest.configure('[[workload]]\nname = "ls"\ntier = "ls"\nmatch = ["ls.slice"]')

    guest.sh("qosctl reload")
    guest.until(f"grep -q ^max {CGROUP}/be.slice/cpu.max", seconds=10)


def test_pause_gives_everything_back_and_resume_takes_it_again(guest: Guest) -> None:
    guest.job()
    guest.limited()

    guest.sh("qosctl pause 1h")
    assert guest.read("be.slice/cpu.max") == "max 100000"
    assert guest.status()["mode"] == "paused"

    guest.sh("qosctl resume")
    guest.limited()


@NEWER
def test_observe_mode_writes_nothing_and_still_says_what_it_would_do(guest: Guest) -> None:
    guest.configure('mode = "observe"')
    guest.sh("systemctl stop qosd")
    guest.job()
    guest.sh("systemctl start qosd")
    guest.status_when(lambda status: status["tick"] > 6)

    assert guest.read("be.slice/cpu.max") == "max 100000"
    assert guest.sh("ls /run/qosd") == "control.sock\n"
    assert guest.setting("be.slice", "cpu.max")["wanted"].endswith(" 10000")


def test_a_cpuset_holds_be_on_few_cpus_and_goes_again(guest: Guest) -> None:
    guest.configure('[host]\ncpu_target_pct = 50\n[cpu.bandwidth]\nenforce = "cpuset"')
    guest.job()
    guest.sh("systemctl restart qosd")
    guest.until(f"grep -qx '[01]' {CGROUP}/be.slice/cpuset.cpus.effective")

    guest.sh("systemctl stop qosd")

    assert guest.read("be.slice/cpuset.cpus.effective") == "0-1"


@NEWER
def test_run_starts_a_job_in_the_tier_and_passes_its_status_through(guest: Guest) -> None:
    code, said = guest.status_of("qosctl run be -- bash -c 'cat /proc/self/cgroup; exit 7'")

    assert code == 7, said
    assert "0::/be.slice/" in said


def test_a_read_only_cgroup_tree_ends_with_78_and_one_line(guest: Guest) -> None:
    guest.sh("systemctl stop qosd")

    code, said = guest.status_of(
        "unshare -m bash -c 'mount -o remount,bind,ro /sys/fs/cgroup && qosd run --runtime /tmp/qosd-ro'"
    )

    assert code == 78
    assert said.count("\n") == 1
    assert "read-only" in said


@NEWER
def test_with_pid_1_stopped_the_ticks_go_on_and_limits_are_written(guest: Guest) -> None:
    """Nothing of a tick goes through systemd. The kernel ignores SIGSTOP for PID 1; its cgroup can be frozen."""
    guest.hog(2)
    guest.limited()
    guest.sh("qosctl pause")
    guest.until(f"grep -q ^max {CGROUP}/be.slice/cpu.max", seconds=60)
    guest.sh(f"echo 1 >{CGROUP}/init.scope/cgroup.freeze")
    try:
        guest.until(f"grep -q 'frozen 1' {CGROUP}/init.scope/cgroup.events", seconds=60)
        before = guest.status()["tick"]
        guest.sh("qosctl resume")
        guest.limited()
        guest.status_when(lambda status: status["tick"] >= before + 3)
    finally:
        guest.sh(f"echo 0 >{CGROUP}/init.scope/cgroup.freeze")
    assert "Traceback" not in guest.journal_text()
