"""Which CPUs are one core and which are one NUMA node: read from /sys/devices/system."""

from __future__ import annotations

import re

from qosd.model import Topology
from qosd.sys import DIRECTORY, Sys, read_interface
from qosd.topology import parse_topology

_NODE = re.compile(r"node(\d+)", re.ASCII)


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
