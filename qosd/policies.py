"""Operators' BPF objects in the daemon: loaded and unloaded by `qosctl policy`, read each tick as signals.

They stay over a reload of the configuration and are gone with the daemon. One that takes more CPU than it
may, or that cannot be read, is unloaded and says why.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import msgspec

from qosd.errors import ConfigError, QosdError
from qosd.model import CgroupId, Feed, Snapshot, Tier
from qosd.schema import policy as schema
from qosd.schema.policy import OBJECT_MAX, Kind, Policy, PolicySignal

if TYPE_CHECKING:
    from qosd.ebpf.libbpf import Library
    from qosd.ebpf.policy import PolicyProbe

_LOADED_MAX = 8
_TEXT_MAX = 1 << 16


class PolicyStatus(msgspec.Struct, frozen=True):
    name: str
    file: str
    workloads: tuple[str, ...]
    hooks: tuple[str, ...]
    loaded: bool
    cpu_pct: float | None = None
    """Of all CPUs, in the last tick."""
    overhead_pct: float = 0.0
    error: str | None = None
    """Why it was unloaded."""


class Loaded:
    """One object, and what its maps held at the last tick."""

    def __init__(self, probe: PolicyProbe, file: str) -> None:
        self.probe: PolicyProbe | None = probe
        self.policy: Policy = probe.policy
        self.file = file
        self.cpu_pct: float | None = None
        self.error: str | None = None
        self._at: tuple[int, int] | None = None
        self._counts: tuple[int, dict[str, dict[CgroupId, int]]] | None = None

    def status(self) -> PolicyStatus:
        policy = self.policy
        return PolicyStatus(
            policy.name,
            self.file,
            policy.workloads,
            policy.hooks,
            self.probe is not None,
            self.cpu_pct,
            policy.overhead_pct,
            self.error,
        )

    def unload(self, why: str | None = None) -> None:
        if self.probe is not None:
            self.probe.close()
            self.probe, self.error, self.cpu_pct = None, why, None

    def sample(self, now: Snapshot) -> list[Feed]:
        """A value for each of its signals and workloads; none for what was unloaded."""
        if self.probe is None:
            return []
        victims = {each.id: each.name for each in now.tier(Tier.LS) if each.name in self.policy.workloads}
        try:
            self.probe.watch(frozenset(victims))
            counts = self.probe.read()
            too_dear = self._weigh(now, self.probe.run_time_ns())
        except QosdError as error:
            too_dear = str(error)
        if too_dear is not None:
            self.unload(too_dear)
            return []
        before, self._counts = self._counts, (now.monotonic_usec, counts)
        return [
            self._feed(signal, name, _value(signal, cgroup, (now.monotonic_usec, counts), before))
            for signal in self.policy.signal
            for cgroup, name in victims.items()
        ]

    def _feed(self, signal: PolicySignal, workload: str, value: float | None) -> Feed:
        name = f"{self.policy.name}.{signal.name}"
        return Feed(name, workload, signal.unit, value, None if value is None else 0, signal.slo, news=True)

    def _weigh(self, now: Snapshot, run_time_ns: int) -> str | None:
        """What it cost since the last tick, and the reason if that is too much."""
        before, self._at = self._at, (now.monotonic_usec, run_time_ns)
        if before is None or now.monotonic_usec <= before[0]:
            return None
        elapsed = (now.monotonic_usec - before[0]) * now.host.nr_cpus
        self.cpu_pct = round((run_time_ns - before[1]) / elapsed / 1000 * 100, 4)
        limit = self.policy.overhead_pct
        if self.cpu_pct <= limit:
            return None
        return f"it took {self.cpu_pct:.2f} % of the CPUs, more than its overhead_pct of {limit:g}"


def _value(
    signal: PolicySignal,
    cgroup: CgroupId,
    now: tuple[int, dict[str, dict[CgroupId, int]]],
    before: tuple[int, dict[str, dict[CgroupId, int]]] | None,
) -> float | None:
    """None while it is not known; a rate needs two readings, of which the second is not less."""
    held = now[1][signal.name].get(cgroup)
    if held is None or signal.kind is Kind.VALUE:
        return None if held is None else held * signal.scale
    if before is None or now[0] <= before[0]:
        return None
    grown = held - before[1][signal.name].get(cgroup, 0)
    return grown * signal.scale * 1e6 / (now[0] - before[0]) if grown >= 0 else None


class Policies:
    def __init__(self) -> None:
        self._loaded: dict[str, Loaded] = {}
        self._library: Library | None = None

    def status(self) -> tuple[PolicyStatus, ...]:
        return tuple(each.status() for each in self._loaded.values())

    def sample(self, now: Snapshot) -> tuple[Feed, ...]:
        return tuple(feed for each in self._loaded.values() for feed in each.sample(now))

    def close(self) -> None:
        for each in self._loaded.values():
            each.unload()
        self._loaded = {}

    def answer(self, request: dict[str, Any], uid: int, ls_names: frozenset[str]) -> dict[str, Any]:
        """What the control socket says to `qosctl policy`."""
        action, what = str(request.get("action")), str(request.get("what"))
        if action != "list" and uid != 0:
            return {"error": f"policy {action} changes the host and needs root", "kind": "not-permitted"}
        try:
            if action == "load":
                self._load(what, ls_names)
            elif action == "unload":
                self._unload(what)
            elif action != "list":
                return {"error": f"unknown action {action!r}"}
        except ConfigError as error:
            return {"error": str(error), "kind": "config"}
        except QosdError as error:
            return {"error": str(error)}
        return {"ok": msgspec.to_builtins(self.status())}

    def _load(self, file: str, ls_names: frozenset[str]) -> None:
        """A policy of the same name is replaced, but only once the new one is on its hooks."""
        policy = schema.decode(_read_trusted(file, _TEXT_MAX).decode("utf-8", "replace"))
        for name in policy.workloads:
            if name not in ls_names:
                raise ConfigError(f"workloads: no [[workload]] of tier ls has the name {name!r}")
        held = sum(each.probe is not None for name, each in self._loaded.items() if name != policy.name)
        if held >= _LOADED_MAX:
            raise QosdError(f"{_LOADED_MAX} policies are loaded, which is the most")
        elf = _read_trusted(os.path.join(os.path.dirname(file), policy.object), OBJECT_MAX)
        from qosd.ebpf.libbpf import Library  # noqa: PLC0415 - ctypes and libbpf, only for those who load
        from qosd.ebpf.policy import PolicyProbe  # noqa: PLC0415 - same

        self._library = self._library or Library()
        probe = PolicyProbe.open(self._library, policy, elf)
        if policy.name in self._loaded:
            self._loaded[policy.name].unload()
        self._loaded[policy.name] = Loaded(probe, file)

    def _unload(self, name: str) -> None:
        if name not in self._loaded:
            names = ", ".join(self._loaded) or "none"
            raise QosdError(f"no policy of the name {name!r}; there are: {names}")
        self._loaded.pop(name).unload()


def _read_trusted(path: str, largest: int) -> bytes:
    """A file that only root could have written. Raises ConfigError."""
    if not path.startswith("/"):
        raise ConfigError(f"{path}: must be an absolute path")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; the daemon sees no /home, /root and /tmp") from None
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > largest:
            raise ConfigError(f"{path}: must be a regular file of {largest} bytes at most")
        if info.st_uid not in (0, os.geteuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"{path}: must belong to root and be writable by root alone: it becomes kernel code"
            )
        return file.read(largest)
