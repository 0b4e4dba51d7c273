"""CPUs, SMT siblings and NUMA nodes (/sys/devices/system), and the kernel's cpulist text."""

from __future__ import annotations

from itertools import pairwise

from qosd.errors import Malformed

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
