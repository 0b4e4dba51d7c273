"""PSI triggers as the kernel really has them, in child cgroups of our own."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys as python
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from native.conftest import engine_for

from qosd.config import Config
from qosd.schema.fast import Fast
from qosd.schema.interference import Interference, MaxAnswer
from qosd.schema.units import Duration
from qosd.sys import DIRECTORY, Sys
from qosd.trigger import Triggers, arm, format_trigger, windows

pytestmark = pytest.mark.native

CAP_SYS_RESOURCE = 24
SPIN = "while True: pass"


def has_sys_resource() -> bool:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    return bool(effective >> CAP_SYS_RESOURCE & 1)


@pytest.fixture(autouse=True)
def _psi() -> None:
    if not Path("/proc/pressure/cpu").exists():
        pytest.skip("no PSI here")


@pytest.fixture
def root_fd(group: Path) -> Iterator[int]:
    fd = os.open(group, DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def spinners(group: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to be put into groups; gone before the groups are removed."""
    assert group.is_dir()
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def spin(started: list[subprocess.Popen[bytes]], group: Path, count: int) -> None:
    for _ in range(count):
        process = subprocess.Popen([python.executable, "-S", "-c", SPIN])
        started.append(process)
        (group / "cgroup.procs").write_text(str(process.pid), encoding="ascii")


def test_a_trigger_gets_its_window_or_falls_back_to_the_next_longer_one(root_fd: int) -> None:
    """EINVAL without CAP_SYS_RESOURCE: only multiples of 2 s are taken then."""
    fd, threshold, window = arm(Sys(), root_fd, Fast())
    os.close(fd)

    assert window == (100_000 if has_sys_resource() else 2_000_000)
    assert threshold == window // 2


def test_without_cap_sys_resource_a_trigger_gets_two_seconds_at_the_same_share(group: Path) -> None:
    """In a process that has dropped it: the kernel takes multiples of 2 s of it (since Linux 6.5)."""
    program = (
        "import os, sys; from qosd.schema.fast import Fast; from qosd.sys import DIRECTORY, Sys;"
        "from qosd.trigger import arm; fd = os.open(sys.argv[1], DIRECTORY);"
        "print(arm(Sys(), fd, Fast(threshold_pct=25))[1:])"
    )
    dropped = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    done = subprocess.run(
        [*dropped, python.executable, "-c", program, str(group)], capture_output=True, text=True, check=False
    )

    assert done.stdout.strip() == "(500000, 2000000)", done.stderr


def test_the_string_is_ended_so_that_no_digit_is_lost() -> None:
    """/proc/pressure puts a NUL over the last byte: bare, 2000000 would be a window of 0.2 s, and EINVAL."""
    assert format_trigger(1_000_000, 2_000_000) == b"some 1000000 2000000\n"
    fd = os.open("/proc/pressure/cpu", os.O_RDWR | os.O_NONBLOCK)
    try:
        assert os.write(fd, format_trigger(1_000_000, 2_000_000)) > 0
    finally:
        os.close(fd)


def test_one_fd_holds_one_trigger_and_every_trigger_has_its_own(root_fd: int) -> None:
    for _ in range(3):
        fd, _, _ = arm(Sys(), root_fd, Fast())
        with pytest.raises(OSError, match="busy") as caught:
            os.write(fd, format_trigger(1_000_000, 2_000_000))
        assert caught.value.errno == errno.EBUSY
        os.close(fd)


def test_a_removed_cgroup_ends_its_trigger_and_nothing_spins(group: Path, tmp_path: Path) -> None:
    """poll() says POLLERR at once and for ever: the fd must go."""
    for name in ("ls", "be"):
        (group / name).mkdir()
    engine = engine_for(group, tmp_path, Config(fast=Fast(window=Duration(2_000_000))))
    with select.epoll() as epoll:
        triggers: Triggers = engine.reflex.triggers
        triggers.epoll = epoll
        for _ in range(3):
            engine.tick()
        (armed,) = triggers.armed

        (group / "ls").rmdir()
        ((fd, events),) = epoll.poll(5)
        assert events & select.EPOLLERR
        assert triggers.on_event(fd, events, 0) is None

        assert triggers.armed == ()
        assert epoll.poll(0.2) == []
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(armed.fd)

        (group / "ls").mkdir()
        engine.tick()
        assert len(triggers.armed) == 1, "a cgroup made anew has a trigger of its own"
        engine.close()


