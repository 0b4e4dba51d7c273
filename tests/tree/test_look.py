"""Between two ticks a workload's own files are read and written by the fds that are kept of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from reflexkit import BUSY, MAX
from treekit import GROUP_FILES, Box, cgroup_id, make_tree, text_of

from qosd.config import decode
from qosd.model import Breach


def breach(box: Box) -> Breach:
    box.pass_time(0.05, ls=0.5, be=3.0)
    victim, at = cgroup_id(box.root / "ls.slice"), box.sys.monotonic_usec
    return Breach(victim, "cpu.pressure some", 5e4, 5e4, at, window_usec=100_000)


def test_a_cut_walks_no_path_and_opens_no_file_but_the_one_it_writes(box: Box) -> None:
    event = breach(box)
    box.sys.calls.clear()

    assert box.engine.react(event) == "cut"
    opened = {call.path for call in box.sys.calls if call.name == "open"}
    assert {Path(path).name for path in opened} == {"cpu.max"}


def test_a_be_that_was_replaced_since_the_tick_is_left_alone_and_so_is_its_namesake(box: Box) -> None:
    event = breach(box)
    made = make_tree(box.root.parent / "new.slice", GROUP_FILES)
    shutil.rmtree(box.root / "be.slice")
    made.rename(box.root / "be.slice")
    before = text_of(box.root / "be.slice/cpu.max")

    box.engine.react(event)

    assert text_of(box.root / "be.slice/cpu.max") == before


def test_a_reload_that_brings_another_sensor_is_asked_for_its_fds(box: Box) -> None:
    box.engine.reconfigure(decode(MAX + "[sense]\nfd_budget = 256\n"))
    box.tick(**BUSY)
    event = breach(box)
    box.sys.calls.clear()

    assert box.engine.react(event) == "cut"
    assert not [call for call in box.sys.calls if call.name == "open" and call.path.endswith("slice")]
