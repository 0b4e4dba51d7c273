"""Kernel text to value: a value or `Malformed`, never anything else, and back to the kernel's own text."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qosd import cgroupfs, iofs, procfs, psi, topology
from qosd.errors import Malformed
from qosd.model import (
    MAX,
    CgroupFreeze,
    CpuIdle,
    CpuMax,
    CpuMaxBurst,
    CpusetCpus,
    CpuWeight,
    DiskIo,
    IoBfqWeight,
    IoLatency,
    IoMax,
    IoWeight,
    MemoryHigh,
    MemoryLow,
    MemoryMin,
    MemoryOomGroup,
    Setting,
    Stall,
)

U64 = st.integers(0, (1 << 64) - 1)
CPU_STAT = b"usage_usec 100\nuser_usec 60\nsystem_usec 40\n"
MEMORY_STAT = (
    b"anon 1\nfile 2\nkernel 9\nshmem 3\nfile_mapped 4\nfile_dirty 5\nfile_writeback 6\ninactive_file 7\n"
    b"active_file 8\nworkingset_refault_file 11\npgscan 12\npgsteal 13\n"
)
PRESSURE = (
    b"some avg10=0.12 avg60=1.50 avg300=99.99 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
)
STAT = b"cpu  10 20 30 40 50 60 70 80 0 0\ncpu0 5 10 15 20 25 30 35 40 0 0\nintr 1 2 3\n"
MEMINFO = (
    b"MemTotal:       16384 kB\nMemFree: 1 kB\nMemAvailable:   8192 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
)

PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "count": (lambda raw: cgroupfs.parse_count(raw, "file"), b"4096\n"),
    "limit": (lambda raw: cgroupfs.parse_limit(raw, "file"), b"max\n"),
    "flat keyed": (lambda raw: cgroupfs.parse_flat_keyed(raw, "file"), b"populated 1\nfrozen 0\n"),
    "cpu.stat": (cgroupfs.parse_cpu_stat, CPU_STAT),
    "memory.stat": (cgroupfs.parse_memory_stat, MEMORY_STAT),
    "/proc/vmstat": (procfs.parse_vmstat, b"nr_free_pages 1\npgscan_kswapd 5\npgscan_direct 6\n"),
    "pressure": (psi.parse_pressure, PRESSURE),
    "/proc/stat": (lambda raw: procfs.parse_stat(raw, 100, each=True), STAT),
    "/proc/meminfo": (procfs.parse_meminfo, MEMINFO),
    "/proc/self/cgroup": (procfs.parse_self_cgroup, b"0::/user.slice\n"),
    "mountinfo": (procfs.parse_mounts, b"30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
    "io.stat": (iofs.parse_io_stat, b"8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
    "cpulist": (lambda raw: topology.parse_cpulist(raw.decode("latin-1")), b"0-3,8\n"),
    **{
        file: (lambda raw, file=file: cgroupfs.parse_setting(file, raw.decode("latin-1")), text)
        for file, text in {
            "cpu.max": b"max 100000\n",
            "cpu.max.burst": b"0\n",
            "cpu.weight": b"100\n",
            "cpu.idle": b"0\n",
            "cpuset.cpus": b"0-3\n",
            "memory.high": b"max\n",
            "memory.low": b"0\n",
            "memory.min": b"4096\n",
            "memory.oom.group": b"0\n",
            "io.weight default": b"100",
            "io.bfq.weight default": b"100",
            "io.max 8:16": b"rbps=max wbps=2097152 riops=max wiops=120",
            "io.latency 8:16": b"target=2000",
        }.items()
    },
}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A parser's name and its text: cut, with bytes swapped in, repeated; or no such text at all."""
    name = draw(st.sampled_from(sorted(PARSERS)))
    text = PARSERS[name][1]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        until = draw(st.integers(at, len(text)))
        junk = draw(
            st.sampled_from(
                [
                    b"",
                    b"\0",
                    b"\r\n",
                    b"-1",
                    b"max",
                    b" ",
                    b"18446744073709551616",
                    b"9" * 5000,
                    b"1e9",
                    b"\xff",
                ]
            )
            | st.binary(max_size=6)
        )
        text = text[:at] + junk + text[until:]
    return name, text


