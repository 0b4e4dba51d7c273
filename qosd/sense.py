"""One Snapshot a tick: the host's files, the workloads' files, and some of what lies below them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import msgspec

from qosd import cgroupfs, clock, discover, procfs, psi, topology
from qosd.cgroupfs import parse_events
from qosd.config import Config
from qosd.descend import Descendants
from qosd.errors import CgroupGone, Malformed
from qosd.files import Key
from qosd.iofs import parse_io_stat
from qosd.memstat import MemoryFiles
from qosd.model import (
    CgroupId,
    CgroupSample,
    DiskIo,
    HostSample,
    Pressure,
    Snapshot,
    Tier,
    Topology,
    Workload,
)
from qosd.schema.cpu import CpusetMode, Enforce
from qosd.sys import Sys, open_same_cgroup, read_interface
from qosd.sysfs import keep_lru_gen, read_topology
from qosd.watch import (
    CgroupFiles,
    KeptFile,
    close_cgroup,
    keep,
    keep_cgroup,
    read_kept,
    sample_cgroup,
    text,
)

_STAT_SIZE = 1 << 16  # the cpu lines of 512 CPUs fit; the interrupt counts behind them are not wanted
_IO_STAT_SIZE = 1 << 16  # a line of some 100 bytes for each device
_RESCAN_TICKS = 30  # a walk is due at least so often: cgroup.stat does not tell one child from another
_VMSTAT_SIZE = 1 << 14
_SYSTEMD = "/run/systemd"


PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Root:
    """A workload's own cgroup, its files kept open."""

    __slots__ = (
        "below",
        "dir_fd",
        "events",
        "files",
        "io_stat",
        "last",
        "match",
        "memory",
        "memory_events",
        "settings",
        "stat",
        "watched",
    )

    def __init__(
        self,
        sys: Sys,
        dir_fd: int,
        match: discover.Match,
        watched: tuple[str, ...],
        memory: MemoryFiles,
    ) -> None:
        self.match = match
        self.memory = memory
        self.dir_fd = dir_fd
        self.files: CgroupFiles = keep_cgroup(sys, dir_fd)
        self.stat = keep(sys, dir_fd, "cgroup.stat", parse_nr_descendants)
        self.events = keep(sys, dir_fd, "cgroup.events", lambda raw: parse_events(raw, "cgroup.events"))
        self.memory_events: KeptFile[dict[str, int]] | None = None
        self.io_stat: KeptFile[dict[str, DiskIo]] | None = None
        self.watched = watched
        self.settings: dict[str, KeptFile[str]] = {}
        self.last: CgroupSample | None = None
        self.below: int | None = None
        self.look_again(sys)

    def look_again(self, sys: Sys) -> None:
        """Open what was not there last time: enabling a controller adds its files to a living cgroup."""
        if None in self.files:
            close_cgroup(sys, self.files)
            self.files = keep_cgroup(sys, self.dir_fd)
        if self.memory_events is None:
            self.memory_events = keep(
                sys, self.dir_fd, "memory.events", lambda raw: parse_events(raw, "memory.events")
            )
            self.memory.look_again()
        if self.io_stat is None:
            self.io_stat = keep(sys, self.dir_fd, "io.stat", parse_io_stat, _IO_STAT_SIZE)
        for file in self.watched:
            if file not in self.settings and (kept := keep(sys, self.dir_fd, file, text)) is not None:
                self.settings[file] = kept

    def fds(self) -> int:
        return 5 + len(self.files) + len(self.settings) + self.memory.fds()

    def kept_fd(self, file: str) -> int | None:
        known = {"cpu.stat": self.files.cpu_stat, "cgroup.stat": self.stat}
        kept = known[file] if file in known else self.settings.get(file)
        return None if kept is None else kept.fd

    def close(self, sys: Sys) -> None:
        close_cgroup(sys, self.files)
        self.memory.close()
        for kept in (self.stat, self.events, self.memory_events, self.io_stat, *self.settings.values()):
            if kept is not None:
                sys.close(kept.fd)
        sys.close(self.dir_fd)


def parse_nr_descendants(raw: bytes) -> int:
    """Live and dying descendants together: the number moves whenever a cgroup comes or goes."""
    stat = cgroupfs.parse_flat_keyed(raw, "cgroup.stat")
    return stat.get(b"nr_descendants", 0) + stat.get(b"nr_dying_descendants", 0)


