"""Journal, write, read back, classify: the real actuator on a fake tree that keeps the kernel's rules."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from actkit import HALF, ORIGINAL, be_max, key, on_file
from treekit import BACKOFF, CPU_FILES, FakeSys, Loop, make_tree, text_of

from qosd.act import protects
from qosd.model import MAX, CpuIdle, CpuMax, CpusetCpus
from qosd.plan import Standing


def test_a_wanted_value_is_written_once_and_then_left_alone(loop: Loop) -> None:
    want = loop.want("be.slice", HALF)

    _, first = loop.tick(want)
    before = len(loop.sys.writes())
    plan, second = loop.tick(want)

    assert [done.result for done in first.applied] == ["written"]
    assert text_of(be_max(loop)) == "50000 100000"
    assert plan.states == {key(loop): Standing.IN_FORCE}
    assert second.applied == ()
    assert len(loop.sys.writes()) == before


def test_the_original_is_on_file_before_the_write_it_undoes(loop: Loop) -> None:
    loop.tick(loop.want("be.slice", HALF))

    writes = [os.path.basename(call.path) for call in loop.sys.calls if call.name == "write"]
    assert writes == ["journal.jsonl.new", "journal.jsonl", "cpu.max"]


def test_a_value_that_already_stands_is_neither_written_nor_restored(loop: Loop) -> None:
    be_max(loop).write_text("50000 100000\n")

    plan, _ = loop.tick(loop.want("be.slice", HALF))
    loop.tick()

    assert plan.states == {key(loop): Standing.ALREADY}
    assert text_of(be_max(loop)) == "50000 100000"
    assert loop.sys.writes() == []


@pytest.mark.parametrize(
    "error",
    [errno.EINVAL, errno.EBUSY, errno.ENOSPC, errno.EROFS, errno.EPERM, errno.EACCES, errno.ERANGE],
    ids=errno.errorcode.get,
)
def test_a_refused_write_backs_off_and_owns_nothing(loop: Loop, error: int) -> None:
    """Nothing of ours is in force, so nothing is on file; the next try waits longer each time."""
    loop.sys.fail(error, file="cpu.max")
    want = loop.want("be.slice", HALF)

    _, report = loop.tick(want)
    plan, again = loop.tick(want)

    assert [(done.result, done.errno_name) for done in report.applied] == [("failed", errno.errorcode[error])]
    assert again.applied == ()
    assert plan.states == {key(loop): Standing.BACKOFF}
    assert on_file(loop) == {}
    assert text_of(be_max(loop)) == ORIGINAL


def test_backoff_doubles_up_to_its_limit_and_ends_with_the_first_success(loop: Loop) -> None:
    loop.sys.fail(errno.EBUSY, file="cpu.max")
    want = loop.want("be.slice", HALF)
    waits = []
    for _ in range(10):
        at = loop.sys.monotonic_usec
        loop.tick(want)
        waits.append(loop.ledger[key(loop)].retry_at - at)
        loop.sys.monotonic_usec = loop.ledger[key(loop)].retry_at
    loop.sys.heal()
    loop.tick(want)
    loop.tick(want)

    assert waits == [min(BACKOFF.first_usec << n, BACKOFF.max_usec) for n in range(10)]
    assert (loop.ledger[key(loop)].failures, loop.ledger[key(loop)].retry_at) == (0, 0)


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENODEV], ids=errno.errorcode.get)
def test_a_cgroup_that_goes_away_under_the_write_is_no_failure(loop: Loop, error: int) -> None:
    loop.sys.fail(error, file="cpu.max")

    _, report = loop.tick(loop.want("be.slice", HALF))

    assert [done.result for done in report.applied] == ["gone"]
    assert loop.ledger[key(loop)].failures == 0
    assert on_file(loop) == {}


@pytest.mark.parametrize("name", ["open", "pread", "fstat"])
@pytest.mark.parametrize("error", [errno.EACCES, errno.EMFILE, errno.EIO], ids=errno.errorcode.get)
def test_a_file_that_cannot_be_read_is_not_written(loop: Loop, name: str, error: int) -> None:
    want = loop.want("be.slice", HALF)
    plan = loop.plan((want,))
    loop.sys.fail(error, name=name, file="cpu.max")

    _, report = loop.actuator.apply(plan, loop.ledger, 0, BACKOFF)

    assert [done.result for done in report.applied] == ["failed"]
    assert loop.sys.writes() == []


def test_a_cgroup_replaced_between_plan_and_act_is_not_written(loop: Loop) -> None:
    """Same path, other inode: it is another cgroup."""
    plan = loop.plan((loop.want("be.slice", HALF),))
    old = loop.root / "be.slice"
    old.rename(loop.root / "kept.slice")
    make_tree(loop.root / "be.slice", CPU_FILES)

    _, report = loop.actuator.apply(plan, loop.ledger, 0, BACKOFF)

    assert [done.result for done in report.applied] == ["gone"]
    assert text_of(be_max(loop)) == ORIGINAL
    assert loop.sys.writes() == []


def test_a_value_changed_between_plan_and_act_is_not_overwritten(loop: Loop) -> None:
    plan = loop.plan((loop.want("be.slice", HALF),))
    be_max(loop).write_text("70000 100000\n")

    _, report = loop.actuator.apply(plan, loop.ledger, 0, BACKOFF)

    assert [done.result for done in report.applied] == ["moved"]
    assert text_of(be_max(loop)) == "70000 100000"


def test_a_value_the_kernel_keeps_otherwise_is_diverged_and_not_written_again(loop: Loop) -> None:
    """Each tick anew would loop; what the kernel made of it is ours all the same, and is undone."""
    want = loop.want("be.slice", CpusetCpus((0, 1)))
    loop.sys.hooks.append(
        lambda call: (
            call.name == "pread" and text_of(Path(call.path)) == "0-1" and Path(call.path).write_text("0\n")
        )
    )

    _, report = loop.tick(want)
    plan, again = loop.tick(want)

    assert [(done.result, done.error) for done in report.applied] == [("diverged", "0")]
    assert plan.states[key(loop, "cpuset.cpus")] is Standing.BACKOFF
    assert again.applied == ()
    loop.crash()
    (loop.root / "be.slice/cgroup.events").write_text("populated 0\n")
    loop.start()
    assert text_of(loop.root / "be.slice/cpuset.cpus") == ""


def test_a_file_that_is_absent_is_neither_written_nor_an_error(loop: Loop) -> None:
    be_max(loop).unlink()

    plan, report = loop.tick(loop.want("be.slice", HALF))

    assert plan.states == {key(loop): Standing.ABSENT}
    assert report.applied == ()


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("", True),
        ("init.scope", True),
        ("init.scope/below", True),
        ("system.slice", True),
        ("system.slice/qosd.service", True),
        ("system.slice/other.service", False),
        ("init.scope2", False),
        ("be.slice", False),
    ],
)
def test_protected_cgroups_their_ancestors_and_descendants_are_refused(path: str, *, refused: bool) -> None:
    assert protects(("init.scope", "system.slice/qosd.service"), path) is refused


def test_the_root_is_refused_even_when_nothing_else_is_protected() -> None:
    assert protects((), "")


def test_a_protected_cgroup_is_refused_at_the_write_itself(loop: Loop) -> None:
    _, report = loop.tick(loop.want("init.scope", HALF))

    assert [done.result for done in report.applied] == ["refused"]
    assert loop.sys.writes() == []


def test_no_fd_is_left_open_whatever_fails(loop: Loop) -> None:
    want = (loop.want("be.slice", HALF), loop.want("be.slice", CpuIdle(True)))
    loop.tick(*want)
    held = set(loop.sys.fds)
    loop.tick()
    for nth in range(1, 40):
        loop.sys.fail(errno.EIO, name=("open", "pread", "write", "fstat")[nth % 4], file="", nth=nth)
        loop.sys.monotonic_usec += BACKOFF.max_usec
        loop.tick(*want)
        loop.sys.heal()
        loop.sys.monotonic_usec += BACKOFF.max_usec
        loop.tick()
        assert loop.sys.fds == held


def test_what_max_means_is_written_as_the_kernel_spells_it(loop: Loop) -> None:
    be_max(loop).write_text("50000 100000\n")

    loop.tick(loop.want("be.slice", CpuMax(MAX, 100_000)))

    assert text_of(be_max(loop)) == "max 100000"


def test_observing_needs_no_actuator_and_touches_nothing(loop: Loop, sys: FakeSys) -> None:
    plan = loop.plan((loop.want("be.slice", HALF),))

    assert [write.new for write in plan.writes] == ["50000 100000"]
    assert sys.writes() == []