@given(damaged())
@example(("/proc/stat", b"cpu " + b"9" * 5000 + STAT[4:]))
@example(("/proc/meminfo", b"MemTotal: " + b"9" * 5000 + b" kB\n"))
@example(("cpulist", b"9" * 5000))
@example(("mountinfo", b"cgroup2 - cgroup2 \n\\ - cgroup2 \\777\n"))
def test_damaged_text_gives_a_value_or_malformed(case: tuple[str, bytes]) -> None:
    name, raw = case
    with contextlib.suppress(Malformed):
        PARSERS[name][0](raw)


def test_ten_thousand_damaged_texts_give_a_value_or_malformed() -> None:
    """Blind, fast and the same each time, beside hypothesis: bytes of the kernel's own texts replaced."""
    dice = random.Random(6)  # noqa: S311 - no secret
    for _ in range(10_000):
        parse, text = dice.choice(list(PARSERS.values()))
        damaged = bytearray(text)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(damaged) + 1)
            damaged[at : at + dice.randint(0, 4)] = dice.randbytes(dice.randint(0, 4))
        with contextlib.suppress(Malformed):
            parse(bytes(damaged))


def test_malformed_stays_one_line_of_the_log_whatever_the_file_held() -> None:
    with pytest.raises(Malformed) as caught:
        cgroupfs.parse_count(b"1\n2\x1b[2J\r\xff" + b"x" * 5000, "memory.current")

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_the_kernels_own_text_is_understood(name: str) -> None:
    parse, text = PARSERS[name]

    assert parse(text) is not None


@given(U64)
def test_every_64_bit_count_comes_back(value: int) -> None:
    assert cgroupfs.parse_count(f"{value}\n".encode(), "file") == value


@pytest.mark.parametrize(
    "raw", [b"", b"\n", b"-1", b"+1", b"1_0", b"0x10", b"1 2", b"1.0", b"\xb2", b"1\x002"]
)
def test_what_only_int_would_take_is_no_count(raw: bytes) -> None:
    with pytest.raises(Malformed):
        cgroupfs.parse_count(raw, "memory.current")


def test_malformed_names_the_file_and_quotes_the_text() -> None:
    with pytest.raises(Malformed, match=r"^memory\.current: malformed content 'kaputt'$"):
        cgroupfs.parse_count(b"kaputt", "memory.current")


DEVICES = st.builds("{}:{}".format, st.integers(0, 4095), st.integers(0, (1 << 20) - 1))
SETTINGS: st.SearchStrategy[Setting] = st.one_of(
    st.builds(CpuMax, st.just(MAX) | U64, U64),
    st.builds(CgroupFreeze, st.booleans()),
    st.builds(CpuMaxBurst, U64),
    st.builds(CpuWeight, st.integers(1, 10_000)),
    st.builds(CpuIdle, st.booleans()),
    *(st.builds(kind, st.just(MAX) | U64) for kind in (MemoryHigh, MemoryLow, MemoryMin)),
    st.builds(MemoryOomGroup, st.booleans()),
    st.builds(IoWeight, st.integers(1, 10_000)),
    st.builds(IoBfqWeight, st.integers(1, 1000)),
    st.builds(IoMax, DEVICES, *[st.just(MAX) | U64] * 4),
    st.builds(IoLatency, DEVICES, U64),
    st.builds(CpusetCpus, st.sets(st.integers(0, 300)).map(lambda cpus: tuple(sorted(cpus)))),
)


@given(SETTINGS)
def test_every_setting_comes_back_from_its_text(setting: Setting) -> None:
    assert cgroupfs.parse_setting(setting.file, cgroupfs.format_setting(setting)) == setting


