"""What the kernel does with a write to an interface file, on plain files: cpu, cpuset, memory, io, freeze.

A plain file would take anything (EINVAL for a limit below its burst, the weight that leaving idle resets).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from qosd.errors import Malformed
from qosd.topology import format_cpulist, parse_cpulist

NR_CPUS = 4
DISKS = ("8:0", "8:16")


def text_of(file: Path) -> str:
    return file.read_text(encoding="latin-1").strip()


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
