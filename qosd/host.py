"""Facts about this host, found by looking and never by version number, and what must be there at all."""

from __future__ import annotations

import os

import msgspec

from qosd.errors import UnsupportedHost
from qosd.procfs import Mount, parse_mounts

EX_CONFIG = 78
"""The exit status for a host or a configuration that a restart cannot help (sysexits.h)."""

_BOOT_UNIFIED = "boot with the kernel parameter systemd.unified_cgroup_hierarchy=1"


class HostFacts(msgspec.Struct, frozen=True):
    cgroup_root: str | None
    """Where cgroup2 is mounted."""
    hybrid: bool
    """Some controllers are bound to cgroup v1 hierarchies."""
    writable: bool
    controllers: frozenset[str]
    """Of the root: what the kernel offers to cgroup v2 at all."""
    psi: bool
    recursive_protection: bool | None = None
    """Whether memory.low of a cgroup protects those below it too, where they have none of their own."""


def probe_host(proc: str = "/proc") -> HostFacts:
    with open(f"{proc}/self/mountinfo", "rb") as file:
        mounts = parse_mounts(file.read())
    unified = next((mount for mount in mounts if mount.fstype == "cgroup2"), None)
    hybrid = any(mount.fstype == "cgroup" for mount in mounts)
    if unified is None:
        return HostFacts(None, hybrid, writable=False, controllers=frozenset(), psi=False)
    return HostFacts(
        unified.point,
        hybrid,
        _writable(unified),
        _controllers(unified.point),
        _has_psi(proc),
        "memory_recursiveprot" in unified.super_options,
    )


def require(facts: HostFacts) -> str:
    """The cgroup root, or `UnsupportedHost` with what is missing and the remedy."""
    if facts.cgroup_root is None:
        raise UnsupportedHost(f"no cgroup v2 hierarchy is mounted; {_BOOT_UNIFIED}")
    if facts.hybrid and "cpu" not in facts.controllers:
        raise UnsupportedHost(
            f"cgroup v2 at {facts.cgroup_root} has no controllers (cgroup v1 holds them); {_BOOT_UNIFIED}"
        )
    if not facts.writable:
        raise UnsupportedHost(
            f"cgroup v2 at {facts.cgroup_root} is mounted read-only; run qosd on the host, not in a container"
        )
    return facts.cgroup_root


def _writable(mount: Mount) -> bool:
    return "rw" in mount.options and "rw" in mount.super_options


def _controllers(root: str) -> frozenset[str]:
    try:
        with open(f"{root}/cgroup.controllers", encoding="ascii") as file:
            return frozenset(file.read().split())
    except OSError:
        return frozenset()


def _has_psi(proc: str) -> bool:
    """The file may be there and refuse to be read: CONFIG_PSI_DEFAULT_DISABLED without psi=1."""
    try:
        fd = os.open(f"{proc}/pressure/cpu", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return bool(os.read(fd, 1))
    except OSError:
        return False
    finally:
        os.close(fd)


def own_pid_cgroup(proc: str = "/proc") -> bytes:
    fd = os.open(f"{proc}/self/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)
