"""Which CPUs: few NUMA nodes, whole cores, the quietest ones. Pure.

SMT siblings share a core's execution units and first caches, and a NUMA node its memory controller, so a
set that cuts through neither disturbs the fewest of those outside it.
"""

from __future__ import annotations

from typing import NamedTuple

from qosd.model import Snapshot, Topology

Core = tuple[int, ...]


class Layout(NamedTuple):
    """The online CPUs, how they hang together, and how busy each was in the last interval (0 to 1)."""

    online: tuple[int, ...]
    topology: Topology
    busy: dict[int, float]

    def without(self, taken: frozenset[int]) -> Layout:
        return self._replace(online=tuple(cpu for cpu in self.online if cpu not in taken))


def layout(prev: Snapshot | None, now: Snapshot) -> Layout | None:
    """None while it is not known which CPUs are online. Without topology each CPU is a core of one node."""
    online = now.host.cpus_online
    if not online:
        return None
    topology = now.host.topology or Topology(tuple((cpu,) for cpu in online), (online,))
    shared = now.host.cpus_shared
    # A CPU of somebody's partition in a mask of ours would be none, or would break the partition.
    free = tuple(cpu for cpu in online if shared is None or cpu in shared)
    return Layout(free or online, topology, _busy(prev, now))


def _busy(prev: Snapshot | None, now: Snapshot) -> dict[int, float]:
    """A CPU that cannot tell counts as idle: there is nothing to keep away from."""
    before = prev.host.cpus_busy_usec if prev is not None else None
    after = now.host.cpus_busy_usec
    if prev is None or before is None or after is None or now.monotonic_usec <= prev.monotonic_usec:
        return {}
    elapsed = now.monotonic_usec - prev.monotonic_usec
    return {
        cpu: min(max(usec - before[cpu], 0) / elapsed, 1.0) for cpu, usec in after.items() if cpu in before
    }


def less_own(busy: dict[int, float], held: tuple[int, ...], own_cores: float) -> dict[int, float]:
    """How busy others keep each CPU: what runs on `held` is taken to be spread evenly over it."""
    if not held:
        return busy
    share = own_cores / len(held)
    return {cpu: max(used - share, 0.0) if cpu in held else used for cpu, used in busy.items()}


def choose(count: int, of: Layout, prefer: tuple[int, ...] = (), gain: float = 0.0) -> tuple[int, ...]:
    """`count` CPUs of `of.online`, fewer if there are not so many; `prefer` counts as `gain` quieter."""
    chosen: list[int] = []
    nodes = [cores for cores in _by_node(of) if cores]
    while len(chosen) < count and nodes:
        need = count - len(chosen)
        best = min(nodes, key=lambda cores: _rank_node(cores, need, of, prefer, gain))
        nodes.remove(best)
        chosen += _from_node(best, need, of, prefer, gain)
    return tuple(sorted(chosen))


def choose_cores(count: int, of: Layout) -> tuple[int, ...]:
    """At least `count` CPUs in whole cores, of one node where one has so many, from the highest down."""
    chosen: list[int] = []
    nodes = [cores for cores in _by_node(of) if cores]
    while len(chosen) < count and nodes:
        need = count - len(chosen)
        best = min(nodes, key=lambda cores: (_size(cores) < need, -_size(cores), -max(map(max, cores))))
        nodes.remove(best)
        for core in sorted(best, reverse=True):
            if len(chosen) < count:
                chosen += core
    return tuple(sorted(chosen))


def _by_node(of: Layout) -> list[list[Core]]:
    """The cores of each node, cut down to the CPUs there are."""
    there = set(of.online)
    nodes = []
    for node in of.topology.nodes:
        within = there & set(node)
        cores = [tuple(cpu for cpu in core if cpu in within) for core in of.topology.cores]
        nodes.append([core for core in cores if core])
    return nodes


def _size(cores: list[Core]) -> int:
    return sum(len(core) for core in cores)


def _load(cpus: tuple[int, ...] | list[int], of: Layout, prefer: tuple[int, ...], gain: float) -> float:
    loads = [of.busy.get(cpu, 0.0) - (gain if cpu in prefer else 0.0) for cpu in cpus]
    return sum(loads) / len(loads)


def _rank_node(
    cores: list[Core], need: int, of: Layout, prefer: tuple[int, ...], gain: float
) -> tuple[bool, int, float, int]:
    """A node that has room for all comes first, then the largest, then the quietest, then the highest."""
    size = _size(cores)
    short = size < need
    taken = _from_node(cores, need, of, prefer, gain)
    return short, -size if short else 0, round(_load(taken, of, prefer, gain), 3), -max(taken)


def _from_node(cores: list[Core], need: int, of: Layout, prefer: tuple[int, ...], gain: float) -> list[int]:
    """Whole cores first; what is left over comes from as few others as will do."""
    full = set(of.topology.cores)
    ranked = sorted(
        cores,
        key=lambda core: (core not in full, round(_load(core, of, prefer, gain), 3), -max(core)),
    )
    taken: list[int] = []
    for core in ranked:
        if len(core) <= need - len(taken):
            taken += core
    for core in ranked:
        for cpu in sorted(core, reverse=True):
            if len(taken) < need and cpu not in taken:
                taken.append(cpu)
    return taken