@given(st.sets(st.integers(0, 8191), max_size=40))
def test_a_cpulist_has_one_text_however_the_cpus_came(cpus: set[int]) -> None:
    """Texts are compared: two texts for one mask would be rewritten for ever."""
    text = topology.format_cpulist(tuple(cpus))

    assert topology.parse_cpulist(text) == tuple(sorted(cpus))
    assert topology.format_cpulist(topology.parse_cpulist(text)) == text


@pytest.mark.parametrize(
    ("cpus", "text"),
    [((), ""), ((0,), "0"), ((0, 1), "0-1"), ((0, 1, 2, 5), "0-2,5"), ((7, 3, 1, 2), "1-3,7")],
)
def test_a_cpulist_is_written_as_the_kernel_prints_it(cpus: tuple[int, ...], text: str) -> None:
    assert topology.format_cpulist(cpus) == text


@pytest.mark.parametrize("text", ["a", "1-", "-1", "3-1", "0-9999999999", "1,,x", "1 2", "0-3:1/2"])
def test_a_cpulist_the_kernel_never_prints_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        topology.parse_cpulist(text)


def test_keys_a_newer_kernel_adds_are_ignored() -> None:
    stat = cgroupfs.parse_cpu_stat(CPU_STAT + b"core_sched.force_idle_usec 7\nnr_periods 3\n")

    assert (stat.usage_usec, stat.nr_periods, stat.nr_throttled) == (100, 3, None)


@pytest.mark.parametrize(
    "raw",
    [b"", b"usage_usec 1\n", CPU_STAT[:-3] + b"\n", CPU_STAT.replace(b"100", b"-100"), CPU_STAT + b"\0"],
    ids=["empty", "one key", "no value", "negative", "NUL"],
)
def test_a_cpu_stat_without_its_three_times_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        cgroupfs.parse_cpu_stat(raw)


@pytest.mark.parametrize("key", [b"60", b"40"])
def test_no_time_of_cpu_stat_is_negative(key: bytes) -> None:
    with pytest.raises(Malformed):
        cgroupfs.parse_cpu_stat(CPU_STAT.replace(key, b"-" + key))


def test_both_lines_of_a_pressure_file_are_read() -> None:
    pressure = psi.parse_pressure(PRESSURE)

    assert pressure.some == Stall(0.12, 1.5, 99.99, 123_456)
    assert pressure.full == Stall(0.0, 0.0, 0.0, 0)


def test_a_host_without_full_cpu_pressure_has_none_of_it() -> None:
    """Before 5.13 /proc/pressure/cpu has no second line; that is not a stall of 0."""
    assert psi.parse_pressure(PRESSURE.split(b"\n")[0] + b"\n").full is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"some\n",
        b"full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        PRESSURE.replace(b"total=123456", b"total=-1"),
        PRESSURE.replace(b"total=123456", b"total="),
        PRESSURE.replace(b"avg10=0.12", b"avg10=nan"),
        PRESSURE.replace(b"avg10=0.12", b"avg10=inf"),
        PRESSURE.replace(b"avg60=1.50", b"avg6=1.50"),
        PRESSURE[:-10],
    ],
)
def test_a_pressure_file_with_a_hole_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        psi.parse_pressure(raw)


def test_neither_iowait_nor_steal_is_use() -> None:
    """user + nice + system + irq + softirq, in microseconds; guest time is inside user already."""
    assert procfs.parse_stat(STAT, 100, each=True) == procfs.HostCpu(
        busy_usec=(10 + 20 + 30 + 60 + 70) * 10_000,
        steal_usec=80 * 10_000,
        nr_cpus=1,
        cpus_busy_usec={0: (5 + 10 + 15 + 30 + 35) * 10_000},
    )


def test_each_cpu_that_is_online_has_its_own_line_and_a_cut_one_is_none() -> None:
    """An offline CPU has no line; a read of a size leaves the last line without its end."""
    raw = STAT.split(b"intr")[0] + b"cpu5 1 1 1 1 1 1 1 1 0 0\ncpu6 1 1 1 1 1 1 1 1 0"

    busy = procfs.parse_stat(raw, 100, each=True).cpus_busy_usec
    assert busy is not None
    assert busy.keys() == {0, 5}
    assert procfs.parse_stat(raw, 100).cpus_busy_usec is None
    assert procfs.parse_stat(raw, 100).nr_cpus == 2


