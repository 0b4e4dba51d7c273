"""CPUs, SMT siblings and NUMA nodes (/sys/devices/system), and the kernel's cpulist text."""

from __future__ import annotations

from itertools import pairwise

from qosd.errors import Malformed
from qosd.model import Topology

_MAX_CPU = 8192  # CONFIG_NR_CPUS of the largest distribution kernels
_MAX_CPU_DIGITS = 4


def parse_cpulist(text: str, file: str = "cpulist") -> tuple[int, ...]:
    """The CPUs of a list: `0-2,5` is (0, 1, 2, 5), the empty text is (). Raises `Malformed`."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, _, last = part.partition("-")
        if max(len(first), len(last)) > _MAX_CPU_DIGITS:
            raise Malformed(file, text)
        if not (first.isdecimal() and (not last or last.isdecimal())) or part.endswith("-"):
            raise Malformed(file, text)
        low, high = int(first), int(last or first)
        if high < low or high >= _MAX_CPU:
            raise Malformed(file, text)
        cpus.update(range(low, high + 1))
    return tuple(sorted(cpus))


def format_cpulist(cpus: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) to "0-2,5", as the kernel prints it (%*pbl)."""
    if not cpus:
        return ""
    ordered = sorted(set(cpus))
    breaks = [0, *(i for i, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1), len(ordered)]
    runs = ((ordered[start], ordered[end - 1]) for start, end in pairwise(breaks))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_topology(online: tuple[int, ...], siblings: dict[int, str], nodes: dict[int, str]) -> Topology:
    """From `cpuN/topology/thread_siblings_list` and `nodeN/cpulist`; what they leave out stands alone.

    A CPU without a list of siblings is a core of its own; CPUs of no node are one node together.
    """
    cores: dict[int, tuple[int, ...]] = {}
    for cpu in online:
        listed = parse_cpulist(siblings[cpu], "thread_siblings_list") if cpu in siblings else ()
        core = tuple(sibling for sibling in listed if sibling in online) or (cpu,)
        cores.setdefault(core[0], core)
    placed: list[tuple[int, ...]] = []
    for node in sorted(nodes):
        cpus = tuple(cpu for cpu in parse_cpulist(nodes[node], "cpulist") if cpu in online)
        if cpus:
            placed.append(cpus)
    known = {cpu for node_cpus in placed for cpu in node_cpus}
    rest = tuple(cpu for cpu in online if cpu not in known)
    return Topology(tuple(cores[first] for first in sorted(cores)), (*placed, *([rest] if rest else [])))