def test_coming_and_going_leaves_no_fd_behind(group: Path, tmp_path: Path) -> None:
    (group / "be").mkdir()
    engine = engine_for(group, tmp_path, Config(fast=Fast(window=Duration(2_000_000))))
    with select.epoll() as epoll:
        engine.reflex.triggers.epoll = epoll
        counts = []
        for _ in range(20):
            (group / "ls").mkdir()
            engine.tick()
            (group / "ls").rmdir()
            engine.tick()
            counts.append(len(os.listdir("/proc/self/fd")))
        engine.close()

    assert len(set(counts[3:])) == 1


def test_tasks_that_wait_for_cpus_wake_us_and_the_evidence_names_be(
    group: Path, tmp_path: Path, spinners: list[subprocess.Popen[bytes]]
) -> None:
    for name in ("ls", "be"):
        (group / name).mkdir()
    engine = engine_for(group, tmp_path, Config(fast=Fast(window=Duration(2_000_000), threshold_pct=5)))
    cpus = len(os.sched_getaffinity(0))
    spin(spinners, group / "ls", cpus)
    spin(spinners, group / "be", cpus)
    with select.epoll() as epoll:
        engine.reflex.triggers.epoll = epoll
        for _ in range(4):
            engine.tick()
            time.sleep(0.3)

        events = epoll.poll(30)
        assert len(events) == 1
        event = engine.reflex.triggers.on_event(*events[0], time.monotonic_ns() // 1000)
        assert event is not None
        # There is no cpu.max here, and LS leaves BE its floor: what counts is that BE was found to blame.
        assert engine.react(event) in ("cut", "left-alone", "floor")
        (heard,) = engine.reflex.events
        assert heard.be_cores is not None
        assert heard.be_cores > 0
        assert heard.throttled_usec == 0
        engine.close()


def test_a_trigger_for_memory_is_set_where_something_would_be_done_about_it(
    group: Path, tmp_path: Path
) -> None:
    for name in ("ls", "be"):
        (group / name).mkdir()
    engine = engine_for(group, tmp_path, Config(fast=Fast(window=Duration(2_000_000))))
    with select.epoll() as epoll:
        memory = engine.reflex.memory
        memory.epoll = epoll
        for _ in range(3):
            engine.tick()
        assert memory.armed == (), "by default it is only reported"
        answering = Interference(answer=MaxAnswer.FREEZE)
        engine.reconfigure(msgspec.structs.replace(engine.config, interference=answering))
        engine.tick()

        assert [(each.path.rpartition("/")[2], each.window_usec) for each in memory.armed] == [
            ("ls", 2_000_000)
        ]
        assert memory.armed[0].threshold_usec == 400_000
        engine.reflex.memory.disarm()


def test_a_window_longer_than_the_fallbacks_is_tried_alone() -> None:
    assert windows(Fast(window=Duration(100_000))) == (100_000, 500_000, 2_000_000)
    assert windows(Fast(window=Duration(500_000))) == (500_000, 2_000_000)
    assert windows(Fast(window=Duration(4_000_000))) == (4_000_000,)


def test_a_changed_configuration_sets_the_triggers_anew(group: Path, tmp_path: Path) -> None:
    for name in ("ls", "be"):
        (group / name).mkdir()
    engine = engine_for(group, tmp_path, Config(fast=Fast(window=Duration(2_000_000))))
    with select.epoll() as epoll:
        engine.reflex.triggers.epoll = epoll
        for _ in range(3):
            engine.tick()
        (before,) = engine.reflex.triggers.armed

        fast = Fast(window=Duration(4_000_000), threshold_pct=25)
        engine.reconfigure(msgspec.structs.replace(engine.config, fast=fast))
        engine.tick()
        (after,) = engine.reflex.triggers.armed
        assert (before.window_usec, after.window_usec) == (2_000_000, 4_000_000)
        assert after.threshold_usec == 1_000_000

        engine.reconfigure(msgspec.structs.replace(engine.config, fast=Fast(max_triggers=0)))
        status = engine.tick()
        assert engine.reflex.triggers.armed == ()
        assert status.reflex is not None
        assert status.reflex.why_not == {"": "fast.max_triggers = 0"}
        engine.close()
