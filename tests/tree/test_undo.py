"""What was written is given back: in the kernel's order, after failures, and to whom it belongs."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from actkit import HALF, ORIGINAL, be_max, key, on_file
from treekit import BACKOFF, CPU_FILES, Loop, make_tree, text_of

from qosd.model import CpuIdle, CpuMax, CpuMaxBurst, CpusetCpus, CpuWeight


def test_wanting_nothing_any_more_restores_the_original(loop: Loop) -> None:
    loop.tick(loop.want("be.slice", HALF))

    _, report = loop.tick()

    assert [done.result for done in report.restored] == ["done"]
    assert text_of(be_max(loop)) == ORIGINAL
    assert on_file(loop) == {}
    assert loop.ledger == {}


def test_the_first_original_survives_many_writes(loop: Loop) -> None:
    for quota in range(10_000, 100_000, 10_000):
        loop.tick(loop.want("be.slice", CpuMax(quota, 100_000)))
    loop.tick()

    assert text_of(be_max(loop)) == ORIGINAL


def test_a_write_that_succeeds_but_cannot_be_read_back_stays_ours_to_restore(loop: Loop) -> None:
    """The kernel took the value: forgetting it now would leave it there for ever."""
    want = loop.want("be.slice", HALF)
    plan = loop.plan((want,))
    loop.sys.fail(errno.EIO, name="pread", file="cpu.max", nth=3)

    loop.ledger, _ = loop.actuator.apply(plan, loop.ledger, 0, BACKOFF)

    assert text_of(be_max(loop)) == "50000 100000"
    assert key(loop) in on_file(loop)
    loop.sys.heal()
    loop.tick(want)
    loop.tick()
    assert text_of(be_max(loop)) == ORIGINAL


def test_a_refused_write_over_our_own_value_keeps_that_value_ours(loop: Loop) -> None:
    """Whatever is tried in vain afterwards, what stands is ours, and a crash must undo it."""
    loop.tick(loop.want("be.slice", HALF))
    loop.sys.fail(errno.EBUSY, file="cpu.max")
    for quota in range(10_000, 20_000, 1000):
        loop.tick(loop.want("be.slice", CpuMax(quota, 100_000)))
        loop.sys.monotonic_usec = loop.ledger[key(loop)].retry_at
    assert text_of(be_max(loop)) == "50000 100000"

    loop.crash()
    loop.start()

    assert text_of(be_max(loop)) == ORIGINAL


def test_a_cgroup_replaced_before_the_restore_is_left_alone(loop: Loop) -> None:
    loop.tick(loop.want("be.slice", HALF))
    shutil.rmtree(loop.root / "be.slice")
    make_tree(loop.root / "spare", {})  # takes the freed inode number, so that the next directory cannot
    make_tree(loop.root / "be.slice", {**CPU_FILES, "cpu.max": "50000 100000\n"})

    _, report = loop.tick()

    assert [done.result for done in report.restored] == ["gone"]
    assert text_of(be_max(loop)) == "50000 100000"


def test_a_file_unreadable_for_a_moment_is_still_restored_later(loop: Loop) -> None:
    """Unknown is not "somebody else's": letting go of the original then would leave our value behind."""
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    be_max(loop).rename(loop.root / "hidden")
    plan = loop.plan(())
    (loop.root / "hidden").rename(be_max(loop))

    loop.actuator.apply(plan, loop.ledger, 0, BACKOFF)

    assert text_of(be_max(loop)) == ORIGINAL


def test_idle_gives_the_weight_back_that_leaving_it_resets(loop: Loop) -> None:
    """Leaving cpu.idle makes the weight 100, whatever it was (sched_group_set_idle())."""
    weight = loop.root / "be.slice/cpu.weight"
    weight.write_text("42\n")

    loop.tick(loop.want("be.slice", CpuIdle(True)))
    assert text_of(weight) == "0"
    loop.tick()

    assert text_of(loop.root / "be.slice/cpu.idle") == "0"
    assert text_of(weight) == "42"


def half_undone(loop: Loop) -> Path:
    """BE, whose weight was 42, out of idle again and with the weight that the kernel gives it then."""
    group = loop.root / "be.slice"
    (group / "cpu.weight").write_text("42\n")
    loop.tick(loop.want("be.slice", CpuIdle(True)))
    loop.sys.fail(errno.EBUSY, file="cpu.weight")
    loop.tick()
    loop.sys.heal()
    assert (text_of(group / "cpu.idle"), text_of(group / "cpu.weight")) == ("0", "100")
    return group


def test_a_restore_that_fails_between_idle_and_weight_is_finished_later(loop: Loop) -> None:
    """cpu.idle is at its original then, and still not all is given back."""
    group = half_undone(loop)

    loop.sys.advance(BACKOFF.max_usec / 1e6)
    loop.tick()

    assert text_of(group / "cpu.weight") == "42"


def test_a_weight_wanted_before_idle_gave_it_back_keeps_its_true_original(loop: Loop) -> None:
    """The 100 that stands there meanwhile is the kernel's reset, nobody's choice."""
    group = half_undone(loop)

    loop.tick(loop.want("be.slice", CpuWeight(7)))
    loop.sys.advance(BACKOFF.max_usec / 1e6)
    loop.tick()

    assert text_of(group / "cpu.weight") == "42"


def test_a_weight_chosen_while_idle_was_undone_is_the_one_given_back(loop: Loop) -> None:
    """`systemctl set-property be.slice CPUWeight=70` clears cpu.idle and writes the weight."""
    group = loop.root / "be.slice"
    (group / "cpu.weight").write_text("42\n")
    want = loop.want("be.slice", CpuIdle(True))
    loop.tick(want)
    (group / "cpu.idle").write_text("0\n")
    (group / "cpu.weight").write_text("70\n")

    loop.tick(want, reloaded=True)
    loop.tick()

    assert text_of(group / "cpu.weight") == "70"


def test_a_group_found_idle_is_idle_again_afterwards(loop: Loop) -> None:
    group = loop.root / "be.slice"
    (group / "cpu.idle").write_text("1\n")
    (group / "cpu.weight").write_text("0\n")

    loop.tick(loop.want("be.slice", CpuIdle(False)))
    _, report = loop.tick()

    assert [done.result for done in report.restored] == ["done"]
    assert (text_of(group / "cpu.idle"), text_of(group / "cpu.weight")) == ("1", "0")


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        (("100000", "50000"), ("20000", "0")),
        (("50000", "40000"), ("30000", "20000")),
        (("50000", "0"), ("200000", "150000")),
        (("max", "0"), ("20000", "20000")),
        (("max", "90000"), ("20000", "0")),
    ],
)
def test_burst_and_limit_go_there_and_back_in_an_order_the_kernel_takes(
    loop: Loop, original: tuple[str, str], ours: tuple[str, str]
) -> None:
    """A limit below its burst is EINVAL at every step on the way, in both directions."""
    group = loop.root / "ls.slice"
    (group / "cpu.max").write_text(f"{original[0]} 100000\n")
    (group / "cpu.max.burst").write_text(f"{original[1]}\n")
    wants = (
        loop.want("ls.slice", CpuMax(int(ours[0]), 100_000)),
        loop.want("ls.slice", CpuMaxBurst(int(ours[1]))),
    )

    _, there = loop.tick(*wants)
    _, back = loop.tick()

    assert {done.result for done in there.applied} <= {"written"}
    assert {done.result for done in back.restored} <= {"done"}
    assert text_of(group / "cpu.max") == f"{original[0]} 100000"
    assert text_of(group / "cpu.max.burst") == original[1]


def test_a_mask_that_cannot_even_be_widened_is_kept_for_another_attempt(loop: Loop) -> None:
    """What the parent does not have says nothing of the cgroup itself: it is not gone."""
    mask = loop.root / "be.slice/cpuset.cpus"
    (loop.root / "be.slice/cgroup.events").write_text("populated 0\n")
    loop.tick(loop.want("be.slice", CpusetCpus((0, 2))))
    loop.sys.fail(errno.ENOSPC, file="cpuset.cpus")
    _, report = loop.tick()
    loop.sys.heal()

    loop.sys.advance(BACKOFF.max_usec / 1e6)
    loop.tick()

    assert [outcome.result for outcome in report.restored] == ["failed"]
    assert text_of(mask) == ""


@pytest.mark.parametrize("possible", ["0-3\n", "0-7\n", None], ids=["taken", "refused", "missing"])
def test_an_inherited_cpuset_of_a_populated_group_widens_to_all_there_can_be_on_restore(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, possible: str | None
) -> None:
    """cpuset refuses "" while there are tasks (ENOSPC), and what is offline now may come back.

    Where the kernel takes no such mask, it is what the parent has.
    """
    monkeypatch.setattr("qosd.journal.POSSIBLE_CPUS", str(tmp_path / "possible"))
    if possible is not None:
        (tmp_path / "possible").write_text(possible)
    online = "0-2\n" if possible == "0-3\n" else "0-3\n"
    monkeypatch.setattr("qosd.journal.ONLINE_CPUS", str(tmp_path / "online"))
    (tmp_path / "online").write_text(online)
    (loop.root / "cpuset.cpus.effective").write_text(online)
    loop.tick(loop.want("be.slice", CpusetCpus((1,))))

    _, report = loop.tick()

    assert [done.result for done in report.restored] == ["widened"]
    assert text_of(loop.root / "be.slice/cpuset.cpus") == "0-3"


def test_a_restored_mask_names_no_cpu_of_somebodys_partition(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel makes a partition invalid when a sibling's mask names its CPUs (seen on Linux 6.12)."""
    for name in ("possible", "online"):
        monkeypatch.setattr(f"qosd.journal.{name.upper()}_CPUS", str(tmp_path / name))
        (tmp_path / name).write_text("0-3\n")
    (loop.root / "cpuset.cpus.effective").write_text("0-2\n")
    loop.tick(loop.want("be.slice", CpusetCpus((1,))))

    _, report = loop.tick()

    assert [done.result for done in report.restored] == ["widened"]
    assert text_of(loop.root / "be.slice/cpuset.cpus") == "0-2"


def test_an_inherited_cpuset_of_an_empty_group_is_inherited_again(loop: Loop) -> None:
    (loop.root / "be.slice/cgroup.events").write_text("populated 0\n")
    loop.tick(loop.want("be.slice", CpusetCpus((1,))))

    _, report = loop.tick()

    assert [done.result for done in report.restored] == ["done"]
    assert text_of(loop.root / "be.slice/cpuset.cpus") == ""


def test_a_failed_restore_is_tried_again_after_its_backoff(loop: Loop) -> None:
    loop.tick(loop.want("be.slice", HALF))
    loop.sys.fail(errno.EBUSY, file="cpu.max")
    _, report = loop.tick()
    loop.sys.heal()
    _, too_early = loop.tick()
    loop.sys.advance(BACKOFF.first_usec / 1e6)

    _, again = loop.tick()

    assert [done.result for done in report.restored] == ["failed"]
    assert too_early.restored == ()
    assert [done.result for done in again.restored] == ["done"]
    assert text_of(be_max(loop)) == ORIGINAL
