"""The cpu.max that a workload's cgroup stands under. Pure."""

from __future__ import annotations

from qosd.cgroupfs import parse_setting
from qosd.errors import Malformed
from qosd.model import MAX, CpuMax, Workload


def limit_of(workload: Workload) -> CpuMax | None:
    """None without such a file, without a limit in it, or where it cannot be understood."""
    text = workload.setting("cpu.max")
    if text is None:
        return None
    try:
        limit = parse_setting("cpu.max", text)
    except Malformed:
        return None
    return limit if isinstance(limit, CpuMax) and limit.quota_usec is not MAX else None


def limit_cores(workload: Workload) -> float | None:
    """The same in CPUs."""
    limit = limit_of(workload)
    if limit is None or limit.quota_usec is MAX or limit.period_usec == 0:
        return None
    return limit.quota_usec / limit.period_usec
