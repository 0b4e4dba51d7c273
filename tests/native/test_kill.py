"""Freeze and kill on the real kernel, in child cgroups of our own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from treekit import BOOT

from qosd.act import Actuator, Backoff, Report
from qosd.config import Ownership
from qosd.files import Key
from qosd.host import probe_host
from qosd.interference.kills import Effect, Means, Spent
from qosd.interference.victims import Candidate
from qosd.journal import Journal
from qosd.kill import Done, Killer
from qosd.model import CgroupFreeze, CgroupId, Setting, Tier
from qosd.plan import Desired, Ledger, Now, Reason, diff
from qosd.sys import DIRECTORY, Sys

pytestmark = pytest.mark.native

WHY = Reason("interference.kill", "because")
SLEEP = ["sleep", "1000"]


class Ground:
    """A BE workload `be` and what qosd does to it, below a cgroup of our own."""

    def __init__(self, group: Path, run: Path) -> None:
        self.mount = group.parent
        self.group = group
        self.prefix = group.name
        for name in ("be", "be/job", "ls"):
            (group / name).mkdir()
        self.root_fd = os.open(self.mount, DIRECTORY)
        journal = Journal(Sys(), str(run), BOOT)
        self.killer = Killer(Sys(), self.root_fd, str(run), ("init.scope",))
        self.actuator = Actuator(Sys(), self.root_fd, journal, ("init.scope",))
        self.ledger: Ledger = {}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """A process that is in the cgroup before it runs anything."""
        procs = self.group / name / "cgroup.procs"
        process = subprocess.Popen(
            ["sh", "-c", f'echo $$ >{procs}; exec "$@"', "sh", *(command or SLEEP)], start_new_session=True
        )
        self.processes.append(process)
        until(lambda: str(process.pid) in procs.read_text().split() or process.poll() is not None)
        return process

    def candidate(self, name: str = "be/job") -> Candidate:
        path = self.group / name
        root = self.group / "be"
        return Candidate(
            CgroupId(path.stat().st_ino),
            f"{self.prefix}/{name}",
            "be",
            CgroupId(root.stat().st_ino),
            f"{self.prefix}/be",
            Tier.BE,
            0,
            None,
            None,
        )

    def do(self, means: Means, name: str = "be/job", spend: Spent | None = None) -> Done:
        return self.killer.act(Effect(means, self.candidate(name), WHY), spend)

    def want(self, *settings: tuple[str, Setting]) -> Report:
        desired = tuple(
            Desired(
                CgroupId((self.group / name).stat().st_ino), f"{self.prefix}/{name}", Tier.BE, setting, WHY
            )
            for name, setting in settings
        )
        keys = {Key(each.cgroup_id, each.setting.file) for each in desired} | self.ledger.keys()
        files = {
            Key(path.stat().st_ino, "cgroup.freeze"): (path / "cgroup.freeze").read_text().strip()
            for path in (self.group / "be", self.group / "be/job")
        }
        now = Now(time.monotonic_ns() // 1000, {key: files[key] for key in keys})
        self.ledger, plan = diff(now, desired, self.ledger, Ownership())
        self.ledger, report = self.actuator.apply(plan, self.ledger, now.monotonic_usec, Backoff(1, 1))
        return report

    def events(self, name: str) -> dict[str, str]:
        text = (self.group / name / "cgroup.events").read_text()
        return dict(line.split() for line in text.splitlines())

    def close(self) -> None:
        (self.group / "be/cgroup.freeze").write_text("0")
        (self.group / "cgroup.kill").write_text("1")
        for process in self.processes:
            process.kill()
            process.wait()
        until(lambda: self.events(".")["populated"] == "0")
        os.close(self.root_fd)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come to hold"
        time.sleep(0.01)


@pytest.fixture
def ground(group: Path, tmp_path: Path) -> Iterator[Ground]:
    made = Ground(group, tmp_path)
    yield made
    made.close()


FREEZE = ("be", CgroupFreeze(frozen=True))


def test_a_frozen_workload_stops_and_runs_again_when_it_is_no_longer_wanted(ground: Ground) -> None:
    ground.start("be/job")
    report = ground.want(FREEZE)
    assert [done.result for done in report.applied] == ["written"]
    until(lambda: ground.events("be")["frozen"] == "1")

    report = ground.want()

    assert [outcome.result for outcome in report.restored] == ["done"]
    until(lambda: ground.events("be")["frozen"] == "0")


def test_freeze_then_kill_leaves_nothing_frozen_and_a_later_task_runs(ground: Ground) -> None:
    """cgroup.freeze stays 1 after a kill and would freeze whatever comes next: the thaw is the engine's."""
    victim = ground.start("be/job")
    ground.want(FREEZE)
    until(lambda: ground.events("be")["frozen"] == "1")

    assert ground.do(Means.KILL).result == "killed"
    assert victim.wait(timeout=20) == -signal.SIGKILL
    assert (ground.group / "be/cgroup.freeze").read_text() == "1\n"
    ground.want()

    assert (ground.group / "be/cgroup.freeze").read_text() == "0\n"
    later = ground.start("be/job", "true")
    assert later.wait(timeout=20) == 0