class HostFiles:
    """/proc files kept open. A missing one (no PSI) stays missing."""

    def __init__(self, sys: Sys, proc: str, sysfs: str) -> None:
        self._sys = sys
        self.proc = proc
        self.sysfs = sysfs
        self._cpus_fd = sys.open(f"{sysfs}/devices/system/cpu", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.online = keep(
            sys, self._cpus_fd, "online", lambda raw: topology.parse_cpulist(text(raw), "online")
        )
        self._fd = sys.open(proc, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        hertz = os.sysconf("SC_CLK_TCK")
        self.each_cpu = False
        self.stat = keep(
            sys,
            self._fd,
            "stat",
            lambda raw: procfs.parse_stat(raw, hertz, each=self.each_cpu),
            _STAT_SIZE,
        )
        self.meminfo = keep(sys, self._fd, "meminfo", procfs.parse_meminfo)
        self.vmstat = keep(sys, self._fd, "vmstat", procfs.parse_vmstat, _VMSTAT_SIZE)
        self.lru_gen = keep_lru_gen(sys, sysfs)
        self.pressure = {
            name: keep(sys, self._fd, f"pressure/{name}", psi.parse_pressure)
            for name in ("cpu", "memory", "io")
        }
        self._topology: Topology | None = None
        self._topology_of: tuple[int, ...] | None = None

    def follow(self, config: Config) -> None:
        """What each CPU does is asked only where somebody chooses among CPUs."""
        by_mask = config.cpu.bandwidth.enforce is Enforce.CPUSET
        always = config.cpu.cpuset.mode is CpusetMode.ALWAYS
        own = any(rule.cpus is not None for rule in config.workload)
        self.each_cpu = by_mask or always or own

    def sample(self, unknown: dict[str, str]) -> HostSample:
        cpu = read_kept(self.stat, "/proc/stat", unknown)
        memory = read_kept(self.meminfo, "/proc/meminfo", unknown)
        vmstat = read_kept(self.vmstat, "/proc/vmstat", unknown)
        cpu_pressure, memory_pressure, io_pressure = (
            self._read_pressure(name, unknown) for name in self.pressure
        )
        online = read_kept(self.online, "/sys/devices/system/cpu/online", unknown)
        return HostSample(
            nr_cpus=cpu.nr_cpus if cpu is not None else os.cpu_count() or 1,
            cpus_online=online,
            busy_usec=cpu.busy_usec if cpu is not None else None,
            steal_usec=cpu.steal_usec if cpu is not None else None,
            mem_total=memory.mem_total if memory is not None else None,
            mem_available=memory.mem_available if memory is not None else None,
            swap_total=memory.swap_total if memory is not None else None,
            swap_free=memory.swap_free if memory is not None else None,
            cpu_pressure=cpu_pressure,
            memory_pressure=memory_pressure,
            io_pressure=io_pressure,
            cpus_busy_usec=cpu.cpus_busy_usec if cpu is not None else None,
            topology=self._read_topology(online, unknown),
            mem_free=memory.mem_free if memory is not None else None,
            pgscan_kswapd=vmstat.pgscan_kswapd if vmstat is not None else None,
            pgscan_direct=vmstat.pgscan_direct if vmstat is not None else None,
            page_bytes=PAGE_BYTES,
            lru_gen=self.lru_gen is not None and read_kept(self.lru_gen, "lru_gen/enabled", unknown),
        )

    def _read_topology(self, online: tuple[int, ...] | None, unknown: dict[str, str]) -> Topology | None:
        """At the start, and when a CPU comes or goes: its own files come and go with it."""
        if online and online != self._topology_of:
            self._topology = None
            try:
                self._topology = read_topology(self._sys, self._cpus_fd, online)
            except (OSError, Malformed) as error:
                unknown["/sys/devices/system"] = str(error)
            else:
                self._topology_of = online
        return self._topology

    def _read_pressure(self, name: str, unknown: dict[str, str]) -> Pressure | None:
        return read_kept(self.pressure[name], f"/proc/pressure/{name}", unknown)

    def close(self) -> None:
        kept_files = (self.online, self.stat, self.meminfo, self.vmstat, self.lru_gen)
        for kept in (*kept_files, *self.pressure.values()):
            if kept is not None:
                self._sys.close(kept.fd)
        self._sys.close(self._fd)
        self._sys.close(self._cpus_fd)


class Sensor:
    """Everything that is read each tick. `protected` are paths no BE workload may be, hold or lie in."""

    def __init__(
        self,
        sys: Sys,
        root_fd: int,
        config: Config,
        watched: Mapping[Tier, tuple[str, ...]],
        protected: tuple[str, ...],
        host: HostFiles,
    ) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._config = config
        self._watched = watched
        self._protected = protected
        self._host = host
        self._roots: dict[int, Root] = {}
        self._found: list[discover.Match] = []
        self._matches: list[discover.Match] = []
        self.descendants = Descendants(sys, root_fd, config.sense)
        self._rescan_due = True
        self.refused: dict[str, str] = {}
        """Cgroups that a rule matches and qosd does not take, with the reason."""

    def snapshot(self, tick: int) -> Snapshot:
        unknown: dict[str, str] = {}
        monotonic_usec = self._sys.monotonic_ns() // 1000
        boottime_usec = self._sys.boottime_ns() // 1000
        wall_seconds = self._sys.time()
        self._follow_rules()
        host = self._host.sample(unknown)
        if self._host.each_cpu:
            host = msgspec.structs.replace(host, cpus_shared=self._cpus_shared(unknown))
        workloads = tuple(
            workload
            for root in list(self._roots.values())
            if (workload := self._sample(root, monotonic_usec, unknown)) is not None
        )
        if tick % _RESCAN_TICKS == 0 or self._rescan_due:
            self._rescan()
        descendants, self._rescan_due = self.descendants.sample(unknown)
        unknown.update(self.descendants.cut)
        return Snapshot(
            tick,
            monotonic_usec,
            boottime_usec,
            host,
            self._systemd_stamp(),
            unknown,
            workloads,
            descendants,
            round(wall_seconds * 1e6),
            self._local_minutes(wall_seconds, unknown),
        )

    def _cpus_shared(self, unknown: dict[str, str]) -> tuple[int, ...] | None:
        try:
            raw = read_interface(self._sys, self._root_fd, "cpuset.cpus.effective")
            return topology.parse_cpulist(text(raw), "cpuset.cpus.effective")
        except OSError:
            return None  # no cpuset controller in this hierarchy
        except Malformed as error:
            unknown["cpuset.cpus.effective"] = str(error)
            return None

    def _local_minutes(self, wall_seconds: float, unknown: dict[str, str]) -> dict[str, int]:
        """For each zone that a window names; one that this host does not know is unknown, and said."""
        minutes: dict[str, int] = {}
        for zone in {window.zone for window in self._config.window}:
            try:
                minutes[zone] = clock.minute_of_week(zone, wall_seconds)
            except (OSError, ValueError) as error:
                unknown[f"time zone {zone}"] = str(error)
        return minutes

    def settings(self, keys: set[Key]) -> dict[Key, str]:
        """What some watched files hold right now, between two snapshots."""
        found: dict[Key, str] = {}
        for key in keys:
            root = self._roots.get(key.cgroup_id)
            with contextlib.suppress(CgroupGone):
                value = None if root is None else read_kept(root.settings.get(key.file), root.match.path, {})
                if value is not None:
                    found[key] = value
        return found

    def root(self, cgroup_id: CgroupId) -> Root | None:
        """A workload's own cgroup with what is kept open of it."""
        return self._roots.get(cgroup_id)

    def close(self) -> None:
        self.descendants.close()
        for root in self._roots.values():
            root.close(self._sys)
        self._roots = {}

    def _follow_rules(self) -> None:
        found = discover.find(self._sys, self._root_fd, self._config.workload)
        if found != self._found:
            self._found = found
            self._matches, self.refused = discover.choose(found, self._protected)
        elif len(self._roots) == len(self._matches):
            return
        present = {match.id: match for match in self._matches}
        for cgroup_id, root in list(self._roots.items()):
            if present.get(root.match.id) != root.match:
                self._drop(cgroup_id, root)
        for match in self._matches:
            if match.id not in self._roots:
                self._take(match)

    def _take(self, match: discover.Match) -> None:
        try:
            fd = open_same_cgroup(self._sys, self._root_fd, match.path, match.id)
        except (CgroupGone, OSError):
            return  # gone, or out of fds: the next tick tries again
        tier = match.rule.tier
        memory = MemoryFiles(self._sys, (self._root_fd, fd), match.path, match.id, tier, self._config.memory)
        self._roots[match.id] = Root(self._sys, fd, match, self._watched[tier], memory)
        self._rescan_due = True

    def _drop(self, cgroup_id: int, root: Root) -> None:
        root.close(self._sys)
        del self._roots[cgroup_id]
        self.descendants.forget(root.match.path)

    def _sample(self, root: Root, now_usec: int, unknown: dict[str, str]) -> Workload | None:
        match = root.match
        try:
            sample = sample_cgroup(match.id, match.path, root.files, unknown, root.last)
            io = read_kept(root.io_stat, f"{match.path}/io.stat", unknown)
            memory = root.memory.sample(now_usec, unknown)
            same = sample.io is io and sample.memory is memory
            root.last = sample if same else msgspec.structs.replace(sample, io=io, memory=memory)
            below = read_kept(root.stat, match.path, unknown)
            events = read_kept(root.events, match.path, unknown)
            memory_events = read_kept(root.memory_events, match.path, unknown)
            files = {
                file: value
                for file, kept in root.settings.items()
                if (value := read_kept(kept, f"{match.path}/{file}", unknown)) is not None
            }
        except CgroupGone:
            self._drop(match.id, root)
            return None
        if below != root.below:
            root.below = below
            self._rescan_due = True
        return Workload(
            match.rule.name,
            match.rule.tier,
            match.rule.priority,
            root.last,
            files,
            events or {},
            memory_events or {},
        )

    def _rescan(self) -> None:
        budget = self._config.sense.fd_budget - sum(root.fds() for root in self._roots.values())
        for root in self._roots.values():
            root.look_again(self._sys)
            self.descendants.rescan(root.dir_fd, root.match.path, budget)

    def _systemd_stamp(self) -> int | None:
        """When systemd last reloaded: it empties and refills /run/systemd/generator* each time."""
        try:
            return self._sys.stat(_SYSTEMD).st_mtime_ns
        except OSError:
            return None
