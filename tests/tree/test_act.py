"""Journal, write, read back, classify: the real actuator on a fake tree that keeps the kernel's rules."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from treekit import BACKOFF, BOOT, CPU_FILES, FakeSys, Loop, cgroup_id, make_tree, text_of

from qosd.act import protects
from qosd.config import OnForeignWrite, Ownership
from qosd.files import Key
from qosd.journal import FILE, load
from qosd.model import MAX, CpuIdle, CpuMax, CpuMaxBurst, CpusetCpus, CpuWeight
from qosd.plan import Standing

HALF = CpuMax(50_000, 100_000)
THIRD = CpuMax(30_000, 100_000)
ORIGINAL = "max 100000"


def be_max(loop: Loop) -> Path:
    return loop.root / "be.slice/cpu.max"


def key(loop: Loop, file: str = "cpu.max", path: str = "be.slice") -> Key:
    return Key(cgroup_id(loop.root / path), file)


def on_file(loop: Loop) -> dict[Key, object]:
    """What a restore by another process would find in the journal."""
    return dict(load((loop.run / FILE).read_bytes(), BOOT))


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


def test_a_cgroup_replaced_before_the_restore_is_left_alone(loop: Loop) -> None:
    loop.tick(loop.want("be.slice", HALF))
    shutil.rmtree(loop.root / "be.slice")
    make_tree(loop.root / "spare", {})  # takes the freed inode number, so that the next directory cannot
    make_tree(loop.root / "be.slice", {**CPU_FILES, "cpu.max": "50000 100000\n"})

    _, report = loop.tick()

    assert [done.result for done in report.restored] == ["gone"]
    assert text_of(be_max(loop)) == "50000 100000"


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


def test_a_file_unreadable_for_a_moment_is_still_restored_later(loop: Loop) -> None:
    """Unknown is not "somebody else's": letting go of the original then would leave our value behind."""
    want = loop.want("be.slice", HALF)
    loop.tick(want)
    be_max(loop).rename(loop.root / "hidden")
    plan = loop.plan(())
    (loop.root / "hidden").rename(be_max(loop))

    loop.actuator.apply(plan, loop.ledger, 0, BACKOFF)

    assert text_of(be_max(loop)) == ORIGINAL


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


def test_idle_gives_the_weight_back_that_leaving_it_resets(loop: Loop) -> None:
    """Leaving cpu.idle makes the weight 100, whatever it was (sched_group_set_idle())."""
    weight = loop.root / "be.slice/cpu.weight"
    weight.write_text("42\n")

    loop.tick(loop.want("be.slice", CpuIdle(True)))
    assert text_of(weight) == "0"
    loop.tick()

    assert text_of(loop.root / "be.slice/cpu.idle") == "0"
    assert text_of(weight) == "42"


def test_a_restore_that_fails_between_idle_and_weight_is_finished_later(loop: Loop) -> None:
    """cpu.idle is at its original then, and still not all is given back."""
    group = loop.root / "be.slice"
    (group / "cpu.weight").write_text("42\n")
    loop.tick(loop.want("be.slice", CpuIdle(True)))
    loop.sys.fail(errno.EBUSY, file="cpu.weight")
    loop.tick()
    loop.sys.heal()
    between = (text_of(group / "cpu.idle"), text_of(group / "cpu.weight"))

    loop.sys.advance(BACKOFF.max_usec / 1e6)
    loop.tick()

    assert between == ("0", "100")
    assert text_of(group / "cpu.weight") == "42"


def test_a_weight_wanted_before_idle_gave_it_back_keeps_its_true_original(loop: Loop) -> None:
    """The 100 that stands there meanwhile is the kernel's reset, nobody's choice."""
    group = loop.root / "be.slice"
    (group / "cpu.weight").write_text("42\n")
    loop.tick(loop.want("be.slice", CpuIdle(True)))
    loop.sys.fail(errno.EBUSY, file="cpu.weight")
    loop.tick()
    loop.sys.heal()
    between = (text_of(group / "cpu.idle"), text_of(group / "cpu.weight"))

    loop.tick(loop.want("be.slice", CpuWeight(7)))
    loop.sys.advance(BACKOFF.max_usec / 1e6)
    loop.tick()

    assert between == ("0", "100")
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
    (loop.root / "cpuset.cpus.effective").write_text("0-2\n" if possible == "0-3\n" else "0-3\n")
    loop.tick(loop.want("be.slice", CpusetCpus((1,))))

    _, report = loop.tick()

    assert [done.result for done in report.restored] == ["widened"]
    assert text_of(loop.root / "be.slice/cpuset.cpus") == "0-3"


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


class TestForeignWriters:
    def test_a_third_value_is_somebodys_choice_and_we_yield_to_it(self, loop: Loop) -> None:
        want = loop.want("be.slice", HALF)
        loop.tick(want)
        be_max(loop).write_text("70000 100000\n")

        plan, report = loop.tick(want)

        assert plan.states == {key(loop): Standing.YIELDED}
        assert report.applied == ()
        assert on_file(loop) == {}

    def test_their_next_value_is_theirs_as_well(self, loop: Loop) -> None:
        want = loop.want("be.slice", HALF)
        loop.tick(want)
        be_max(loop).write_text("70000 100000\n")
        loop.tick(want)
        be_max(loop).write_text("80000 100000\n")

        plan, _ = loop.tick(want)

        assert plan.states == {key(loop): Standing.YIELDED}
        assert text_of(be_max(loop)) == "80000 100000"

    def test_we_act_again_once_the_file_is_back_at_what_we_first_found(self, loop: Loop) -> None:
        want = loop.want("be.slice", HALF)
        loop.tick(want)
        be_max(loop).write_text("70000 100000\n")
        loop.tick(want)
        be_max(loop).write_text(ORIGINAL + "\n")

        loop.tick(want)
        assert text_of(be_max(loop)) == "50000 100000"
        loop.tick()
        assert text_of(be_max(loop)) == ORIGINAL

    def test_a_yield_outlives_a_pause_of_our_wish(self, loop: Loop) -> None:
        """A governor that wants nothing for one tick must not turn their choice into our next original."""
        want = loop.want("be.slice", HALF)
        loop.tick(want)
        be_max(loop).write_text("70000 100000\n")
        loop.tick(want)
        loop.tick()

        plan, _ = loop.tick(want)

        assert plan.states == {key(loop): Standing.YIELDED}
        assert text_of(be_max(loop)) == "70000 100000"

    def test_told_to_reassert_we_write_over_a_third_value_and_restore_the_first(self, loop: Loop) -> None:
        loop.ownership = Ownership(on_foreign_write=OnForeignWrite.REASSERT)
        want = loop.want("be.slice", HALF)
        loop.tick(want)
        be_max(loop).write_text("70000 100000\n")

        loop.tick(want)
        assert text_of(be_max(loop)) == "50000 100000"
        loop.tick()
        assert text_of(be_max(loop)) == ORIGINAL

    def test_after_as_many_fights_as_configured_we_keep_off_for_a_while(self, loop: Loop) -> None:
        want = loop.want("be.slice", HALF)
        loop.tick(want)
        standings = []
        for _ in range(3):
            be_max(loop).write_text(ORIGINAL + "\n")
            plan, _ = loop.tick(want)
            standings.append(plan.states[key(loop)])

        assert standings == [Standing.WRITING, Standing.WRITING, Standing.CONTESTED]
        assert text_of(be_max(loop)) == ORIGINAL
        loop.sys.advance(loop.ownership.contested_hold / 1e6)
        plan, _ = loop.tick(want)
        assert plan.states == {key(loop): Standing.WRITING}

    def test_fights_further_apart_than_the_window_are_no_war(self, loop: Loop) -> None:
        want = loop.want("be.slice", HALF)
        loop.tick(want)
        for _ in range(10):
            loop.sys.advance(loop.ownership.contested_window / 2e6)
            be_max(loop).write_text(ORIGINAL + "\n")
            plan, _ = loop.tick(want)
            assert plan.states == {key(loop): Standing.WRITING}

    def test_a_systemd_reload_is_no_fight(self, loop: Loop) -> None:
        want = loop.want("be.slice", HALF)
        loop.tick(want)
        for _ in range(10):
            be_max(loop).write_text(ORIGINAL + "\n")
            plan, _ = loop.tick(want, reloaded=True)
            assert plan.states == {key(loop): Standing.WRITING}
        assert text_of(be_max(loop)) == "50000 100000"

    def test_a_reassertion_is_marked_as_one(self, loop: Loop) -> None:
        want = loop.want("be.slice", HALF)
        first, _ = loop.tick(want)
        be_max(loop).write_text(ORIGINAL + "\n")
        second, _ = loop.tick(want, reloaded=True)
        third, _ = loop.tick(loop.want("be.slice", THIRD))

        assert [plan.writes[0].reassert for plan in (first, second, third)] == [False, True, False]

    def test_a_file_we_yielded_is_not_restored(self, loop: Loop) -> None:
        want = loop.want("be.slice", HALF)
        loop.tick(want)
        be_max(loop).write_text("70000 100000\n")
        loop.tick(want)

        loop.tick()
        loop.crash()
        loop.start()

        assert text_of(be_max(loop)) == "70000 100000"


class TestJournalTrouble:
    @pytest.mark.parametrize("name", ["create", "write", "rename"])
    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EMFILE], ids=errno.errorcode.get)
    def test_without_a_journal_nothing_is_written(self, loop: Loop, name: str, error: int) -> None:
        """What could not be undone is not done: no throttling at all."""
        loop.sys.hooks.append(_fail_outside_the_tree(loop, name, error))
        before = _snapshot(loop.root)

        _, report = loop.tick(
            loop.want("be.slice", HALF), loop.want("be.slice", CpuWeight(1)), loop.want("ls.slice", HALF)
        )

        assert report.applied == ()
        assert report.journal_error is not None
        assert _snapshot(loop.root) == before
        loop.sys.heal()
        loop.tick(loop.want("be.slice", HALF))
        assert text_of(be_max(loop)) == "50000 100000"

    def test_a_journal_that_fills_up_later_stops_new_writes_and_keeps_the_old_undoable(
        self, loop: Loop
    ) -> None:
        loop.tick(loop.want("be.slice", HALF))
        loop.sys.hooks.append(_fail_outside_the_tree(loop, "write", errno.ENOSPC))

        _, report = loop.tick(loop.want("be.slice", THIRD))

        assert report.journal_error is not None
        assert text_of(be_max(loop)) == "50000 100000"
        loop.crash()
        loop.start()
        assert text_of(be_max(loop)) == ORIGINAL

    def test_a_journal_removed_behind_our_back_is_written_anew(self, loop: Loop) -> None:
        """Records in an unlinked file would undo nothing."""
        loop.tick(loop.want("be.slice", HALF))
        (loop.run / FILE).unlink()
        loop.tick(loop.want("be.slice", THIRD))

        loop.crash()
        loop.start()

        assert text_of(be_max(loop)) == ORIGINAL

    def test_what_a_failed_restore_left_behind_keeps_its_true_original(self, loop: Loop) -> None:
        """A start-up that could not undo a leftover must not take it for the host's own value."""
        loop.tick(loop.want("be.slice", HALF))
        loop.crash()
        loop.sys.fail(errno.EBUSY, file="cpu.max")
        loop.start()
        loop.sys.heal()
        loop.tick(loop.want("be.slice", THIRD))

        loop.tick()

        assert text_of(be_max(loop)) == ORIGINAL


def _fail_outside_the_tree(loop: Loop, name: str, error: int):  # noqa: ANN202 - a hook
    def hook(call) -> None:  # noqa: ANN001 - a Call
        if call.name == name and not call.path.startswith(str(loop.root)):
            raise OSError(error, os.strerror(error), call.path)

    return hook


def _snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


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
