"""/sys: which CPUs are one core and which are one NUMA node, and which LRU the kernel runs."""

from __future__ import annotations

import re

from qosd.errors import Malformed
from qosd.model import Topology
from qosd.sys import DIRECTORY, Sys, read_interface
from qosd.topology import parse_topology
from qosd.watch import KeptFile, keep

_NODE = re.compile(r"node(\d+)", re.ASCII)
_HEX = re.compile(rb"0x[0-9a-f]{1,8}\s*")


def read_topology(sys: Sys, cpu_dir_fd: int, online: tuple[int, ...]) -> Topology:
    """From /sys/devices/system/cpu, kept open, and node beside it.

    What is not there (no SMT, no NUMA, a guest without either) is left out; raises any other OSError, and
    `Malformed`.
    """
    siblings = {
        cpu: text
        for cpu in online
        if (text := _read(sys, cpu_dir_fd, f"cpu{cpu}/topology/thread_siblings_list")) is not None
    }
    return parse_topology(online, siblings, _read_nodes(sys, cpu_dir_fd))


def _read_nodes(sys: Sys, cpu_dir_fd: int) -> dict[int, str]:
    try:
        fd = sys.open("../node", DIRECTORY, dir_fd=cpu_dir_fd)
    except FileNotFoundError:
        return {}
    try:
        with sys.scandir(fd) as entries:
            numbers = [int(match[1]) for entry in entries if (match := _NODE.fullmatch(entry.name))]
        lists = {number: _read(sys, fd, f"node{number}/cpulist") for number in numbers}
    finally:
        sys.close(fd)
    return {number: text for number, text in lists.items() if text is not None}


def _read(sys: Sys, dir_fd: int, file: str) -> str | None:
    try:
        return read_interface(sys, dir_fd, file).decode("latin-1").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_lru_gen(raw: bytes) -> bool:
    """Bit 0 of lru_gen/enabled is the main switch (Documentation/admin-guide/mm/multigen_lru.rst)."""
    if _HEX.fullmatch(raw) is None:
        raise Malformed("lru_gen/enabled", raw.decode("latin-1"))
    return bool(int(raw, 16) & 1)


def keep_lru_gen(sys: Sys, sysfs: str) -> KeptFile[bool] | None:
    """None where the kernel was built without it: then it has the active and the inactive list."""
    try:
        fd = sys.open(f"{sysfs}/kernel/mm/lru_gen", DIRECTORY)
    except OSError:
        return None
    try:
        return keep(sys, fd, "enabled", parse_lru_gen)
    finally:
        sys.close(fd)
