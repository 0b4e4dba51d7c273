"""An LS that a limit of its own holds back costs BE nothing, wherever that limit is and however it shows."""

from __future__ import annotations

import shutil
from pathlib import Path

from reflexkit import BUSY, MAX, THROTTLED, cores, pass_held, react, report
from treekit import GROUP_FILES, Box, cgroup_id, make_tree, rewrite

from qosd.config import decode
from qosd.model import Breach


def test_an_ls_that_holds_itself_back_costs_be_nothing(box: Box) -> None:
    """Being throttled by one's own cpu.max is cpu pressure too."""
    pass_held(box, 1, 0)
    box.engine.tick()
    before = cores(box)
    pass_held(box, 0.05, 40_000)

    assert report(box) == "self-throttled"
    assert cores(box) == before


def test_a_service_of_ls_that_is_held_back_by_its_own_limit_costs_be_nothing(tmp_path: Path) -> None:
    """The slice's own cpu.stat does not show what its services are throttled."""
    box = Box(tmp_path, decode(MAX))
    service = make_tree(box.root / "ls.slice/web.service", GROUP_FILES)
    rewrite(service / "cpu.stat", THROTTLED.format(usage=0, usec=0))
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n")
    box.settle(**BUSY)
    before = cores(box)

    box.pass_time(0.05, be=3.0)
    rewrite(service / "cpu.stat", THROTTLED.format(usage=10, usec=40_000))

    assert report(box) == "self-throttled"
    assert cores(box) == before
    box.close()


def test_a_service_that_no_tick_has_seen_is_asked_too(box: Box) -> None:
    """It may have started with a limit a moment ago, whose first period is yet to be counted."""
    box.pass_time(0.05, be=3.0)
    service = make_tree(box.root / "ls.slice/new.service", GROUP_FILES)
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n")

    assert react(box) == "unknown"
    rewrite(service / "cpu.stat", THROTTLED.format(usage=10, usec=40_000))
    assert report(box) == "self-throttled"


def test_a_new_service_without_a_limit_is_helped_once_a_limit_would_have_shown(box: Box) -> None:
    box.pass_time(0.05, be=3.0)
    make_tree(box.root / "ls.slice/new.service", GROUP_FILES)
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n")

    assert [react(box, after=0.06) for _ in range(3)] == ["unknown", "unknown", "cut"]


def test_a_limited_service_of_which_no_period_has_ended_yet_proves_nothing(box: Box) -> None:
    """The timer that ends a period, and counts what was held in it, may be late."""
    box.pass_time(0.05, be=3.0)
    service = make_tree(box.root / "ls.slice/new.service", GROUP_FILES)
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n")
    (service / "cpu.max").write_text("10000 100000\n")
    rewrite(service / "cpu.stat", THROTTLED.format(usage=10_000, usec=0).replace(" 9", " 0"))
    for _ in range(4):
        assert react(box, after=0.06) == "unknown"

    ended = THROTTLED.format(usage=10_000, usec=0).replace("nr_throttled 9", "nr_throttled 0")
    rewrite(service / "cpu.stat", ended)
    assert react(box, after=0.06) == "cut"


def test_a_service_in_debt_is_held_for_periods_and_shows_it_in_nr_throttled_alone(tmp_path: Path) -> None:
    """throttled_usec grows when it may run again; at the end of one period nothing can be said yet."""
    box = Box(tmp_path, decode(MAX))
    service = make_tree(box.root / "ls.slice/web.service", GROUP_FILES)
    (service / "cpu.max").write_text("10000 100000\n")
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n")
    stat = THROTTLED.format(usage=70_000, usec=40_000)
    rewrite(service / "cpu.stat", stat)
    box.settle(**BUSY)
    before = cores(box)

    for held, outcome in ((10, "unknown"), (11, "self-throttled"), (12, "self-throttled")):
        rewrite(service / "cpu.stat", stat.replace("nr_throttled 9", f"nr_throttled {held}"))
        assert react(box, after=0.1) == outcome
    assert cores(box) == before
    box.close()


