"""Whether a workload ran into a limit of its own: then it waits for itself. Pure.

A throttled cgroup shows as cpu pressure, and memory.high of its own as memory pressure. cpu.stat counts a
cgroup's own quota only, so the cgroups below are asked too; memory.events sums them up itself.
"""

from __future__ import annotations

from qosd.model import CgroupId, CpuStat, Snapshot, Workload
from qosd.plan import Input


def cpu(prev: Snapshot, now: Snapshot, path: str) -> Input | None:
    """The counter of its own quota that rose between the two, and by how much."""
    then, since = _quotas(path, prev), _quotas(path, now)
    # Cold cgroups are read in turns: only who was read both times can have risen.
    both = [(then[cgroup_id], stat) for cgroup_id, stat in since.items() if cgroup_id in then]
    throttled = sum(max((b.throttled_usec or 0) - (a.throttled_usec or 0), 0) for a, b in both)
    if throttled > 0:
        return Input("throttled_usec", float(throttled), "us")
    # Held over several periods in one go it has nothing in throttled_usec until that ends: qosd/held.py.
    ends = sum(max((b.nr_throttled or 0) - (a.nr_throttled or 0), 0) for a, b in both)
    return Input("nr_throttled", float(ends), "periods") if ends > 0 else None


def memory(before: Workload, after: Workload) -> Input | None:
    for name in ("high", "max"):
        rose = after.memory_events.get(name, 0) - before.memory_events.get(name, 0)
        if rose > 0:
            return Input(f"memory.events {name}", float(rose), "times")
    return None


def _quotas(path: str, snapshot: Snapshot) -> dict[CgroupId, CpuStat]:
    samples = [workload.sample for workload in snapshot.workloads if workload.path == path]
    samples += [below for below in snapshot.descendants if below.path.startswith(path + "/")]
    return {sample.id: sample.cpu for sample in samples if sample.cpu is not None}