@pytest.mark.parametrize("raw", [b"", b"cpu 1 2 3\n", b"cpux 1 2 3 4 5 6 7 8\ncpu0\n", STAT.split(b"\n")[0]])
def test_a_proc_stat_that_does_not_count_cpus_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        procfs.parse_stat(raw, 100)


def test_meminfo_is_in_bytes_and_a_line_that_is_not_there_is_none() -> None:
    meminfo = procfs.parse_meminfo(MEMINFO.replace(b"MemAvailable", b"MemElsewhere"))

    assert meminfo == procfs.Meminfo(16384 << 10, None, 0, 0, 1 << 10)


def test_the_v2_line_of_a_hybrid_host_is_the_one_that_counts() -> None:
    raw = b"5:cpu,cpuacct:/system.slice\n1:name=systemd:/x\n0::/system.slice/qosd.service\n"

    assert procfs.parse_self_cgroup(raw) == "system.slice/qosd.service"
    assert procfs.parse_self_cgroup(raw.rsplit(b"0::", 1)[0]) is None


def test_a_mount_point_with_a_space_is_unescaped() -> None:
    raw = (
        b"22 1 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n"
        b"30 23 0:26 / /mnt/a\\040b\\134c rw,relatime shared:9 master:1 - cgroup2 none rw,nsdelegate\n"
    )

    mounts = {mount.fstype: mount for mount in procfs.parse_mounts(raw)}

    assert mounts["cgroup2"].point == "/mnt/a b\\c"
    assert "nsdelegate" in mounts["cgroup2"].super_options


def test_a_form_feed_in_a_mount_point_does_not_end_the_line() -> None:
    """The kernel escapes space, tab, newline and backslash, and nothing else that Python calls a line end."""
    raw = b"30 23 0:26 / /mnt/a\x0cb rw - cgroup2 none rw\n"

    assert [mount.point for mount in procfs.parse_mounts(raw)] == ["/mnt/a\x0cb"]


def test_io_stat_is_by_device_and_ignores_what_it_need_not_know() -> None:
    raw = b"8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 cost.usage=9\n253:0 rbytes=0 wbytes=0 rios=0 wios=0"

    assert iofs.parse_io_stat(raw) == {"8:16": DiskIo(1, 2, 3, 4), "253:0": DiskIo(0, 0, 0, 0)}
    assert iofs.parse_io_stat(b"") == {}


def test_a_device_that_io_stat_names_without_numbers_is_no_news() -> None:
    """blkcg_print_one_stat() of some kernels prints the name before it knows whether anything follows."""
    raw = b"7:0 8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:1 \n"

    assert iofs.parse_io_stat(raw) == {"8:16": DiskIo(1, 2, 3, 4)}


@pytest.mark.parametrize("raw", [b"8:16 rbytes=1\n", b"8:16 rbytes=-1 wbytes=0 rios=0 wios=0", b"kaputt"])
def test_an_io_stat_that_cannot_be_summed_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        iofs.parse_io_stat(raw)


def test_of_memory_stat_sizes_must_be_there_and_counters_may_be() -> None:
    stat = cgroupfs.parse_memory_stat(MEMORY_STAT)
    assert (stat.anon, stat.shmem, stat.page_cache, stat.workingset_refault_file) == (1, 3, 15, 11)
    assert stat.workingset_refault_anon is None
    with pytest.raises(Malformed):
        cgroupfs.parse_memory_stat(MEMORY_STAT.replace(b"inactive_file", b"inactive"))
    with pytest.raises(Malformed):
        cgroupfs.parse_memory_stat(MEMORY_STAT.replace(b"shmem 3", b"shmem -3"))


def test_vmstat_is_counts_and_one_may_be_missing() -> None:
    assert procfs.parse_vmstat(b"pgscan_kswapd 5\n") == procfs.Vmstat(5, None)