FORK_CHAIN = "import os\nwhile True:\n    if os.fork(): os._exit(0)\n"


def test_chains_of_forks_die_by_one_write_and_cost_one_kill(ground: Ground) -> None:
    (ground.group / "be/job/deep").mkdir()
    chains = [ground.start("be/job/deep", sys.executable, "-c", FORK_CHAIN) for _ in range(8)]
    assert [chain.wait(timeout=20) for chain in chains] == [0] * 8, "each is a child of its child by now"

    done = ground.do(Means.KILL, spend=Spent(5, "job"))

    assert done.result == "killed"
    until(lambda: ground.events("be/job")["populated"] == "0", seconds=20)
    assert ground.killer.spent.records == (Spent(5, "job"),)


def test_an_empty_victim_costs_nothing_and_is_not_killed(ground: Ground) -> None:
    assert ground.do(Means.KILL, spend=Spent(5, "job")).result == "empty"
    assert ground.killer.spent.records == ()


def test_a_victim_made_anew_under_the_same_path_is_not_killed(ground: Ground) -> None:
    old = ground.candidate()
    (ground.group / "be/job").rmdir()
    (ground.group / "be/job").mkdir()
    alive = ground.start("be/job")

    assert ground.killer.act(Effect(Means.KILL, old, WHY), Spent(5, "job")).result == "gone"
    assert ground.killer.populated(old) is None
    assert alive.poll() is None


def test_sigterm_reaches_every_process_of_the_subtree_and_nobody_else(ground: Ground) -> None:
    (ground.group / "be/job/deep").mkdir()
    inside = [ground.start("be/job"), ground.start("be/job/deep")]
    outside = [ground.start("be"), ground.start("ls")]

    done = ground.do(Means.TERM)

    assert (done.result, done.detail) == ("signalled", "2 processes")
    assert [process.wait(timeout=20) for process in inside] == [-signal.SIGTERM] * 2
    assert [process.poll() for process in outside] == [None, None]


def test_the_root_of_a_threaded_subtree_is_killed_as_its_parts_cannot_be(ground: Ground) -> None:
    """cgroup.kill of a threaded cgroup is EOPNOTSUPP: a process is in its domain, only threads are below."""
    (ground.group / "be/job/threads").mkdir()
    (ground.group / "be/job/threads/cgroup.type").write_text("threaded")
    victim = ground.start("be/job")
    with pytest.raises(OSError, match="not supported"):
        (ground.group / "be/job/threads/cgroup.kill").write_text("1")

    done = ground.do(Means.KILL, "be/job/threads")

    assert done.result == "killed"
    assert done.detail.endswith("be/job")
    assert victim.wait(timeout=20) == -signal.SIGKILL


def test_a_workload_that_is_itself_a_thread_group_of_something_above_is_refused(ground: Ground) -> None:
    (ground.group / "be/job").rmdir()
    (ground.group / "be/cgroup.type").write_text("threaded")
    done = ground.do(Means.KILL, "be")

    assert done.result == "refused"
    assert "above the workload" in done.detail
    (ground.group / "be/job").mkdir()


def test_a_threaded_workload_is_frozen_all_the_same(ground: Ground) -> None:
    (ground.group / "be/job/threads").mkdir()
    (ground.group / "be/job/threads/cgroup.type").write_text("threaded")
    ground.start("be/job")
    ground.want(FREEZE)

    until(lambda: ground.events("be")["frozen"] == "1")
    ground.want()


