"""The journal's text, and the restore that another process makes of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from binascii import crc32
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from treekit import BOOT, CPU_FILES, FakeSys, Loop, cgroup_id, make_tree, rewrite, text_of

from qosd.files import Key
from qosd.journal import FILE, Entry, Journal, load, restore, restore_from
from qosd.model import CpuIdle, CpuMax, CpuWeight
from qosd.sys import DIRECTORY, Sys

HALF = CpuMax(50_000, 100_000)
KEYS = st.builds(Key, st.integers(1, 5), st.sampled_from(["cpu.max", "cpu.idle", "cpuset.cpus"]))
TEXTS = st.text(max_size=12) | st.sampled_from(["", "max 100000", "\udcff\udcfe", "\x1b[2J", '"\\'])
ENTRIES = st.builds(
    Entry, TEXTS, TEXTS, st.lists(TEXTS, min_size=1, max_size=2).map(tuple), st.none() | st.just("100")
)
STEPS = st.lists(st.tuples(KEYS, st.none() | ENTRIES), max_size=12)


def play(journal: Journal, steps: list[tuple[Key, Entry | None]]) -> list[dict[Key, Entry]]:
    """Record (or, for None, forget) one after the other; what must be on file after each."""
    states = [dict(journal.entries)]
    for key, entry in steps:
        if entry is None:
            journal.forget(key)
        else:
            journal.record(key, entry)
        states.append(dict(journal.entries))
    return states


@given(STEPS)
def test_what_was_recorded_is_what_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Key, Entry | None]]
) -> None:
    """Paths and values byte by byte, undecodable ones too."""
    run = tmp_path_factory.mktemp("run")
    journal = Journal(Sys(), str(run), BOOT)
    play(journal, steps)
    journal.close()

    text = (run / FILE).read_bytes() if (run / FILE).exists() else b""
    assert load(text, BOOT) == journal.entries
    assert Journal(Sys(), str(run), BOOT).entries == journal.entries
    shutil.rmtree(run)


@given(STEPS.filter(len), st.data())
def test_a_journal_torn_at_any_byte_is_one_of_its_earlier_states(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Key, Entry | None]], data: st.DataObject
) -> None:
    run = tmp_path_factory.mktemp("run")
    journal = Journal(Sys(), str(run), BOOT)
    states = play(journal, steps)
    journal.close()
    text = (run / FILE).read_bytes() if (run / FILE).exists() else b""
    cut = data.draw(st.integers(0, len(text)))
    shutil.rmtree(run)

    assert load(text[:cut], BOOT) in states


@given(STEPS.filter(len), st.data())
def test_a_damaged_byte_loses_at_most_its_own_record(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Key, Entry | None]], data: st.DataObject
) -> None:
    """And never invents a value: whatever is loaded was recorded as it stands."""
    run = tmp_path_factory.mktemp("run")
    journal = Journal(Sys(), str(run), BOOT)
    play(journal, steps)
    journal.close()
    text = bytearray((run / FILE).read_bytes() if (run / FILE).exists() else b"x")
    shutil.rmtree(run)
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))

    recorded = {(key, entry) for key, entry in steps if entry is not None}
    assert set(load(bytes(text), BOOT).items()) <= recorded


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
@example(b"00000000 " + b"[" * 100_000)
@example(b"%08x %s\n" % (crc32(b"[" * 100_000), b"[" * 100_000))
@example(b"%08x %s\n" % (crc32(b'{"set":[1]}'), b'{"set":[1]}'))
@example(b"%08x %s\n" % (crc32(b"\xff"), b"\xff"))
def test_any_bytes_are_an_empty_journal_and_no_exception(text: bytes) -> None:
    assert load(text, BOOT) == {}


def line(record: object) -> bytes:
    body = json.dumps(record).encode()
    return b"%08x %s\n" % (crc32(body), body)


def record(number: int = 1) -> dict[str, object]:
    return {
        "set": [number, "cpu.max"],
        "path": "be.slice",
        "original": "max 100000",
        "ours": ["50000 100000"],
    }


def test_a_journal_of_another_boot_says_nothing() -> None:
    """Its inodes may be other cgroups now."""
    text = line({"boot": "another"}) + line(record())

    assert load(text, BOOT) == {}
    assert load(line({"boot": BOOT}) + line(record()), BOOT) != {}


def test_a_journal_without_a_boot_says_nothing() -> None:
    assert load(line(record()), BOOT) == {}


def test_what_came_before_a_new_boots_line_is_not_of_this_boot() -> None:
    text = line({"boot": "another"}) + line(record(1)) + line({"boot": BOOT}) + line(record(2))

    assert set(load(text, BOOT)) == {Key(2, "cpu.max")}


def test_a_long_journal_is_rewritten_short(tmp_path: Path) -> None:
    """It must not fill /run; and at no moment is there less on file than must be undone."""
    sys = FakeSys()
    journal = Journal(sys, str(tmp_path), BOOT)
    key, other = Key(1, "cpu.max"), Key(2, "cpu.max")
    journal.record(other, Entry("ls.slice", "a", ("b",)))

    def on_file_before_the_rename(call: object) -> None:
        if call.name == "rename" and (tmp_path / FILE).exists():  # type: ignore[attr-defined]
            assert load((tmp_path / FILE).read_bytes(), BOOT) == journal.entries

    sys.hooks.append(on_file_before_the_rename)
    for number in range(5000):
        journal.record(key, Entry("be.slice", "max 100000", (f"{number} 100000",)))

    text = (tmp_path / FILE).read_bytes()
    assert text.count(b"\n") < 2000
    assert load(text, BOOT) == journal.entries
    assert set(journal.entries) == {key, other}


def test_a_record_after_a_short_write_is_on_a_line_of_its_own(tmp_path: Path) -> None:
    class Full(Sys):
        room = 10_000

        def write(self, fd: int, data: bytes) -> int:
            written = os.write(fd, data[: self.room])
            self.room -= written
            return written

    sys = Full()
    journal = Journal(sys, str(tmp_path), BOOT)
    journal.record(Key(1, "cpu.max"), Entry("a", "b", ("c",)))
    sys.room = 20
    with pytest.raises(OSError, match="short write"):
        journal.record(Key(2, "cpu.max"), Entry("a", "b", ("c",)))
    assert set(load((tmp_path / FILE).read_bytes(), BOOT)) == {Key(1, "cpu.max")}
    sys.room = 10_000
    journal.record(Key(3, "cpu.max"), Entry("a", "b", ("c",)))

    assert set(load((tmp_path / FILE).read_bytes(), BOOT)) == {Key(1, "cpu.max"), Key(3, "cpu.max")}


def test_the_journal_is_readable_by_root_alone(tmp_path: Path) -> None:
    journal = Journal(Sys(), str(tmp_path), BOOT)
    journal.record(Key(1, "cpu.max"), Entry("a", "b", ("c",)))

    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_symlink_planted_for_the_new_file_is_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / (FILE + ".new")).symlink_to(target)

    with pytest.raises(OSError, match="symbolic link"):
        Journal(Sys(), str(tmp_path), BOOT).record(Key(1, "cpu.max"), Entry("a", "b", ("c",)))
    assert target.read_text() == "precious"


class TestRestore:
    """What ExecStopPost, the next start and `qosctl restore` do."""

    def again(self, loop: Loop) -> dict[str, str]:
        outcomes = restore_from(Sys(), str(loop.run), str(loop.root), BOOT)
        return {outcome.key.file: outcome.result for outcome in outcomes}

    def test_everything_is_put_back_and_the_journal_is_gone(self, loop: Loop) -> None:
        loop.tick(loop.want("be.slice", HALF), loop.want("ls.slice", CpuWeight(1000)))

        assert self.again(loop) == {"cpu.max": "done", "cpu.weight": "done"}
        assert text_of(loop.root / "be.slice/cpu.max") == "max 100000"
        assert text_of(loop.root / "ls.slice/cpu.weight") == "100"
        assert list(loop.run.iterdir()) == []

    def test_a_second_restore_has_nothing_to_do(self, loop: Loop) -> None:
        loop.tick(loop.want("be.slice", HALF))
        self.again(loop)

        assert self.again(loop) == {}

    def test_no_journal_and_no_directory_is_nothing_to_do(self, tmp_path: Path) -> None:
        assert restore_from(Sys(), str(tmp_path / "nowhere"), str(tmp_path), BOOT) == []

    def test_a_journal_of_another_boot_is_not_acted_on(self, loop: Loop) -> None:
        loop.tick(loop.want("be.slice", HALF))

        assert restore_from(Sys(), str(loop.run), str(loop.root), "another boot") == []
        assert text_of(loop.root / "be.slice/cpu.max") == "50000 100000"

    def test_a_value_changed_since_is_left_alone(self, loop: Loop) -> None:
        loop.tick(loop.want("be.slice", HALF))
        rewrite(loop.root / "be.slice/cpu.max", "70000 100000\n")

        assert self.again(loop) == {"cpu.max": "foreign"}
        assert text_of(loop.root / "be.slice/cpu.max") == "70000 100000"

    def test_a_cgroup_that_is_gone_is_dropped_and_its_successor_left_alone(self, loop: Loop) -> None:
        loop.tick(loop.want("be.slice", HALF))
        (loop.root / "be.slice").rename(loop.root.parent / "gone")
        assert self.again(loop) == {"cpu.max": "gone"}

        make_tree(loop.root / "be.slice", {**CPU_FILES, "cpu.max": "50000 100000\n"})
        assert self.again(loop) == {}
        assert text_of(loop.root / "be.slice/cpu.max") == "50000 100000"

    @pytest.mark.parametrize("name", ["open", "pread", "write"])
    @pytest.mark.parametrize("error", [errno.EMFILE, errno.EBUSY, errno.EIO], ids=errno.errorcode.get)
    def test_what_could_not_be_restored_stays_on_file(self, loop: Loop, name: str, error: int) -> None:
        """An error is not an absence: the next attempt finds what this one could not do."""
        loop.tick(loop.want("be.slice", HALF))
        failing = FakeSys()
        failing.fail(error, name=name, file="be.slice" if name == "open" else "cpu.max")

        outcomes = restore_from(failing, str(loop.run), str(loop.root), BOOT)

        assert [outcome.result for outcome in outcomes] == ["failed"]
        assert self.again(loop) == {"cpu.max": "done"}
        assert text_of(loop.root / "be.slice/cpu.max") == "max 100000"

    def test_a_restore_that_dies_between_idle_and_weight_is_finished_by_the_next(self, loop: Loop) -> None:
        rewrite(loop.root / "be.slice/cpu.weight", "42\n")
        loop.tick(loop.want("be.slice", CpuIdle(True)))
        dying = FakeSys()
        dying.fail(errno.EIO, file="cpu.weight")

        first = restore_from(dying, str(loop.run), str(loop.root), BOOT)
        between = text_of(loop.root / "be.slice/cpu.weight")

        assert [outcome.result for outcome in first] == ["failed"]
        assert between == "100"
        assert self.again(loop) == {"cpu.idle": "done"}
        assert text_of(loop.root / "be.slice/cpu.weight") == "42"

    def test_a_burst_that_waits_for_its_limit_is_restored_after_it(self, tmp_path: Path) -> None:
        group = make_tree(tmp_path, {**CPU_FILES, "cpu.max": "20000 100000\n"})
        make_tree(tmp_path / "g", {**CPU_FILES, "cpu.max": "20000 100000\n"})
        number = cgroup_id(group / "g")
        entries = {
            Key(number, "cpu.max"): Entry("g", "90000 100000", ("20000 100000",)),
            Key(number, "cpu.max.burst"): Entry("g", "80000", ("0",)),
        }

        outcomes = restore(FakeSys(), os.open(tmp_path, DIRECTORY), entries)

        assert {outcome.key.file: outcome.result for outcome in outcomes} == {
            "cpu.max": "done",
            "cpu.max.burst": "done",
        }
        assert text_of(group / "g/cpu.max.burst") == "80000"

    def test_the_root_is_the_only_place_it_looks(self, loop: Loop, tmp_path: Path) -> None:
        """Neither a link nor an absolute path leads outside."""
        outside = make_tree(tmp_path / "outside", {**CPU_FILES, "cpu.max": "1 1\n"})
        (loop.root / "link").symlink_to(outside)
        number = cgroup_id(outside)
        for path in ("link", str(outside)):
            entries = {Key(number, "cpu.max"): Entry(path, "max 100000", ("1 1",))}
            outcomes = restore(Sys(), loop.root_fd, entries)
            assert outcomes[0].result == "gone"
        assert text_of(outside / "cpu.max") == "1 1"
