"""Whatever is done in whatever order and wherever the daemon dies, nothing of ours is left on the host."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from pathlib import Path

import pytest
from fakekernel import write_as_kernel
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from treekit import BOOT, CPU_FILES, Crash, FakeSys, Loop, cgroup_id, make_tree, text_of

from qosd.config import OnForeignWrite, Ownership
from qosd.files import Key
from qosd.journal import FILE, load
from qosd.model import CpuIdle, CpuMax, CpuMaxBurst, CpusetCpus, CpuWeight
from qosd.plan import Desired

PATHS = ("be.slice", "be.slice/job", "ls.slice")
FILES = ("cpu.max", "cpu.max.burst", "cpu.weight", "cpu.idle", "cpuset.cpus")

# Ours are even, those of others odd: at the end, a value says by itself whose it is.
OUR_LIMITS = st.integers(5, 100).map(lambda n: CpuMax(n * 1000, 100_000))
OUR_SHARES = st.one_of(
    st.just(()),
    st.just((CpuIdle(True),)),
    st.sampled_from([2, 1000]).map(lambda weight: (CpuWeight(weight),)),
)
OUR_MASKS = st.sampled_from([(0,), (0, 2), (1, 2, 3)])
WANTED = st.tuples(st.none() | OUR_LIMITS, OUR_SHARES, st.none() | OUR_MASKS.map(CpusetCpus)).map(
    lambda parts: (
        *((CpuMaxBurst(0), parts[0]) if parts[0] else ()),
        *parts[1],
        *([parts[2]] if parts[2] else ()),
    )
)
WISHES = st.fixed_dictionaries({}, optional=dict.fromkeys(PATHS, WANTED))

THEIRS = {
    "cpu.max": st.integers(1, 99).map(lambda n: f"{n * 1000 + 1} 100000") | st.just("max 100000"),
    "cpu.max.burst": st.integers(0, 20).map(lambda n: str(n * 1000 + 1)),
    "cpu.weight": st.integers(1, 100).map(lambda n: str(n * 20 + 1)),
    "cpuset.cpus": st.sampled_from(["3", "1,3", "0-1"]),
}
FOREIGN_WRITES = st.sampled_from(sorted(THEIRS)).flatmap(lambda file: st.tuples(st.just(file), THEIRS[file]))
STEPS = st.integers(1, 120)


class Host(RuleBasedStateMachine):
    """One host, one daemon that dies and starts again, and somebody else who writes the same files."""

    reassert = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="qosd-test-"))
        self.theirs: dict[tuple[str, str], list[str]] = {}
        """Every value somebody else chose, the one that stood before us first."""

    @initialize(originals=st.lists(st.tuples(st.sampled_from(PATHS), FOREIGN_WRITES), max_size=8))
    def boot(self, originals: list[tuple[str, tuple[str, str]]]) -> None:
        files = {**CPU_FILES, "cgroup.events": "populated 0\nfrozen 0\n"}
        tree = {"be.slice": {**files, "job": files}, "ls.slice": files}
        self.root = make_tree(self.directory / "cgroup", tree)
        run = self.directory / "run"
        run.mkdir()
        for path, (file, value) in originals:
            self._write_theirs(path, file, value)
        self.theirs = {(path, file): [self._text(path, file)] for path in PATHS for file in FILES}
        policy = OnForeignWrite.REASSERT if self.reassert else OnForeignWrite.YIELD
        self.sys = FakeSys()
        self.loop = Loop(self.sys, self.root, run, Ownership(on_foreign_write=policy))

    def _text(self, path: str, file: str) -> str:
        return text_of(self.root / path / file)

    def _write_theirs(self, path: str, file: str, value: str) -> bool:
        try:
            write_as_kernel(self.root / path / file, value.encode())
        except OSError:
            return False  # the kernel would have refused them as well
        return True

    def _desired(self, wishes: dict[str, tuple]) -> tuple[Desired, ...]:
        return tuple(
            self.loop.want(path, setting) for path, settings_ in wishes.items() for setting in settings_
        )

    @rule(wishes=WISHES)
    def tick(self, wishes: dict[str, tuple]) -> None:
        self.loop.tick(*self._desired(wishes))

    @rule(wishes=WISHES, error=st.sampled_from([errno.EBUSY, errno.EIO, errno.ENOSPC]), nth=STEPS)
    def tick_with_a_failing_call(self, wishes: dict[str, tuple], error: int, nth: int) -> None:
        name = ("write", "pread", "open", "create")[nth % 4]
        self.sys.fail(error, name=name, nth=nth // 4 + 1)
        self.loop.tick(*self._desired(wishes))
        self.sys.heal()

    @rule(wishes=WISHES, at=STEPS, torn=st.integers(0, 200), again_at=st.none() | STEPS)
    def crash(self, wishes: dict[str, tuple], at: int, torn: int, again_at: int | None) -> None:
        """In the tick, and perhaps once more in the restore that follows."""
        desired = self._desired(wishes)
        self.sys.crash_at(at, torn)
        with contextlib.suppress(Crash):
            self.loop.tick(*desired)
        self.loop.crash()
        if again_at is not None:
            self.sys.crash_at(again_at, torn)
            with contextlib.suppress(Crash):
                self.loop.start()
            self.loop.crash()
        self.loop.start()
        self._check_that_nothing_of_ours_is_left()

    @rule(path=st.sampled_from(PATHS), what=FOREIGN_WRITES)
    def somebody_else_writes(self, path: str, what: tuple[str, str]) -> None:
        file, value = what
        if self._write_theirs(path, file, value):
            self.theirs[path, file].append(self._text(path, file))

    @rule(path=st.sampled_from(PATHS), wishes=WISHES)
    def systemd_reloads(self, path: str, wishes: dict[str, tuple]) -> None:
        """It rewrites what it knows of a unit, the idle flag before the weight (cgroup_context_apply())."""
        for file in ("cpu.idle", "cpu.weight", "cpu.max", "cpuset.cpus"):
            value = self.theirs[path, file][-1]
            if self._write_theirs(path, file, value):
                self.theirs[path, file].append(value)
        self.loop.tick(*self._desired(wishes), reloaded=True)

    @rule(seconds=st.sampled_from([3, 70, 400]))
    def time_passes(self, seconds: int) -> None:
        self.sys.advance(seconds)

    @rule()
    def release(self) -> None:
        for _ in range(3):
            self.loop.tick()
            self.sys.advance(400)
        self._check_that_nothing_of_ours_is_left()

    def _check_that_nothing_of_ours_is_left(self) -> None:
        journal = self.directory / "run" / FILE
        kept = load(journal.read_bytes(), BOOT) if journal.exists() else {}
        for (path, file), theirs in self.theirs.items():
            value = self._text(path, file)
            entry = kept.get(Key(cgroup_id(self.root / path), file))
            if entry is not None and value in entry.ours:
                # Their limit may forbid the original burst, or theirs the limit: kept for another attempt.
                with pytest.raises(OSError, match="Invalid argument"):
                    write_as_kernel(self.root / path / file, entry.original.encode())
                continue
            allowed = theirs if self.reassert else theirs[-1:]
            assert value in allowed, f"{path}/{file} is {value!r}, somebody else chose {theirs}"

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.crash()
            self.loop.start()
            self._check_that_nothing_of_ours_is_left()
            self.loop.crash()
        shutil.rmtree(self.directory)


class HostThatReasserts(Host):
    """Told to write over a third value, we still leave one that somebody else chose."""

    reassert = True


TestNothingOfOursIsLeft = Host.TestCase
TestNothingOfOursIsLeft.settings = settings(max_examples=settings.default.max_examples * 3 // 10)
TestNothingOfOursIsLeftWhenReasserting = HostThatReasserts.TestCase
TestNothingOfOursIsLeftWhenReasserting.settings = settings(
    max_examples=settings.default.max_examples * 15 // 100
)