def test_attributes_that_a_delegatee_filled_up_are_in_nobodys_way(ground: Ground) -> None:
    """A cgroup takes 128 user.* attributes; nothing of ours is kept there."""
    taken = 0
    try:
        for taken in range(200):
            os.setxattr(ground.group / "be/job", f"user.x{taken}", b"1")
    except OSError:
        pass
    ground.start("be/job")

    assert taken >= 1
    assert ground.want(FREEZE).applied[0].result == "written"
    assert ground.do(Means.KILL, spend=Spent(5, "job")).result == "killed"
    ground.want()


TRACED = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
pid = os.fork()
if pid == 0:
    with open(sys.argv[1], "w") as procs:
        procs.write("0")
    libc.ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
    os.kill(os.getpid(), 19)  # stops for the tracer
    time.sleep(1000)
os.waitpid(pid, 0)
print("traced", flush=True)
time.sleep(1000)
"""


def test_a_task_stopped_by_its_tracer_is_in_nobodys_way(ground: Ground) -> None:
    procs = ground.group / "be/job/cgroup.procs"
    tracer = subprocess.Popen(
        [sys.executable, "-c", TRACED, str(procs)], stdout=subprocess.PIPE, start_new_session=True
    )
    ground.processes.append(tracer)
    assert tracer.stdout is not None
    assert tracer.stdout.readline() == b"traced\n"

    report = ground.want(FREEZE)

    assert report.applied[0].result == "written"
    assert ground.want(FREEZE).applied == (), "the setting is in force: nothing is written again"
    ground.want()
    assert ground.do(Means.KILL).result == "killed"
    tracer.stdout.close()


def test_qosd_moved_into_a_workload_freezes_and_kills_nothing_there(ground: Ground) -> None:
    """It would be the end of whoever is to thaw it again."""
    results = []
    home = own_procs_file()

    def act() -> None:
        results.append(ground.want(FREEZE).applied[0])
        results.append(ground.do(Means.KILL, "be/job"))
        results.append(ground.do(Means.TERM, "be"))

    try:
        (ground.group / "be/cgroup.procs").write_text(str(os.getpid()))
        act()
    finally:
        home.write_text(str(os.getpid()))

    assert [result.result for result in results] == ["refused"] * 3
    assert "qosd itself" in str(results[0].error)
    assert "protected" in results[2].detail
    assert (ground.group / "be/cgroup.freeze").read_text() == "0\n"


def own_procs_file() -> Path:
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return Path(str(probe_host().cgroup_root)) / line[4:] / "cgroup.procs"


def test_a_process_that_was_latency_sensitive_a_moment_ago_is_not_killed(ground: Ground) -> None:
    """Moved by mistake between the decision and the act."""
    moved = ground.start("ls")
    ground.start("be/job")
    ls = (f"{ground.prefix}/ls", CgroupId((ground.group / "ls").stat().st_ino))
    ground.killer.remember((ls,))
    (ground.group / "be/job/cgroup.procs").write_text(str(moved.pid))

    done = ground.do(Means.KILL, spend=Spent(5, "job"))

    assert done.result == "refused"
    assert "latency-sensitive a moment ago" in done.detail
    assert moved.poll() is None
    assert ground.killer.spent.records == ()


def test_a_process_that_left_for_ls_before_the_signal_is_spared(ground: Ground) -> None:
    """The members are read once more between pidfd_open() and the signal."""
    leaves, stays = ground.start("be/job"), ground.start("be/job")

    class Leaving(Sys):
        def pidfd_open(self, pid: int, flags: int = 0) -> int:  # type: ignore[override]
            (ground.group / "ls/cgroup.procs").write_text(str(leaves.pid))
            return os.pidfd_open(pid, flags)

    ground.killer._sys = Leaving()
    done = ground.do(Means.TERM)

    assert done.detail == "1 processes"
    assert stays.wait(timeout=20) == -signal.SIGTERM
    assert leaves.poll() is None


def test_the_budget_outlives_the_daemon(ground: Ground, tmp_path: Path) -> None:
    ground.start("be/job")
    ground.do(Means.KILL, spend=Spent(5, "job"))

    assert Killer(Sys(), ground.root_fd, str(tmp_path), ()).spent.records == (Spent(5, "job"),)
