"""A fake cgroupfs from a literal dict, and a `Sys` that keeps the kernel's rules on it.

Directories and files are real, so that dirfds, inodes and O_NOFOLLOW mean what they mean on kernfs. What a
plain file would get wrong (EINVAL for a limit below its burst, the weight that leaving idle resets) is in
`write_as_kernel`; what it cannot show at all is left to the tests on a real kernel.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from qosd.act import Actuator, Backoff, Report
from qosd.config import Config, Ownership, decode
from qosd.engine import Engine
from qosd.errors import Malformed
from qosd.files import Key, interface_file
from qosd.journal import Journal, restore_from
from qosd.model import CgroupId, Setting, Tier
from qosd.plan import Desired, Ledger, Now, Plan, Reason, diff
from qosd.sense import HostFiles
from qosd.status import Status
from qosd.sys import DIRECTORY, Sys
from qosd.topology import format_cpulist, parse_cpulist

Tree = Mapping[str, "str | bytes | Tree"]

QUOTA = decode('[cpu.bandwidth]\nenforce = "max"')
"""The defaults, and BE under a quota all the time: something to write and to give back."""

NR_CPUS = 4
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
DISKS = ("8:0", "8:16")
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


def text_of(file: Path) -> str:
    return file.read_text(encoding="latin-1").strip()


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

    def stat(self, path: str) -> os.stat_result:
        self._announce(Call("stat", path))
        return os.stat(path)

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


def write_as_kernel(file: Path, data: bytes) -> None:
    """What kernel/sched/core.c and kernel/cgroup/cpuset.c do with a write; raises OSError as they would."""
    text = data.decode("latin-1").strip()
    rule = _RULES.get(file.name)
    kept = text if rule is None else rule(file.parent, text)
    file.write_text(kept + "\n", encoding="latin-1")


def _refuse(error: int) -> OSError:
    return OSError(error, os.strerror(error))


def _number(text: str) -> int:
    if not text.isdecimal():
        raise _refuse(errno.EINVAL)
    return int(text)


def _cpu_max(group: Path, text: str) -> str:
    """tg_set_cfs_bandwidth(): quota and period of at least 1 ms, period up to 1 s, burst within quota."""
    quota, period = [*text.split(), text_of(group / "cpu.max").split()[1]][:2]
    if not 1000 <= _number(period) <= 1_000_000:
        raise _refuse(errno.EINVAL)
    if quota != "max" and _number(quota) < max(1000, int(text_of(group / "cpu.max.burst"))):
        raise _refuse(errno.EINVAL)
    return f"{quota} {period}"


def _freeze(group: Path, text: str) -> str:
    """cgroup_freeze_write(); an empty tree freezes at once, as do tasks that are not traced."""
    if text not in ("0", "1"):
        raise _refuse(errno.ERANGE)
    events = group / "cgroup.events"
    populated = text_of(events).split("\n")[0]
    events.write_text(f"{populated}\nfrozen {text}\n", encoding="latin-1")
    return text


def _cpu_max_burst(group: Path, text: str) -> str:
    quota = text_of(group / "cpu.max").split()[0]
    if quota != "max" and _number(text) > int(quota):
        raise _refuse(errno.EINVAL)
    return str(_number(text))


def _cpu_weight(group: Path, text: str) -> str:
    """cpu_weight_write_u64() and sched_group_set_shares()."""
    if not 1 <= _number(text) <= 10_000:
        raise _refuse(errno.ERANGE)
    if text_of(group / "cpu.idle") == "1":
        raise _refuse(errno.EINVAL)
    return text


def _cpu_idle(group: Path, text: str) -> str:
    """sched_group_set_idle(): going idle and leaving it both replace the weight; no change does nothing."""
    if text not in ("0", "1"):
        raise _refuse(errno.EINVAL)
    if text != text_of(group / "cpu.idle"):
        (group / "cpu.weight").write_text("0\n" if text == "1" else "100\n", encoding="latin-1")
    return text


def _cpuset_cpus(group: Path, text: str) -> str:
    try:
        cpus = parse_cpulist(text)
    except Malformed:
        raise _refuse(errno.EINVAL) from None
    if any(cpu >= NR_CPUS for cpu in cpus):
        raise _refuse(errno.ERANGE)
    if not cpus and text_of(group / "cpuset.cpus") and "populated 1" in text_of(group / "cgroup.events"):
        raise _refuse(errno.ENOSPC)
    return format_cpulist(cpus)


def _memory_size(_group: Path, text: str) -> str:
    """page_counter_memparse(): whole pages, or "max"."""
    return text if text == "max" else str(_number(text) // 4096 * 4096)


def _memory_reclaim(group: Path, text: str) -> str:
    """memory_reclaim() of Linux 6.9: clean page cache, the inactive first; EAGAIN when that is too little."""
    size, *keys = text.split()
    if keys not in ([], ["swappiness=0"]):
        raise _refuse(errno.EINVAL)
    stat = memory_stat(group)
    dirty = stat["file_dirty"]
    wanted = left = _number(size)
    for kind in ("inactive_file", "active_file"):
        taken = min(max(stat[kind] - dirty, 0), left) // 4096 * 4096
        stat[kind] -= taken
        stat["file"] -= taken
        stat["pgsteal"] += taken // 4096
        left -= taken
    write_memory_stat(group, stat)
    if left >= 4096 and wanted > 0:
        raise _refuse(errno.EAGAIN)
    return ""


def memory_stat(group: Path) -> dict[str, int]:
    lines = (line.split() for line in text_of(group / "memory.stat").splitlines())
    return {key: int(value) for key, value in lines}


def write_memory_stat(group: Path, stat: Mapping[str, int]) -> None:
    (group / "memory.stat").write_text("".join(f"{key} {value}\n" for key, value in stat.items()))
    (group / "memory.current").write_text(f"{stat['anon'] + stat['file']}\n")


def _lines(group: Path, file: str) -> dict[str, str]:
    """A file with a line for each device, as the kernel keeps it."""
    lines = (line.partition(" ") for line in text_of(group / file).splitlines())
    return {device: value for device, _, value in lines}


def _with_line(group: Path, file: str, device: str, value: str | None) -> str:
    """blkg_conf_prep() knows the device; a line that says nothing is not shown."""
    if "\n" in device + (value or ""):
        raise _refuse(errno.EINVAL)
    if device not in DISKS:
        raise _refuse(errno.ENODEV)
    lines = {**_lines(group, file), device: value}
    return "\n".join(f"{name} {kept}" for name, kept in lines.items() if kept is not None)


def _io_max(group: Path, text: str) -> str:
    """tg_set_limit(): what is not named stays, 0 is ERANGE."""
    device, _, rest = text.partition(" ")
    names = ("rbps", "wbps", "riops", "wiops")
    before = _lines(group, "io.max").get(device, " ".join(f"{name}=max" for name in names))
    limits = dict(field.split("=") for field in [*before.split(), *rest.split()])
    if set(limits) != set(names):
        raise _refuse(errno.EINVAL)
    if any(value != "max" and not _number(value) for value in limits.values()):
        raise _refuse(errno.ERANGE)
    value = " ".join(f"{name}={limits[name]}" for name in names)
    return _with_line(group, "io.max", device, None if set(limits.values()) == {"max"} else value)


def _io_latency(group: Path, text: str) -> str:
    """iolatency_set_limit()."""
    device, _, rest = text.partition(" ")
    target = _number(rest.removeprefix("target="))
    return _with_line(group, "io.latency", device, f"target={target}" if target else None)


def _io_weight(group: Path, text: str) -> str:
    """ioc_weight_write(): `default N`, or a device and its weight."""
    head, _, rest = text.partition(" ")
    if head == "default":
        if not 1 <= _number(rest) <= 10_000:
            raise _refuse(errno.ERANGE)
        others = text_of(group / "io.weight").splitlines()[1:]
        return "\n".join([f"default {rest}", *others])
    return _with_line(group, "io.weight", head, None if rest == "default" else rest)


_RULES: dict[str, Callable[[Path, str], str]] = {
    "cpu.max": _cpu_max,
    "cpu.max.burst": _cpu_max_burst,
    "cpu.weight": _cpu_weight,
    "cpu.idle": _cpu_idle,
    "cpuset.cpus": _cpuset_cpus,
    "memory.high": _memory_size,
    "memory.low": _memory_size,
    "memory.min": _memory_size,
    "memory.reclaim": _memory_reclaim,
    "cgroup.freeze": _freeze,
    "io.max": _io_max,
    "io.latency": _io_latency,
    "io.weight": _io_weight,
}


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