def test_a_service_that_the_last_tick_saw_before_a_period_of_its_limit_ended_is_asked(box: Box) -> None:
    service = make_tree(box.root / "ls.slice/new.service", GROUP_FILES)
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n")
    box.tick(0.2, **BUSY)
    rewrite(service / "cpu.stat", THROTTLED.format(usage=10, usec=40_000))

    assert react(box) == "self-throttled"


def test_a_service_that_went_does_not_hide_one_that_came(tmp_path: Path) -> None:
    """They come out the same in nr_descendants."""
    box = Box(tmp_path, decode(MAX))
    old = make_tree(box.root / "ls.slice/old.service", GROUP_FILES)
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n")
    box.settle(**BUSY)
    made = make_tree(tmp_path / "new.service", GROUP_FILES)  # now: an inode number may come back
    shutil.rmtree(old)
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 0\nnr_dying_descendants 0\n")
    box.tick(1, **BUSY)
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n")
    service = made.rename(box.root / "ls.slice/new.service")
    rewrite(service / "cpu.stat", THROTTLED.format(usage=10, usec=40_000))

    assert react(box) == "self-throttled"
    box.close()


def test_a_limited_service_that_went_a_while_ago_hides_nothing(tmp_path: Path) -> None:
    """The ticks that saw it are still remembered; it cannot be asked, and need not be."""
    box = Box(tmp_path, decode(MAX))
    old = make_tree(box.root / "ls.slice/old.service", GROUP_FILES)
    rewrite(old / "cpu.stat", THROTTLED.format(usage=10, usec=40_000))
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n")
    box.settle(**BUSY)
    shutil.rmtree(old)

    assert react(box) == "unknown", "it may have been held until a moment ago"
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 0\nnr_dying_descendants 0\n")
    box.settle(3, **BUSY)
    assert react(box) == "cut"
    box.close()


def test_a_limit_above_the_workload_is_a_limit_of_its_own(tmp_path: Path) -> None:
    """A slice's cpu.max holds all that is in it, and their own cpu.stat says nothing of it."""
    rules = '[[workload]]\nname = "{0}"\ntier = "{1}"\nmatch = ["{2}"]\n'
    both = rules.format("web", "ls", "web.slice/web.service") + rules.format("be", "be", "be.slice")
    box = Box(tmp_path, decode(MAX + both))
    above = make_tree(box.root / "web.slice", {**GROUP_FILES, "web.service": GROUP_FILES})
    rewrite(above / "cpu.stat", THROTTLED.format(usage=10, usec=0))
    box.settle(be=3.0)
    box.pass_time(0.05, be=3.0)
    rewrite(above / "cpu.stat", THROTTLED.format(usage=10, usec=40_000))
    victim = cgroup_id(above / "web.service")

    event = Breach(victim, "cpu.pressure some", 5e4, 5e4, box.sys.monotonic_usec, window_usec=100_000)
    assert box.engine.react(event) == "self-throttled"
    box.close()


def test_reports_far_apart_are_not_one_long_one(tmp_path: Path) -> None:
    box = Box(tmp_path, decode('interval = "10s"\n' + MAX))
    for _ in range(4):
        pass_held(box, 10, 0)
        box.engine.tick()

    for _ in range(2):
        pass_held(box, 6, 0)
        assert report(box) == "unknown"
    box.close()


def test_throttling_from_before_the_last_tick_counts_if_the_window_reaches_back_to_it(box: Box) -> None:
    """A tick in between must not make the evidence forget what the signal still sees."""
    pass_held(box, 1, 0)
    box.engine.tick()
    pass_held(box, 0.9, 40_000)
    box.engine.tick()
    pass_held(box, 0.01, 40_000)

    assert report(box) == "self-throttled"
