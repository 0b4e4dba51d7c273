"""An operator's own BPF object as a source of signals: its TOML file, ranges, what is refused. Pure."""

from __future__ import annotations

import enum
import re
from typing import Annotated

import msgspec
import tomli
from msgspec import Meta

from qosd.errors import ConfigError
from qosd.schema.units import Section

HOOKS = ("tp_btf/", "fentry/", "fexit/", "raw_tp/", "raw_tracepoint/", "tp/", "tracepoint/")
"""Sections that look and cannot change anything: no LSM, no packets, no kprobe, which could fake a result."""
OBJECT_MAX = 1 << 20
MAPS_MAX = 16 << 20
"""Bytes: of the object's file, and of all its maps with every element in use (per-CPU ones once per CPU)."""

_HOOK = re.compile(r"[a-z_]+/[A-Za-z0-9_/]{1,120}", re.ASCII)


class Kind(enum.StrEnum):
    VALUE = "value"
    RATE = "rate"


class PolicySignal(Section, frozen=True):
    """A map from cgroup id (u64) to u64: what it holds, or how fast that grows in a second."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,32}$")]
    map: str
    kind: Kind = Kind.VALUE
    scale: Annotated[float, Meta(gt=0)] = 1.0
    unit: Annotated[str, Meta(pattern=r"^[A-Za-z0-9/%_-]{1,16}$")] = "ms"
    slo: Annotated[float, Meta(gt=0)] | None = None


class Policy(Section, frozen=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,15}$")]
    object: Annotated[str, Meta(min_length=1)]
    workloads: Annotated[tuple[str, ...], Meta(min_length=1)]
    hooks: Annotated[tuple[str, ...], Meta(min_length=1, max_length=16)]
    maps: Annotated[tuple[str, ...], Meta(max_length=16)]
    signal: Annotated[tuple[PolicySignal, ...], Meta(min_length=1, max_length=16)]
    overhead_pct: Annotated[float, Meta(gt=0, le=5)] = 1.0
    workloads_map: str | None = None


def decode(text: str) -> Policy:
    """Raises `ConfigError` naming the key."""
    try:
        policy = msgspec.convert(tomli.loads(text), Policy)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".")
        raise ConfigError(f"{key}: {what}" if key else what) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not TOML: {error}") from None
    why = _wrong(policy)
    if why is not None:
        raise ConfigError(why)
    return policy


def _wrong(policy: Policy) -> str | None:
    for hook in policy.hooks:
        if not hook.startswith(HOOKS) or _HOOK.fullmatch(hook) is None:
            return f"hooks: {hook!r} is none of {', '.join(HOOKS)}..., which only look"
    names = [signal.name for signal in policy.signal]
    if len(set(names)) != len(names):
        return "signal.name: used twice"
    used = [signal.map for signal in policy.signal]
    if policy.workloads_map is not None:
        used.append(policy.workloads_map)
    missing = [name for name in used if name not in policy.maps]
    return f"maps: {missing[0]} is used and not declared" if missing else None
