"""A fake cgroupfs from a literal dict, and a `Sys` that keeps the kernel's rules on it.

Directories and files are real, so that dirfds, inodes and O_NOFOLLOW mean what they mean on kernfs. What a
plain file would get wrong (EINVAL for a limit below its burst, the weight that leaving idle resets) is in
`fakekernel`; what it cannot show at all is left to the tests on a real kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from fakekernel import NR_CPUS, text_of, write_as_kernel

from qosd.act import Actuator, Backoff, Report
from qosd.config import Config, Ownership, decode
from qosd.engine import Engine
from qosd.files import Key, interface_file
from qosd.journal import Journal, restore_from
from qosd.model import CgroupId, Setting, Tier
from qosd.plan import Desired, Ledger, Now, Plan, Reason, diff
from qosd.sense import HostFiles
from qosd.status import Status
from qosd.sys import DIRECTORY, Sys

Tree = Mapping[str, "str | bytes | Tree"]

QUOTA = decode('[cpu.bandwidth]\nenforce = "max"')
"""The defaults, and BE under a quota all the time: something to write and to give back."""

CPU_FILES = {
    "cpu.max": "max 100000\n",
    "cpu.max.burst": "0\n",
    "cpu.weight": "100\n",
    "cpu.idle": "0\n",
    "cpuset.cpus": "\n",
    "cpuset.cpus.effective": "0-3\n",
    "cgroup.freeze": "0\n",
    "cgroup.events": "populated 1\nfrozen 0\n",
}
MEMORY_FILES = {"memory.high": "max\n", "memory.low": "0\n", "memory.min": "0\n"}
IO_FILES = {
    "io.max": "\n",
    "io.latency": "\n",
    "io.weight": "default 100\n",
    "io.bfq.weight": "default 100\n",
    "io.stat": "",
    "memory.oom.group": "0\n",
}
BOOT = "11111111-2222-3333-4444-555555555555"


def make_tree(root: Path, tree: Tree) -> Path:
    """A dict value is a directory, text or bytes a file."""
    root.mkdir(exist_ok=True)
    for name, content in tree.items():
        if isinstance(content, Mapping):
            make_tree(root / name, content)
        else:
            data = content.encode() if isinstance(content, str) else content
            (root / name).write_bytes(data)
    return root


def cgroup_id(directory: Path) -> CgroupId:
    return CgroupId(directory.stat().st_ino)


class Call(NamedTuple):
    name: str
    path: str
    data: bytes = b""


CHANGING = ("write", "ftruncate", "rename")
"""The calls of `Sys` that leave a trace on the host; `open` does with O_CREAT or O_TRUNC, see `writes`."""


class Crash(BaseException):
    """The daemon is gone: no `except Exception` of its own sees this."""


class FakeSys(Sys):
    """Real system calls on a fake tree: recorded, with the kernel's rules, and failing on demand."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.hooks: list[Callable[[Call], None]] = []
        """Asked before every call; what one raises is what the call raises."""
        self.fds: set[int] = set()
        self.monotonic_usec = 1_000_000_000
        self.suspended_usec = 0
        self.wall_seconds = 1_800_000_000.0

    def fail(self, error: int, name: str = "write", file: str = "", nth: int = 1) -> None:
        """Make the nth call of this name on a file of this name raise OSError, and every later one too."""
        seen = 0

        def hook(call: Call) -> None:
            nonlocal seen
            if call.name == name and os.path.basename(call.path) == (file or os.path.basename(call.path)):
                seen += 1
                if seen >= nth:
                    raise OSError(error, os.strerror(error), call.path)

        self.hooks.append(hook)

    def crash_at(self, nth: int, torn: int = 0) -> None:
        """Stop the program for good before its nth call from now.

        When that call appends to the journal, `torn` bytes of the record still reach the file.
        """
        left = nth

        def hook(call: Call) -> None:
            nonlocal left
            left -= 1
            if left > 0:
                return
            if left == 0 and call.name == "write" and not _is_interface(call.path):
                with open(call.path, "ab") as file:
                    file.write(call.data[:torn])
            raise Crash(f"before {call}")

        self.hooks.append(hook)

    def heal(self) -> None:
        self.hooks.clear()

    def advance(self, seconds: float, *, suspended: float = 0.0) -> None:
        self.monotonic_usec += round(seconds * 1e6)
        self.suspended_usec += round(suspended * 1e6)
        self.wall_seconds += seconds + suspended

    def writes(self) -> list[Call]:
        """Every recorded call that changes the host."""
        return [call for call in self.calls if call.name in (*CHANGING, "create")]

    def _announce(self, call: Call) -> None:
        self.calls.append(call)
        for hook in self.hooks:
            hook(call)

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        where = path if dir_fd is None else os.path.join(_path_of(dir_fd), path)
        self._announce(Call("create" if flags & (os.O_CREAT | os.O_TRUNC) else "open", where))
        fd = os.open(path, flags, mode, dir_fd=dir_fd)
        self.fds.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self.calls.append(Call("close", _path_of(fd)))
        self.fds.discard(fd)
        os.close(fd)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        self._announce(Call("pread", _path_of(fd)))
        return os.pread(fd, count, offset)

    def fstat(self, fd: int) -> os.stat_result:
        self._announce(Call("fstat", _path_of(fd)))
        return os.fstat(fd)

    def ftruncate(self, fd: int, length: int) -> None:
        path = _path_of(fd)
        self._announce(Call("ftruncate", path))
        if not _is_interface(path):
            os.ftruncate(fd, length)

    def write(self, fd: int, data: bytes) -> int:
        path = _path_of(fd)
        self._announce(Call("write", path, data))
        if not _is_interface(path):
            return os.write(fd, data)
        write_as_kernel(Path(path), data)
        return len(data)

    def scandir(self, fd: int) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        self._announce(Call("scandir", _path_of(fd)))
        return os.scandir(fd)

    def stat(self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        self._announce(Call("stat", path if dir_fd is None else f"{_path_of(dir_fd)}/{path}"))
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    def rename(self, old: str, new: str) -> None:
        self._announce(Call("rename", new))
        os.rename(old, new)

    def monotonic_ns(self) -> int:
        return self.monotonic_usec * 1000

    def boottime_ns(self) -> int:
        return (self.monotonic_usec + self.suspended_usec) * 1000

    def time(self) -> float:
        return self.wall_seconds


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _is_interface(path: str) -> bool:
    return os.path.basename(path).split(".")[0] in ("cgroup", "cpu", "cpuset", "memory", "io")


BACKOFF = Backoff(2_000_000, 300_000_000)
PROTECTED = ("init.scope", "system.slice/qosd.service")


class Loop:
    """The daemon's sense-free core: read the wanted files, diff, apply; it may crash and start again."""

    def __init__(self, sys: FakeSys, root: Path, run: Path, ownership: Ownership | None = None) -> None:
        self.sys = sys
        self.root = root
        self.run = run
        self.ownership = ownership or Ownership()
        self.start()

    def start(self) -> None:
        """What the daemon does first: undo what a crash left, then begin with nothing of its own."""
        self.restored = restore_from(self.sys, str(self.run), str(self.root), BOOT)
        self.root_fd = self.sys.open(str(self.root), DIRECTORY)
        self.journal = Journal(self.sys, str(self.run), BOOT)
        self.actuator = Actuator(self.sys, self.root_fd, self.journal, PROTECTED)
        self.ledger: Ledger = {}

    def crash(self) -> None:
        """The process is gone; the kernel closes its fds, nobody runs a handler."""
        self.sys.heal()
        for fd in tuple(self.sys.fds):
            os.close(fd)
        self.sys.fds.clear()

    def want(self, path: str, setting: Setting, tier: Tier = Tier.BE) -> Desired:
        return Desired(cgroup_id(self.root / path), path, tier, setting, Reason("test/rule", "because"))

    def read(self, desired: Iterable[Desired]) -> dict[Key, str]:
        keys = {Key(wanted.cgroup_id, wanted.setting.file) for wanted in desired} | self.ledger.keys()
        groups = {directory.stat().st_ino: directory for directory in self.root.rglob("*/")}
        whole = {Key(key.cgroup_id, interface_file(key.file)) for key in keys}
        places = {key: groups[key.cgroup_id] / key.file for key in whole if key.cgroup_id in groups}
        return {key: text_of(file) for key, file in places.items() if file.is_file()}

    def plan(self, desired: tuple[Desired, ...], *, reloaded: bool = False) -> Plan:
        now = Now(self.sys.monotonic_usec, self.read(desired), reloaded)
        self.ledger, plan = diff(now, desired, self.ledger, self.ownership)
        return plan

    def tick(self, *desired: Desired, reloaded: bool = False) -> tuple[Plan, Report]:
        plan = self.plan(desired, reloaded=reloaded)
        self.ledger, report = self.actuator.apply(plan, self.ledger, self.sys.monotonic_usec, BACKOFF)
        self.sys.advance(1)
        return plan, report


PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
GROUP_FILES = {
    **CPU_FILES,
    "cpu.stat": "usage_usec 0\nuser_usec 0\nsystem_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
    "memory.current": "4096\n",
    "cpu.pressure": PRESSURE,
    "memory.pressure": PRESSURE,
    "io.pressure": PRESSURE,
    "cgroup.type": "domain\n",
    "cgroup.procs": "",
    "cgroup.kill": "",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
    "cgroup.stat": "nr_descendants 0\nnr_dying_descendants 0\n",
}
MEMINFO = (
    "MemTotal: 8388608 kB\nMemFree: 1024 kB\nMemAvailable: 4194304 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
)


class Box:
    """A host of four CPUs in a directory, with the engine that tends it."""

    def __init__(self, directory: Path, config: Config | None = None) -> None:
        self.root = make_tree(
            directory / "cgroup",
            {
                "ls.slice": GROUP_FILES,
                "be.slice": {**GROUP_FILES, "job.service": GROUP_FILES},
                "init.scope": GROUP_FILES,
            },
        )
        self.proc = make_tree(
            directory / "proc",
            {
                "stat": "",
                "meminfo": MEMINFO,
                "pressure": {"cpu": PRESSURE, "memory": PRESSURE, "io": PRESSURE},
            },
        )
        self.sysfs = make_tree(
            directory / "sys", {"devices": {"system": {"cpu": {"online": f"0-{NR_CPUS - 1}\n"}}}}
        )
        self.run = directory / "run"
        self.run.mkdir()
        self.sys = FakeSys()
        self.used: dict[str, float] = {}
        self.pass_time(0.0)
        root_fd = self.sys.open(str(self.root), DIRECTORY)
        host = HostFiles(self.sys, str(self.proc), str(self.sysfs))
        journal = Journal(self.sys, str(self.run), BOOT)
        self.engine = Engine(self.sys, root_fd, config or QUOTA, journal, "system.slice/qosd.service", host)

    def pass_time(self, seconds: float, **cores: float) -> None:
        """The clock moves; `ls`, `be` and `system` use that many CPUs meanwhile."""
        self.sys.advance(seconds)
        for who, share in cores.items():
            self.used[who] = self.used.get(who, 0.0) + share * seconds
        ticks = round(sum(self.used.values()) * os.sysconf("SC_CLK_TCK"))
        cpus = "".join(f"cpu{cpu} 0 0 0 0 0 0 0 0 0 0\n" for cpu in range(NR_CPUS))
        rewrite(self.proc / "stat", f"cpu  {ticks} 0 0 0 0 0 0 0 0 0\n{cpus}intr 0\n")
        for who in ("ls", "be"):
            usec = round(self.used.get(who, 0.0) * 1e6)
            stat = self.root / f"{who}.slice/cpu.stat"
            if stat.is_file():
                rewrite(stat, f"usage_usec {usec}\nuser_usec {usec}\nsystem_usec 0\n")

    def tick(self, seconds: float = 1.0, **cores: float) -> Status:
        self.pass_time(seconds, **cores)
        return self.engine.tick()

    def settle(self, ticks: int = 6, **cores: float) -> Status:
        status = None
        for _ in range(ticks):
            status = self.tick(**cores)
        assert status is not None
        return status

    def contents(self) -> dict[str, bytes]:
        """What a restore must bring back: every file qosd may write."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.name in {**CPU_FILES, **IO_FILES, **MEMORY_FILES}
            and path.name != "io.stat"
            and path.is_file()
        }

    def close(self) -> None:
        self.sys.heal()
        for fd in tuple(self.sys.fds):
            os.close(fd)
        self.sys.fds.clear()


def rewrite(file: Path, text: str) -> None:
    """New content in the same inode, as a kept fd sees it."""
    file.write_text(text, encoding="latin-1")
