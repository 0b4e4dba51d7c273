"""cgroup v2 interface files, text to value and back (Documentation/admin-guide/cgroup-v2.rst). Pure.

Parsers take what was read and raise `Malformed`; they never guess. Keys the kernel may add are ignored.
"""

from __future__ import annotations

from typing import assert_never

from qosd.errors import Malformed
from qosd.files import interface_file
from qosd.iofs import IO_FILES, format_io_setting, parse_io_setting
from qosd.memsample import MemoryStat
from qosd.model import (
    MAX,
    CgroupFreeze,
    CpuIdle,
    CpuMax,
    CpuMaxBurst,
    CpusetCpus,
    CpuStat,
    CpuWeight,
    IoBfqWeight,
    IoLatency,
    IoMax,
    IoWeight,
    Max,
    MemoryHigh,
    MemoryLow,
    MemoryMin,
    MemoryOomGroup,
    Setting,
)
from qosd.topology import format_cpulist, parse_cpulist

_U64_DIGITS = 20


def parse_count(raw: bytes, file: str) -> int:
    """A non-negative 64-bit decimal; int() alone would take "-1", "1_0" and a 5000-digit line."""
    text = raw.strip()
    if not text.isdigit() or len(text) > _U64_DIGITS:
        raise Malformed(file, raw.decode("latin-1"))
    return int(text)


def parse_memory_current(raw: bytes) -> int:
    return parse_count(raw, "memory.current")


def parse_limit(raw: bytes, file: str) -> int | Max:
    return MAX if raw.strip() == b"max" else parse_count(raw, file)


def parse_flat_keyed(raw: bytes, file: str) -> dict[bytes, int]:
    """Lines of `KEY VALUE`, as cpu.stat, cgroup.stat, cgroup.events and memory.stat."""
    fields = raw.split()
    keys, values = fields[::2], fields[1::2]
    if len(keys) != len(values) or b"\0" in raw:
        raise Malformed(file, raw.decode("latin-1"))
    try:
        return dict(zip(keys, map(int, values), strict=True))
    except ValueError:
        raise Malformed(file, raw.decode("latin-1")) from None


def parse_events(raw: bytes, file: str) -> dict[str, int]:
    """cgroup.events or memory.events. A file without a key that was counted before is never read as 0."""
    return {key.decode("latin-1"): value for key, value in parse_flat_keyed(raw, file).items()}


def parse_cpu_stat(raw: bytes) -> CpuStat:
    stat = parse_flat_keyed(raw, "cpu.stat")
    try:
        parsed = CpuStat(
            stat[b"usage_usec"],
            stat[b"user_usec"],
            stat[b"system_usec"],
            stat.get(b"nr_periods"),
            stat.get(b"nr_throttled"),
            stat.get(b"throttled_usec"),
            stat.get(b"nr_bursts"),
            stat.get(b"burst_usec"),
        )
    except KeyError:
        raise Malformed("cpu.stat", raw.decode("latin-1")) from None
    if b"-" in raw:
        raise Malformed("cpu.stat", raw.decode("latin-1"))
    return parsed


_COUNTS: dict[str, type[CpuMaxBurst | CpuWeight]] = {"cpu.max.burst": CpuMaxBurst, "cpu.weight": CpuWeight}
_FLAGS: dict[str, type[CgroupFreeze | CpuIdle | MemoryOomGroup]] = {
    "cgroup.freeze": CgroupFreeze,
    "cpu.idle": CpuIdle,
    "memory.oom.group": MemoryOomGroup,
}


def _parse_cpu_max(raw: bytes) -> CpuMax:
    fields = raw.split()
    if len(fields) != 2:  # noqa: PLR2004 - "$MAX $PERIOD"
        raise Malformed("cpu.max", raw.decode("latin-1"))
    return CpuMax(parse_limit(fields[0], "cpu.max"), parse_count(fields[1], "cpu.max"))


_MEMORY_SIZES = (
    b"anon",
    b"file",
    b"shmem",
    b"file_mapped",
    b"file_dirty",
    b"file_writeback",
    b"inactive_file",
    b"active_file",
)
_MEMORY_SETTINGS: dict[str, type[MemoryHigh | MemoryLow | MemoryMin]] = {
    "memory.high": MemoryHigh,
    "memory.low": MemoryLow,
    "memory.min": MemoryMin,
}


def parse_memory_stat(raw: bytes) -> MemoryStat:
    stat = parse_flat_keyed(raw, "memory.stat")
    if b"-" in raw or not all(size in stat for size in _MEMORY_SIZES):
        raise Malformed("memory.stat", raw.decode("latin-1"))
    return MemoryStat(
        stat[b"anon"],
        stat[b"file"],
        stat[b"shmem"],
        stat[b"file_mapped"],
        stat[b"file_dirty"],
        stat[b"file_writeback"],
        stat[b"inactive_file"],
        stat[b"active_file"],
        stat.get(b"slab_reclaimable", 0),
        stat.get(b"workingset_refault_anon"),
        stat.get(b"workingset_refault_file"),
        stat.get(b"pgscan"),
        stat.get(b"pgsteal"),
    )


def parse_setting(file: str, text: str) -> Setting:
    """The typed value of an interface file's text; raises `Malformed`, also for a file qosd never writes."""
    if interface_file(file) in IO_FILES:
        return parse_io_setting(file, text)
    raw = text.encode("latin-1", "replace")
    match file:
        case "cpu.max":
            return _parse_cpu_max(raw)
        case "cpu.max.burst" | "cpu.weight":
            return _COUNTS[file](parse_count(raw, file))
        case "cgroup.freeze" | "cpu.idle" | "memory.oom.group":
            return _FLAGS[file](bool(parse_count(raw, file)))
        case "cpuset.cpus":
            return CpusetCpus(parse_cpulist(text, file))
        case "memory.high" | "memory.low" | "memory.min":
            return _MEMORY_SETTINGS[file](parse_limit(raw, file))
        case _:
            raise Malformed(file, text)


def format_setting(setting: Setting) -> str:
    """The text the kernel itself would show for this value, so that texts can be compared."""
    match setting:
        case CpuMax():
            return f"{format_limit(setting.quota_usec)} {setting.period_usec}"
        case CpuMaxBurst(burst_usec=count) | CpuWeight(weight=count):
            return str(count)
        case CgroupFreeze() | CpuIdle() | MemoryOomGroup():
            return _format_flag(setting)
        case CpusetCpus():
            return format_cpulist(setting.cpus)
        case MemoryHigh() | MemoryLow() | MemoryMin():
            return format_limit(setting.bytes)
        case IoWeight() | IoBfqWeight() | IoMax() | IoLatency():
            return format_io_setting(setting)
        case _:
            assert_never(setting)


def _format_flag(setting: CgroupFreeze | CpuIdle | MemoryOomGroup) -> str:
    match setting:
        case CgroupFreeze():
            return "1" if setting.frozen else "0"
        case CpuIdle():
            return "1" if setting.idle else "0"
        case MemoryOomGroup():
            return "1" if setting.group else "0"


def format_limit(limit: int | Max) -> str:
    return limit.value if isinstance(limit, Max) else str(limit)
