"""Between two ticks: a breach cuts BE at once, through the journal, and only where BE can be to blame."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from reflexkit import BUSY, MAX, NONE, cores, react, reactions, report, start
from treekit import BOOT, GROUP_FILES, Box, Crash, cgroup_id, make_tree, rewrite, text_of

from qosd.config import decode
from qosd.journal import restore_from
from qosd.model import Breach


def test_a_breach_cuts_be_before_the_next_tick(box: Box) -> None:
    before = cores(box)
    assert before is not None

    assert react(box) == "cut"

    assert cores(box) == pytest.approx(1.5, abs=0.05), "half of the 3 CPUs that BE used"
    assert reactions(box) == {"psi": {"cut": 1}}
    record = box.engine.records[-1]
    assert (record.path, record.file, record.result) == ("be.slice", "cpu.max", "written")
    assert "cpu.pressure some" in record.reason.text


def test_the_next_tick_keeps_the_cut_and_the_ones_after_give_it_back(box: Box) -> None:
    before = cores(box)
    react(box)
    cut = cores(box)

    status = box.tick(0.5, **BUSY)
    assert cores(box) == pytest.approx(cut, abs=0.01)
    assert status.reflex is not None
    assert status.reflex.squeeze < 1

    status = box.settle(4, **BUSY)
    assert cores(box) == pytest.approx(before, abs=0.2)
    assert status.reflex is not None
    assert status.reflex.squeeze == 1


def test_the_host_is_whole_again_after_a_stop_right_after_a_cut(tmp_path: Path) -> None:
    box = Box(tmp_path, decode(MAX))
    before = box.contents()
    box.settle(**BUSY)
    react(box)

    box.engine.release()

    assert box.contents() == before
    box.close()


@pytest.mark.parametrize("text", [MAX, NONE])
def test_a_crash_at_any_call_of_a_cut_is_undone(tmp_path: Path, text: str) -> None:
    """The original is on file before the write, between ticks as in them."""
    for nth in range(1, 200):
        directory = tmp_path / str(nth)
        directory.mkdir()
        box = Box(directory, decode(text))
        before = box.contents()
        box.settle(**BUSY)
        box.sys.crash_at(nth)
        try:
            react(box)
            crashed = False
        except Crash:
            crashed = True
        box.close()
        restore_from(box.sys, str(box.run), str(box.root), BOOT)
        assert box.contents() == before, f"crashed before call {nth}"
        if not crashed:
            return
    raise AssertionError("a reaction of 200 calls is none")


@pytest.mark.parametrize("torn", [0, 1, 30])
def test_a_crash_while_the_journal_is_written_is_undone(box: Box, torn: int) -> None:
    calls = len(box.sys.calls)
    react(box)
    made = [call for call in box.sys.calls[calls:] if call.name != "close"]
    journal = next(
        number
        for number, call in enumerate(made, 1)
        if call.name == "write" and call.path.endswith("journal.jsonl")
    )
    box.settle(8, **BUSY)
    held = box.contents()

    box.sys.crash_at(journal, torn)
    with pytest.raises(Crash):
        react(box)

    assert box.contents() == held


def test_without_a_journal_nothing_is_cut(box: Box) -> None:
    before = cores(box)
    box.sys.hooks.append(lambda call: _full(call.path))

    assert react(box) != "cut"

    assert cores(box) == before
    assert box.engine.journal_error is not None


def _full(path: str) -> None:
    if "journal.jsonl" in path:
        raise OSError(errno.ENOSPC, "No space left on device", path)


def test_an_idle_be_is_not_blamed(box: Box) -> None:
    box.tick(1, ls=0.5, be=0)

    assert react(box, be=0.0) == "be-idle"


def test_a_be_that_gives_way_at_every_wake_up_is_not_blamed_for_waiting_at_a_cpu(tmp_path: Path) -> None:
    """be.slice is cpu.idle by default: LS does not wait for it there. Other harm it can do all the same."""
    box = start(tmp_path, "")
    assert text_of(box.root / "be.slice/cpu.idle") == "1"

    assert react(box) == "be-idle"
    assert cores(box) is None

    victim = cgroup_id(box.root / "ls.slice")
    other = Breach(victim, "runq latency ms", 9.0, 2.0, box.sys.monotonic_usec, source="runq")
    assert box.engine.react(other) == "cut"
    assert reactions(box) == {"psi": {"be-idle": 1}, "runq": {"cut": 1}}
    box.close()


def test_a_be_that_does_not_give_way_is_cut_at_the_defaults(tmp_path: Path) -> None:
    box = start(tmp_path, '[cpu.weight]\nbe_idle = "never"')

    assert react(box) == "cut"
    assert cores(box) == pytest.approx(1.5, abs=0.05)
    box.close()


def test_unreadable_evidence_cuts_nothing(box: Box) -> None:
    before = cores(box)
    rewrite(box.root / "ls.slice/cpu.stat", "usage_usec many\n")
    at = box.sys.monotonic_usec
    event = Breach(cgroup_id(box.root / "ls.slice"), "cpu.pressure some", 5e4, 5e4, at)

    assert box.engine.react(event) == "unknown"
    assert cores(box) == before


def test_a_breach_of_a_cgroup_that_is_no_workload_cuts_nothing(box: Box) -> None:
    box.pass_time(0.05, be=3.0)
    event = Breach(cgroup_id(box.root / "init.scope"), "cpu.pressure some", 5e4, 5e4, box.sys.monotonic_usec)

    assert box.engine.react(event) == "unknown"


def test_before_the_first_tick_nothing_is_cut(tmp_path: Path) -> None:
    box = Box(tmp_path, decode(MAX))

    assert react(box) == "unknown"
    assert box.sys.writes() == []
    box.close()


def test_a_limit_that_somebody_else_set_meanwhile_is_left_to_the_next_tick(box: Box) -> None:
    rewrite(box.root / "be.slice/cpu.max", "44444 100000\n")

    assert react(box) == "left-alone"
    assert text_of(box.root / "be.slice/cpu.max") == "44444 100000"


def test_a_cut_never_widens_a_limit_that_is_tighter(tmp_path: Path) -> None:
    box = Box(tmp_path, decode(NONE))
    rewrite(box.root / "be.slice/cpu.max", "5000 100000\n")
    box.settle(**BUSY)

    assert react(box) == "left-alone"
    for _ in range(5):
        box.tick(0.5, **BUSY)
        assert text_of(box.root / "be.slice/cpu.max") == "5000 100000", "at the ticks after it neither"
    box.close()


def test_the_way_back_ends_at_the_limit_that_stood_before(tmp_path: Path) -> None:
    box = Box(tmp_path, decode(NONE))
    rewrite(box.root / "be.slice/cpu.max", "200000 100000\n")
    box.settle(**BUSY)

    assert react(box) == "cut"
    seen = []
    for _ in range(8):
        box.tick(0.5, **BUSY)
        seen.append(cores(box))

    assert seen == sorted(seen)
    assert max(seen) == 2.0
    assert text_of(box.root / "be.slice/cpu.max") == "200000 100000"
    box.close()


def test_without_a_quota_in_calm_a_cut_brings_one_and_calm_takes_it_away(tmp_path: Path) -> None:
    box = start(tmp_path, NONE)
    assert cores(box) is None

    assert react(box) == "cut"
    assert cores(box) == pytest.approx(1.5, abs=0.05)

    box.settle(5, **BUSY)
    assert text_of(box.root / "be.slice/cpu.max") == "max 100000"
    box.close()


def test_a_burst_of_bes_own_stands_in_no_cuts_way(tmp_path: Path) -> None:
    """cpu.max below cpu.max.burst is EINVAL, and with no quota in calm the burst is still there."""
    box = Box(tmp_path, decode(NONE))
    rewrite(box.root / "be.slice/cpu.max.burst", "50000\n")
    before = box.contents()
    box.settle(**BUSY)

    assert react(box) == "cut"
    assert text_of(box.root / "be.slice/cpu.max.burst") == "0"
    box.settle(5, **BUSY)
    assert text_of(box.root / "be.slice/cpu.max.burst") == "50000"
    box.engine.release()
    assert box.contents() == before
    box.close()


@pytest.mark.parametrize("mode", ["observe", "paused"])
def test_outside_enforce_a_breach_writes_nothing(tmp_path: Path, mode: str) -> None:
    box = Box(tmp_path, decode(('mode = "observe"\n' if mode == "observe" else "") + MAX))
    if mode == "paused":
        box.engine.paused_until = float("inf")
    box.settle(**BUSY)
    done = len(box.sys.writes())

    assert react(box) == "observed"
    assert len(box.sys.writes()) == done
    box.close()


def test_a_storm_of_breaches_is_bounded(box: Box) -> None:
    for _ in range(500):
        react(box, after=0.001)

    assert len(box.engine.reflex.events) <= 64
    assert reactions(box)["psi"]["too-many"] == 500 - 64
    assert reactions(box)["psi"]["cut"] <= 3
    box.tick(0.1, **BUSY)
    assert box.engine.reflex.events == ()


def test_after_a_suspend_old_evidence_is_not_used(box: Box) -> None:
    box.sys.advance(1, suspended=3600)
    box.engine.tick()

    assert report(box) == "unknown"


def test_the_snapshot_has_what_was_reported_and_the_evidence(box: Box) -> None:
    react(box)
    box.tick(0.5, **BUSY)

    assert box.engine.snapshot is not None
    (event,) = box.engine.snapshot.events
    assert event.throttled_usec == 0
    assert event.be_cores == pytest.approx(3.0, abs=0.01)


def test_a_regular_file_cannot_be_waited_for_and_is_no_error(tmp_path: Path) -> None:
    """What a file system without poll gives; the daemon then looks at each tick, and says so."""
    import select  # noqa: PLC0415 - here only

    box = Box(tmp_path, decode(MAX))
    with select.epoll() as epoll:
        box.engine.reflex.triggers.epoll = epoll
        status = box.settle(**BUSY)
    assert status.reflex is not None
    assert status.reflex.detection == "poll"
    assert "ls.slice" in status.reflex.why_not
    box.close()


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_clock_that_jumps_is_no_reason_to_act(box: Box, seconds: float) -> None:
    """An hour in which BE used a second of CPU is an hour in which it did nothing."""
    before = cores(box)
    box.sys.monotonic_usec += round(seconds * 1e6)
    at = box.sys.monotonic_usec

    outcome = box.engine.react(Breach(cgroup_id(box.root / "ls.slice"), "cpu.pressure some", 5e4, 5e4, at))

    assert outcome in ("be-idle", "unknown")
    assert cores(box) == before


def test_a_wall_clock_that_is_set_back_changes_nothing(box: Box) -> None:
    box.sys.wall_seconds -= 86_400

    assert react(box) == "cut"
    assert box.tick(0.5, **BUSY).reflex is not None


def test_a_cut_costs_the_same_however_many_cgroups_there_are(tmp_path: Path) -> None:
    """Neither the cgroups of BE nor the services of LS that have no limit are looked at."""
    calls = []
    for count in (5, 400):
        directory = tmp_path / str(count)
        directory.mkdir()
        box = Box(directory, decode(MAX))
        for tier in ("be", "ls"):
            for number in range(count):
                make_tree(box.root / f"{tier}.slice/{number}.service", GROUP_FILES)
            below = count + (tier == "be")  # job.service is there already
            stat = box.root / f"{tier}.slice/cgroup.stat"
            rewrite(stat, f"nr_descendants {below}\nnr_dying_descendants 0\n")
        box.settle(14, **BUSY)  # those that are read in turns had theirs
        done = len(box.sys.calls)
        assert react(box) == "cut"
        calls.append(len(box.sys.calls) - done)
        box.close()

    assert calls[1] < calls[0] + 20
