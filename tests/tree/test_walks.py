"""Large workloads walked by BPF: samples as by their files, comings and goings, the way back to the files."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from treekit import GROUP_FILES, Box, make_tree, rewrite
from walkkit import Opener, below, let_walk

from qosd.config import Config, Sense, decode
from qosd.ebpf.errors import BpfCallError, BpfError, RefusedError
from qosd.status import Status

FROM = 'mode = "observe"\n[sense]\nwalk_from = 3\n'
STAT = "usage_usec {0}\nuser_usec 0\nsystem_usec 0\nnr_periods 5\nnr_throttled {1}\nthrottled_usec 77\n"
NOT_ENOUGH = BpfCallError("tree: bpf_iter_create", 12, "Cannot allocate memory")


def jobs(box: Box, *names: str) -> list[Path]:
    """More cgroups in be.slice, without a word of it in cgroup.stat."""
    files = {"cpu.stat": STAT.format(0, 0), "memory.current": "8192\n"}
    return [make_tree(box.root / f"be.slice/{name}", files) for name in names]


def large(path: Path, text: str = FROM) -> Box:
    """A host with four cgroups in be.slice."""
    box = Box(path, decode(text))
    jobs(box, "a", "b", "a/c")
    return box


def state(status: Status) -> tuple[str, str | None]:
    assert status.ebpf is not None
    return next((each.state, each.why) for each in status.ebpf.probes if each.name == "tree")


def test_a_walk_tells_what_the_files_tell_and_closes_them(tmp_path: Path) -> None:
    box = large(tmp_path)
    rewrite(box.root / "be.slice/b/cpu.stat", STAT.format(123_456, 4) + "nr_bursts 2\nburst_usec 9\n")
    rewrite(box.root / "be.slice/a/c/cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\n")
    (box.root / "be.slice/a/memory.current").unlink()
    box.settle(2)
    by_files, fds = below(box), len(box.sys.fds)
    opener = Opener()
    let_walk(box, opener)
    status = box.settle(2)
    assert opener.trees[0].walks == 1
    assert opener.rooms == [Sense().max_cgroups + 1]
    assert state(status) == ("attached", None)
    for path, sample in by_files.items():
        assert sample.cpu is not None
        cpu = msgspec.structs.replace(sample.cpu, user_usec=None, system_usec=None)
        assert below(box)[path] == msgspec.structs.replace(sample, cpu=cpu)
    assert below(box)["be.slice/a"].memory_current is None
    assert len(by_files) == len(below(box)) == 4
    assert len(box.sys.fds) == fds - 7, "two files each, less the one that is not there"
    box.engine.close()
    assert opener.trees[0].closed
    box.close()


def test_what_has_not_moved_is_the_very_sample_of_the_last_tick(tmp_path: Path) -> None:
    box = large(tmp_path)
    let_walk(box, Opener())
    box.settle(3)
    before = below(box)
    rewrite(box.root / "be.slice/b/memory.current", "12288\n")
    box.tick()
    now = below(box)
    assert {path for path in now if now[path] is not before[path]} == {"be.slice/b"}
    assert now["be.slice/b"].memory_current == 12288
    box.close()


def test_who_is_new_is_seen_at_once_and_who_is_gone_is_gone(tmp_path: Path) -> None:
    """The walk itself says so: cgroup.stat does not tell one child from another."""
    box = large(tmp_path)
    let_walk(box, Opener())
    box.settle(3)
    jobs(box, "new", "new/child")  # first: a cgroup's number is never given again, a directory's here is
    shutil.rmtree(box.root / "be.slice/b")
    box.tick()
    assert set(below(box)) == {
        *("be.slice/a", "be.slice/a/c", "be.slice/job.service", "be.slice/new", "be.slice/new/child")
    }
    box.close()


def looks(box: Box) -> list[str]:
    """The directories that one more tick looks into."""
    box.sys.calls.clear()
    box.tick()
    return [Path(call.path).name for call in box.sys.calls if call.name == "scandir"]


def test_only_the_directories_of_who_is_new_are_looked_into_and_each_once(tmp_path: Path) -> None:
    """What lies deeper than the cap never gets a name: no reason to look each tick."""
    box = large(tmp_path, FROM + "max_depth = 2\n")
    let_walk(box, Opener())
    box.settle(4)
    assert looks(box) == []
    jobs(box, "b/x", "b/y", "a/c/deep", "a/c/deep/deeper")
    assert looks(box) == ["b"]
    assert {"be.slice/b/x", "be.slice/b/y"} <= set(below(box))
    assert "be.slice/a/c/deep" not in below(box)
    assert looks(box) == []
    assert any("too deep" in (sensor.detail or "") for sensor in box.tick().sensors)
    box.close()


def test_no_more_than_the_cap_are_taken(tmp_path: Path) -> None:
    box = large(tmp_path, FROM + "max_cgroups = 5\n")
    let_walk(box, Opener())
    box.settle(4)
    jobs(box, "x", "y", "z")
    status = box.tick()
    assert len(below(box)) == 5
    assert any(sensor.detail == "more than 5 cgroups" for sensor in status.sensors)
    shutil.rmtree(box.root / "be.slice/a")
    box.settle(2)
    assert len(below(box)) == 5
    box.close()


def test_a_small_workload_is_read_by_its_files_and_walked_once_it_has_grown(tmp_path: Path) -> None:
    box = Box(tmp_path, decode(FROM))
    opener = Opener()
    let_walk(box, opener)
    status = box.settle(3)
    assert state(status) == ("off", "no workload has 3 cgroups below it (sense.walk_from)")
    assert opener.rooms == []
    jobs(box, "a", "b")
    rewrite(box.root / "be.slice/cgroup.stat", "nr_descendants 3\nnr_dying_descendants 0\n")
    assert state(box.settle(2)) == ("attached", None)
    shutil.rmtree(box.root / "be.slice/a")
    box.settle(2)
    assert opener.trees[0].attached, "it is not worth going back"
    assert set(below(box)) == {"be.slice/b", "be.slice/job.service"}
    box.close()


def test_a_workload_that_is_gone_takes_its_walk_with_it(tmp_path: Path) -> None:
    box = large(tmp_path)
    opener = Opener()
    let_walk(box, opener)
    box.settle(3)
    shutil.rmtree(box.root / "be.slice")
    box.settle(2)
    assert opener.trees[0].attached == {}
    assert below(box) == {}
    box.close()


def fallen_back(box: Box, opener: Opener, why: str) -> None:
    """The files tell, the reason stands in the status, was logged once, and nothing is tried again."""
    news = list(box.engine.probes.news)
    status = box.settle(3)
    assert state(status) == ("absent", why)
    assert len(below(box)) == 4
    assert all(each.cpu is not None and each.cpu.user_usec == 0 for each in below(box).values())
    assert [line for line in box.engine.probes.news if why in line] == [
        f"large workloads are read by their files, not walked: {why}, ignoring"
    ]
    assert len(box.engine.probes.news) == len(news)
    assert status.ebpf is not None
    assert status.ebpf.walk_failures == 1
    assert len(opener.rooms) == 1


def test_an_object_that_the_kernel_refuses_leaves_the_files(tmp_path: Path) -> None:
    box = large(tmp_path)
    opener = Opener(RefusedError("tree", "tree_walk", "unknown kfunc", ""))
    let_walk(box, opener)
    box.settle(3)
    fallen_back(box, opener, "tree: the kernel refused program tree_walk: unknown kfunc")
    box.close()


def test_a_walk_that_fails_later_goes_back_to_the_files(tmp_path: Path) -> None:
    box = large(tmp_path)
    opener = Opener()
    let_walk(box, opener)
    box.settle(3)
    opener.trees[0].error = NOT_ENOUGH
    status = box.tick()
    assert status.mode == "observe"
    assert opener.trees[0].closed
    fallen_back(box, opener, str(NOT_ENOUGH))
    box.close()


def test_a_workload_that_cannot_be_attached_leaves_the_files(tmp_path: Path) -> None:
    box = large(tmp_path)
    opener = Opener()
    walks = let_walk(box, opener)
    jobs(box, "a/c/e")
    box.settle(1)
    opener.trees[0].error = BpfError("tree: attach tree_walk")
    for number in range(4):
        make_tree(box.root / f"ls.slice/{number}", {"cpu.stat": GROUP_FILES["cpu.stat"]})
    rewrite(box.root / "ls.slice/cgroup.stat", "nr_descendants 4\nnr_dying_descendants 0\n")
    box.settle(2)
    assert walks.failures == 1
    assert len(below(box)) == 9
    box.close()


def test_before_it_is_ready_and_with_the_probes_off_nothing_is_walked(tmp_path: Path) -> None:
    box = large(tmp_path, FROM + '[ebpf]\nprobes = "off"\n')
    opener = Opener()
    let_walk(box, opener)
    assert state(box.settle(3)) == ("off", None)
    assert opener.rooms == []
    box.close()
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    box = large(waiting)
    assert state(box.settle(3)) == ("off", "no workload has 3 cgroups below it (sense.walk_from)")
    box.close()


def test_where_bcc_alone_is_wanted_nothing_is_walked(tmp_path: Path) -> None:
    box = large(tmp_path, FROM + '[ebpf]\nloader = "bcc"\n')
    opener = Opener()
    let_walk(box, opener)
    assert state(box.settle(3)) == ("absent", "tree: bcc loads the runq probe only")
    assert opener.rooms == []
    box.close()


def test_a_reload_tries_again_and_takes_the_new_threshold(tmp_path: Path) -> None:
    box = large(tmp_path)
    opener = Opener(BpfError("tree: not now"))
    let_walk(box, opener)
    box.settle(3)
    opener.error = None
    box.engine.reconfigure(decode(FROM))
    assert state(box.settle(2))[0] == "absent", "the same is not tried anew"
    box.engine.reconfigure(decode('mode = "observe"\n[sense]\nwalk_from = 4\n'))
    assert state(box.settle(3)) == ("attached", None)
    box.engine.reconfigure(decode('mode = "observe"\n[sense]\nwalk_from = 4\n[ebpf]\nprobes = "off"\n'))
    assert opener.trees[0].closed
    assert state(box.settle(2)) == ("off", None)
    assert len(below(box)) == 4
    box.engine.reconfigure(decode('mode = "observe"\n[sense]\nwalk_from = 5\n'))
    assert state(box.settle(2))[0] == "off"
    assert len(opener.trees) == 1
    box.close()


def test_what_is_known_already_does_not_use_up_the_room(tmp_path: Path) -> None:
    """A second look into the directories finds as many cgroups as the first one."""
    config = msgspec.structs.replace(Config(), sense=Sense(max_cgroups=5))
    box = Box(tmp_path, config)
    jobs(box, "a", "b", "c")
    box.settle(2)
    rewrite(box.root / "be.slice/cgroup.stat", "nr_descendants 4\nnr_dying_descendants 0\n")
    box.settle(2)
    assert len(below(box)) == 4
    jobs(box, "d", "e")
    rewrite(box.root / "be.slice/cgroup.stat", "nr_descendants 6\nnr_dying_descendants 0\n")
    box.settle(2)
    assert len(below(box)) == 5
    box.close()
