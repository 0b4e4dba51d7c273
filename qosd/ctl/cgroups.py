"""The cgroup a person means by a path, a unit's name or a workload's name."""

from __future__ import annotations

import os
from collections.abc import Mapping

from qosd.model import printable
from qosd.systemd import unit_property

_UNIT_SUFFIXES = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")


def resolve(text: str, known: Mapping[str, str], mount: str | None) -> list[str]:
    """Paths relative to the cgroup2 mount, one at least; `known` is path to workload name."""
    path = relative(text, mount)
    if path in known or exists(path, mount):
        return [path]
    named = [candidate for candidate, workload in known.items() if workload == text]
    same_unit = [candidate for candidate in known if candidate.rsplit("/", 1)[-1] == path]
    if named or same_unit:
        return sorted(named or same_unit)
    if "/" not in path and path.endswith(_UNIT_SUFFIXES):
        return [(unit_property(path, "ControlGroup") or "").lstrip("/") or guess_unit(path)]
    return [path]


def relative(text: str, mount: str | None) -> str:
    r"""`/sys/fs/cgroup/be.slice/` and `/be.slice` to `be.slice`, a name's bytes escaped as in the status."""
    for prefix in (mount, "/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        if prefix and (text == prefix or text.startswith(prefix + "/")):
            text = text[len(prefix) :]
            break
    path = "/".join(part for part in text.split("/") if part not in ("", "."))
    return path if "\\x" in path else printable(path)


def exists(path: str, mount: str | None) -> bool:
    """Whether there is such a cgroup now; a name that had to be escaped is never found."""
    return mount is not None and ".." not in path.split("/") and os.path.isdir(os.path.join(mount, path))


def guess_unit(unit: str) -> str:
    """Where systemd puts a unit by default: `a-b.slice` in `a.slice`, a service in system.slice."""
    if not unit.endswith(".slice"):
        return f"system.slice/{unit}"
    parts = unit.removesuffix(".slice").split("-")
    return "/".join("-".join(parts[: count + 1]) + ".slice" for count in range(len(parts)))
